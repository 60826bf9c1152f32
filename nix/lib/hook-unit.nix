# A unit that runs a hook about a start, which may itself wait for a start: the slowest of the stack, for all it knows.
{ lib }:
let
  timing = import ./timing.nix { inherit lib; };
in
{ config }:
{
  description,
  # What follows the hook's program on its command line.
  call,
  # Seconds that it may take beside such a start.
  extra ? 0,
}:
let
  cfg = config.services.aistack;
  inherit (cfg) manifest;
  containers = lib.filter (service: service.external == null) (lib.attrValues manifest.services);
  slowest = lib.foldl' (
    longest: service: lib.max longest (timing manifest service).series
  ) 0 containers;
in
{
  inherit description;
  # Which hook call comes last must not depend on how quickly things fail.
  startLimitIntervalSec = 0;
  # A switch must not cut off what is under way.
  restartIfChanged = false;
  path = [ config.virtualisation.podman.package ];
  serviceConfig = {
    Type = "oneshot";
    ExecStart = "${cfg.hook} ${call}";
    TimeoutStartSec = slowest + 60 + extra;
  };
}
