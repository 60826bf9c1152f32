# The stack as a whole: whether it runs, from which package, where it keeps its state, and its services.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.services.aistack;
  aistack = import ../lib { inherit lib; };
in
{
  options.services.aistack = {
    enable = lib.mkEnableOption "aistack, a local AI stack of podman containers under systemd";

    package = lib.mkPackageOption pkgs "aistack" { };

    hook = lib.mkOption {
      type = lib.types.str;
      internal = true;
      default = "${pkgs.python3}/bin/python3 -I -S ${cfg.package}/bin/aistack-hook";
      defaultText = lib.literalExpression ''"''${pkgs.python3}/bin/python3 -I -S ''${config.services.aistack.package}/bin/aistack-hook"'';
      description = "Command line that every unit of the stack calls with a verb and the name of a service.";
    };

    stateDir = lib.mkOption {
      type = aistack.types.hostPath;
      default = "/var/lib/aistack";
      example = "/srv/aistack";
      description = "Directory that holds the release journal and the volumes of the catalog's services.";
    };

    services = lib.mkOption {
      type = lib.types.attrsOf (
        lib.types.submoduleWith {
          modules = [ ./service.nix ];
          specialArgs = {
            inherit aistack;
            stack = cfg;
          };
        }
      );
      default = { };
      example = lib.literalExpression ''
        {
          qdrant.enable = false;
          app = {
            image = "registry.example.org/app:1.4.2";
            port = 8000;
            publish = [ 8000 ];
            dependsOn = [ "postgres" "redis" ];
            health = {
              kind = "http";
              path = "/ready";
            };
          };
        }
      '';
      description = ''
        Services of the stack, by name; the name is the service's host name in the stack's network.
        Names of the catalog (postgres, redis, qdrant, llama-cpp, aider-wrapper, ralph-wiggum) come filled in, the last two switched off; any other name is a container of your own.
      '';
    };
  };

  config = lib.mkIf cfg.enable {
    environment.systemPackages = [ cfg.package ];

    systemd.targets.aistack = {
      description = "The local AI stack";
      wantedBy = [ "multi-user.target" ];
    };

    systemd.tmpfiles.rules = lib.mkBefore [ "d ${cfg.stateDir} 0755 root root - -" ];
  };
}
