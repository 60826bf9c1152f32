# Recovery: what becomes of a deployment that was cut off. The deployment itself is a command (`aistack deploy`).
{
  config,
  lib,
  options,
  ...
}:
let
  cfg = config.services.aistack;
  inherit (cfg) manifest;
  aistack = import ../lib { inherit lib; };

  containers = lib.filterAttrs (_: service: service.external == null) manifest.services;

  recover =
    description: when:
    aistack.hookUnit { inherit config; } {
      inherit description;
      call = "recover ${when}";
    };
in
{
  config = lib.mkIf cfg.enable (
    lib.optionalAttrs (options ? system.preSwitchChecks) {
      # Refuses a switch to images that fail their isolated test, while the old system serves.
      system.preSwitchChecks.aistack = ''
        ${cfg.package}/bin/aistack preswitch "$1" "''${2-switch}"
      '';
    }
    // {
      systemd.services = {
        aistack-recover =
          lib.recursiveUpdate (recover "End of deployments that were cut off" "before-start")
            {
              wantedBy = [ "aistack.target" ];
              partOf = [ "aistack.target" ];
              # What runs next is decided before anything is started.
              before = map (service: service.unit) (lib.attrValues containers);
              # Once for each start of the stack; until its next one it has been done.
              serviceConfig.RemainAfterExit = true;
            };
        # Restarts what has to go back, which nothing that the units wait for could do.
        aistack-recover-late = recover "End of a deployment that was cut off" "late";
      };

      # Runs only while a deployment is under way, which starts and stops it.
      systemd.timers.aistack-recover-late = {
        description = "Looks whether the deployment that is under way still lives";
        timerConfig = {
          OnActiveSec = "15s";
          OnUnitInactiveSec = "15s";
          AccuracySec = "1s";
        };
      };
    }
  );
}
