# Secrets: which file holds each, and how a container gets it. Their contents never pass through Nix.
{ config, lib, ... }:
let
  inherit (lib) types;
  storage = config.virtualisation.containers.storage.settings.storage or { };
  graphroot = storage.graphroot or "/var/lib/containers/storage";
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

  # podman's database holds the environment of every container, secrets and all, and nothing but the mode of its
  # directory keeps others from reading it. podman makes it for root alone; systemd-tmpfiles, which comes first on a
  # new machine and only wants a place for podman's temporary files in it, does not.
  config = lib.mkIf config.services.aistack.enable {
    systemd.tmpfiles.rules = [ "d ${graphroot} 0700 root root - -" ];
  };
}
