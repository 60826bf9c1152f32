# What follows a start: the way back after a failure, another try later, and the blessing of a release
# that stays healthy.
{ config, lib, ... }:
let
  cfg = config.services.aistack;
  inherit (cfg) manifest;
  inherit (config.virtualisation.podman) autoPrune;
  aistack = import ../lib { inherit lib; };
  inherit (lib) types;

  # What activating another NixOS generation may take on top.
  activation =
    if lib.any (service: service.rollbackPolicy == "system") (lib.attrValues manifest.services) then
      600
    else
      0;

  hook =
    verb: description:
    aistack.hookUnit { inherit config; } {
      inherit description;
      call = "${verb} %i";
      extra = activation;
    };

  timer = description: seconds: {
    inherit description;
    # Each start of the service begins the timer anew, however quickly they follow each other.
    startLimitIntervalSec = 0;
    # Stopping the service by hand ends what was planned for it.
    partOf = [ "podman-aistack-%i.service" ];
    timerConfig = {
      OnActiveSec = "${toString seconds}s";
      AccuracySec = "100ms";
      # Starting it again later starts its time again.
      RemainAfterElapse = false;
    };
  };
in
{
  options.services.aistack.rollback = {
    policy = lib.mkOption {
      type = types.enum [
        "image"
        "system"
        "none"
      ];
      default = "image";
      example = "none";
      description = ''
        What to go back to when a new release of a service fails: the last good image (`image`), the previous NixOS
        generation (`system`), or nothing (`none`).

        The previous generation is activated as by `nixos-rebuild test`, once for each bad release; the boot loader's
        default stays. Where there is no such generation, or it declares the same service, the last good image is what is left.
      '';
    };
    retain = lib.mkOption {
      type = types.ints.positive;
      default = 5;
      example = 10;
      description = "Good releases of each service whose images are kept.";
    };
    probationSeconds = lib.mkOption {
      type = types.ints.unsigned;
      default = 60;
      example = 300;
      description = "Seconds for which a new release must stay healthy before it counts as good.";
    };
  };

  config = lib.mkIf cfg.enable {
    warnings =
      lib.optional
        (
          autoPrune.enable
          && lib.any (flag: lib.elem flag autoPrune.flags) [
            "--all"
            "-a"
          ]
        )
        "virtualisation.podman.autoPrune.flags removes every image that no container uses, and with them the releases that services.aistack.rollback would go back to. Leave out --all.";

    systemd.services = {
      "aistack-rollback@" = hook "rollback" "Last good release for %i";
      "aistack-retry@" = hook "retry" "Another start of %i";
      "aistack-bless@" = hook "bless" "End of probation of %i";
    };

    systemd.timers = {
      "aistack-retry@" = timer "Time until another start of %i" 30;
      "aistack-bless@" = timer "Probation of %i" cfg.rollback.probationSeconds;
    };
  };
}
