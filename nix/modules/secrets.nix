# Secrets: which file holds each, how a container gets it, and what happens when it changes. Their contents never pass
# through Nix.
{ config, lib, ... }:
let
  inherit (lib) types;
  cfg = config.services.aistack;
  inherit (cfg) manifest;
  storage = config.virtualisation.containers.storage.settings.storage or { };
  graphroot = storage.graphroot or "/var/lib/containers/storage";

  # The files of what containers of this stack are given.
  watched = lib.unique (
    map (key: manifest.secrets.${key}.file) (
      lib.filter (key: manifest.secrets ? ${key}) (
        lib.concatMap (service: lib.optionals (service.external == null) service.secrets) (
          lib.attrValues manifest.services
        )
      )
    )
  );
in
{
  options.services.aistack.secrets = lib.mkOption {
    type = types.attrsOf (
      types.submodule {
        options = {
          file = lib.mkOption {
            # A literal path is accepted here so that the assertion can say what is wrong with it.
            type = types.path;
            example = "/run/secrets/postgres-password";
            description = "File that holds the secret, readable by root alone, outside the Nix store.";
          };
          as = lib.mkOption {
            type = types.enum [
              "env"
              "file"
            ];
            default = "env";
            example = "file";
            description = "Whether a container gets the secret as the variable `<KEY>`, or as a read-only file whose path is in `<KEY>_FILE`.";
          };
        };
      }
    );
    default = { };
    example = {
      POSTGRES_PASSWORD.file = "/run/secrets/postgres-password";
    };
    description = "Secrets by key; a container gets those that its {option}`secrets` name, and no others.";
  };

  options.services.aistack.secretRotation.enable = lib.mkOption {
    type = types.bool;
    default = true;
    example = false;
    description = ''
      Whether a secret whose file changes is followed: the services that use it and run are restarted, and PostgreSQL's role
      gets the new password first. A file that is emptied, removed or otherwise of no use is not followed.
    '';
  };

  # podman's database holds the environment of every container, secrets and all, and nothing but the mode of its
  # directory keeps others from reading it. podman makes it for root alone; systemd-tmpfiles, which comes first on a
  # new machine and only wants a place for podman's temporary files in it, does not.
  config = lib.mkIf cfg.enable (
    lib.mkMerge [
      { systemd.tmpfiles.rules = [ "d ${graphroot} 0700 root root - -" ]; }
      (lib.mkIf (cfg.secretRotation.enable && watched != [ ]) {
        systemd.paths.aistack-secrets = {
          description = "Secrets of the local AI stack";
          wantedBy = [ "aistack.target" ];
          partOf = [ "aistack.target" ];
          pathConfig = {
            PathChanged = watched;
            # However often somebody writes: the hook waits until nobody does, and counts.
            TriggerLimitIntervalSec = 0;
          };
        };
        systemd.services.aistack-secrets = {
          description = "What changed secrets ask for";
          startLimitIntervalSec = 0;
          # A switch must not cut it off, nor start it by itself.
          restartIfChanged = false;
          path = [ config.virtualisation.podman.package ];
          serviceConfig = {
            Type = "oneshot";
            ExecStart = "${cfg.hook} secrets";
            TimeoutStartSec = 180;
          };
        };
      })
    ]
  );
}
