# Secrets: declared where they are needed, and kept out of the Nix store.
{ config, lib, ... }:
let
  cfg = config.services.aistack;
  inherit (import ../../lib { inherit lib; })
    env
    forEach
    list
    option
    refuse
    ;

  enabled = lib.filterAttrs (_: service: service.enable) cfg.services;

  # What a service's container gets, and what its probe logs in with.
  neededBy =
    { external, health, ... }@service:
    lib.unique (
      lib.optionals (external == null) service.secrets
      ++ lib.optional (health.kind != null && health.secret != null) health.secret
    );
in
{
  config = lib.mkIf cfg.enable {
    assertions =
      forEach cfg.secrets (
        key: secret:
        let
          path = toString secret.file;
          how =
            if builtins.isPath secret.file then
              "written as a path literal, which Nix copies to its store"
            else
              "a file inside the Nix store";
        in
        [
          (refuse (!env.isKey key) "services.aistack.secrets.${key}: `${key}` is no key of an .env file."
            "A key starts with an upper-case letter and has only upper-case letters, digits and underscores. Rename it."
          )
          (refuse (builtins.isPath secret.file || lib.hasPrefix "${builtins.storeDir}/" path)
            "services.aistack.secrets.${key}.file is `${path}`, ${how}: everybody on this machine could read it."
            "Keep the secret outside the store (sops-nix, agenix, or a file only root can read) and write its path as a string, such as \"/run/secrets/${lib.toLower key}\"."
          )
        ]
      )
      ++ forEach enabled (
        name: service:
        map (
          key:
          refuse (!(cfg.secrets ? ${key}))
            "services.aistack.secrets.${key}.file is not set, but ${option name} needs it."
            "Write the secret to a file that only root can read and set services.aistack.secrets.${key}.file = \"/path/of/that/file\"."
        ) (neededBy service)
        ++ [
          (refuse (
            service.secrets != lib.unique service.secrets
          ) "${option name}.secrets names a key twice." "Remove one of them: ${list service.secrets}.")
        ]
      );
  };
}
