# How long the steps of a service's life may take, in seconds, from its manifest entry.
{ lib }:
manifest: service:
let
  awaitReady = if service.probe == null then 0 else service.probe.startTimeoutSeconds;
in
rec {
  # Starts in a row that fail before the unit gives up.
  burst = 3;

  # systemd applies TimeoutStartSec to each command of a start on its own; each must be able to give
  # up by itself, and say why, before systemd does.
  start =
    lib.foldl' lib.max 0 [
      service.image.pullTimeoutSeconds
      manifest.startup.timeoutSeconds
      awaitReady
    ]
    + 30;

  # podman waits out the container's own time to end, then kills it.
  stop = service.stopTimeoutSeconds + 15;

  # Long starts are counted by the start hook, which gives a release up and then fails at once, so this
  # only has to span a few starts that fail fast. A wider window would refuse an administrator's restarts.
  startLimitInterval = 30;

  # All starts that one `systemctl restart` may wait for, at their slowest.
  series = burst * (start + manifest.startup.timeoutSeconds + awaitReady + stop + 1) + 60;
}
