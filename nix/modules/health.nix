# Health timers: one for each interval there is, which asks all services of that interval in one process.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.services.aistack;
  aistack = import ../lib { inherit lib; };
  inherit (cfg) manifest;
  inherit (lib) types;

  watched = lib.filter (service: service.external == null && service.probe != null) (
    lib.attrValues manifest.services
  );
  groups = lib.groupBy (service: toString service.probe.intervalSeconds) watched;

  forEachGroup =
    render:
    lib.mapAttrs' (
      seconds: group: lib.nameValuePair "aistack-health-${seconds}" (render seconds group)
    ) groups;

  longest = lib.foldl' (found: service: lib.max found service.probe.timeoutSeconds) 0;
in
{
  options.services.aistack.selfHealing = {
    maxRestarts = lib.mkOption {
      type = types.ints.positive;
      default = 3;
      example = 5;
      description = "Restarts of one service within {option}`services.aistack.selfHealing.windowSeconds` before it is left alone until it is healthy again.";
    };
    windowSeconds = lib.mkOption {
      type = aistack.types.seconds;
      default = 3600;
      example = 600;
      description = "Seconds within which restarts are counted.";
    };
    backoffSeconds = lib.mkOption {
      type = types.ints.unsigned;
      default = 10;
      example = 60;
      description = "Seconds between the first restart and the second; each further pause is twice as long as the one before.";
    };
  };

  config = lib.mkIf cfg.enable {
    systemd.services = forEachGroup (
      seconds: group: {
        description = "Health of the ${toString (lib.length group)} services checked every ${seconds} s";
        startLimitIntervalSec = 0;
        # A switch must not cut off a check that is under way, nor start one by itself.
        restartIfChanged = false;
        path = [ config.virtualisation.podman.package ] ++ aistack.networkTools pkgs;
        serviceConfig = {
          Type = "oneshot";
          ExecStart = "${cfg.hook} health ${seconds}";
          # Its probes, those of a dependency that may be to blame, and a repair of the network.
          TimeoutStartSec = 3 * longest group + 180;
          # What it says is worth a line; that it was started and has ended, every few seconds, is not.
          SyslogLevel = "notice";
          LogLevelMax = "notice";
        };
      }
    );

    systemd.timers = forEachGroup (
      seconds: _: {
        description = "Health checks every ${seconds} s";
        wantedBy = [ "aistack.target" ];
        partOf = [ "aistack.target" ];
        timerConfig = {
          # Monotonic, so that a jump of the clock neither skips checks nor heaps them up.
          OnActiveSec = "${seconds}s";
          OnUnitActiveSec = "${seconds}s";
          AccuracySec = "${toString (lib.min 1000 (100 * lib.toInt seconds))}ms";
        };
      }
    );
  };
}
