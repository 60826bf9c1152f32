# Probes that could not be asked, and times that contradict each other.
{ config, lib, ... }:
let
  cfg = config.services.aistack;
  inherit (import ../../lib { inherit lib; }) forEach option refuse;

  # What some start waits for.
  awaited = lib.optionals cfg.startup.dependencyCheck (
    lib.concatMap (service: service.dependsOn) (
      lib.filter (service: service.enable) (lib.attrValues cfg.services)
    )
  );

  probed = lib.filterAttrs (_: service: service.enable && service.health.kind != null) cfg.services;
in
{
  config = lib.mkIf cfg.enable {
    assertions = forEach probed (
      name: service:
      let
        inherit (service) health;
        at = "${option name}.health";
        isExec = health.kind == "exec";
        seconds = key: "${at}.${key} (${toString health.${key}} s)";
      in
      [
        (refuse (!isExec && health.port == null)
          "${at}.kind is `${health.kind}`, but there is no port to ask."
          "Set ${option name}.port or ${at}.port."
        )
        (refuse (
          isExec && health.command == [ ]
        ) "${at}.kind is `exec`, but there is no command to run." "Set ${at}.command.")
        (refuse (isExec && service.external != null)
          "${at}.kind is `exec`, but the service runs elsewhere and has no container to run a command in."
          "Use http, tcp, postgres or redis."
        )
        (refuse (health.timeout > health.interval)
          "${seconds "timeout"} is longer than ${seconds "interval"}, so checks would overtake each other."
          "Make the timeout at most the interval."
        )
        (refuse (health.timeout > health.startTimeout)
          "${seconds "startTimeout"} is shorter than ${seconds "timeout"}, so not even one check could end before the start is given up."
          "Make it longer."
        )
        (refuse (lib.elem name awaited && health.timeout > cfg.startup.timeoutSeconds)
          "${seconds "timeout"} is longer than services.aistack.startup.timeoutSeconds (${toString cfg.startup.timeoutSeconds} s), so whoever depends on it would give up before one check could end."
          "Shorten the one, or lengthen the other."
        )
      ]
    );
  };
}
