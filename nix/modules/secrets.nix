# Secrets: which file holds each, and how a container gets it. Their contents never pass through Nix.
{ lib, ... }:
let
  inherit (lib) types;
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
}
