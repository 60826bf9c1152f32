# The podman network that all containers share: its creation, its firewall, its repair.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.services.aistack;
  podman = "${config.virtualisation.podman.package}/bin/podman";
  aistack = import ../lib { inherit lib; };
  inherit (lib) types;

  firewalls = [
    "firewall.service"
    "nftables.service"
  ];

  octet = "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])";
  subnetPattern = "(${octet}\\.${octet}\\.${octet})\\.0/(1[6-9]|2[0-4])";
in
{
  options.services.aistack.network = {
    name = lib.mkOption {
      type = types.strMatching "[a-zA-Z0-9][a-zA-Z0-9_.-]*";
      default = "local-ai";
      example = "lab";
      description = "Name of the podman network.";
    };
    subnet = lib.mkOption {
      type = types.strMatching subnetPattern // {
        description = "IPv4 subnet that ends in .0, of /16 to /24 (such as 10.89.100.0/24)";
      };
      default = "10.89.100.0/24";
      example = "10.200.0.0/24";
      description = "Subnet of the network, which must not overlap with a network the host already knows.";
    };
    gateway = lib.mkOption {
      type = types.str;
      readOnly = true;
      default = "${lib.head (builtins.match subnetPattern cfg.network.subnet)}.1";
      defaultText = lib.literalMD "the first address of {option}`services.aistack.network.subnet`";
      description = "Address of the host in the network, where the network's DNS answers.";
    };
    interface = lib.mkOption {
      type = types.strMatching "[a-zA-Z0-9][a-zA-Z0-9_.-]{0,14}";
      default = "aistack0";
      example = "ai0";
      description = "Name of the bridge interface on the host.";
    };
  };

  config = lib.mkIf cfg.enable {
    # Containers ask the DNS at the gateway; the firewall would drop that on any bridge but podman's own.
    networking.firewall.interfaces.${cfg.network.interface} = {
      allowedUDPPorts = [ 53 ];
      allowedTCPPorts = [ 53 ];
    };

    systemd.services.aistack-network = {
      description = "Network ${cfg.network.name} of the local AI stack";
      # A firewall that is loaded anew, or restarted, may flush the rules of the network: mended after that, not beside it.
      unitConfig.ReloadPropagatedFrom = firewalls;
      partOf = firewalls;
      after = firewalls;
      # The hook reads these from the manifest, so that the unit itself does not change with them.
      restartTriggers = [
        (builtins.hashString "sha256" (builtins.toJSON cfg.manifest.network))
      ];
      path = [ config.virtualisation.podman.package ] ++ aistack.networkTools pkgs;
      serviceConfig = {
        Type = "oneshot";
        RemainAfterExit = true;
        # Another repair may have to be waited for, and this one takes several calls of podman.
        TimeoutStartSec = 180;
        TimeoutStopSec = 60;
        ExecStart = "${cfg.hook} network ${cfg.network.name}";
        ExecReload = "${cfg.hook} network ${cfg.network.name}";
        # Made anew at the next start, with the settings of that time. It stays if a container that is
        # not ours is on it, and that is no failure.
        ExecStop = "-${podman} network rm ${cfg.network.name}";
      };
    };
  };
}
