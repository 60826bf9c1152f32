# Keys of the .env and of the containers: well-formed, defined once, and no secrets.
{ config, lib, ... }:
let
  cfg = config.services.aistack;
  inherit (import ../../lib { inherit lib; })
    env
    forEach
    option
    refuse
    ;

  containers = lib.filterAttrs (_: service: service.enable && service.external == null) cfg.services;

  # The section of the .env that derives a key, if one does.
  derivedIn = lib.foldl' (
    found: section: lib.mapAttrs (_: _: section.title) section.values // found
  ) { } cfg.derivedSections;
  public = cfg.manifest.environment;

  # What is wrong with a key wherever it is; `isSecret` where it is a secret already, which another refusal says.
  plain =
    {
      at,
      key,
      value,
      isSecret,
      finally ? "",
    }:
    let
      advice = "Everybody on this machine could read it. Put the value in a file and set services.aistack.secrets.${key}.file to its path, outside the Nix store.${finally}";
    in
    [
      (refuse (!env.isKey key) "${at}.${key}: `${key}` is no key of an .env file."
        "A key starts with an upper-case letter and has only upper-case letters, digits and underscores. Rename it."
      )
      (refuse (!isSecret && env.looksSecret key) "${at}.${key} looks like a secret." advice)
      (refuse (
        lib.isString value && env.hasCredentials value
      ) "${at}.${key} has a password in its URL." advice)
    ];
in
{
  config = lib.mkIf cfg.enable {
    assertions =
      forEach cfg.environment (
        key: value:
        plain {
          at = "services.aistack.environment";
          inherit key value;
          isSecret = cfg.secrets ? ${key};
        }
        ++ [
          (refuse (env.isShellOwn key)
            "services.aistack.environment.${key}: ${key} is a shell's own variable, so the readers of /etc/aistack/.env would not agree on it."
            "Rename it, or set it for one container, in services.aistack.services.<name>.environment."
          )
          (refuse (derivedIn ? ${key})
            "services.aistack.environment.${key} is defined twice: the stack derives ${key} from its own options (section \"${derivedIn.${key}}\" of /etc/aistack/.env)."
            "Remove it, and set the option it is derived from."
          )
          (refuse (cfg.secrets ? ${key})
            "${key} is defined twice: services.aistack.environment.${key} and services.aistack.secrets.${key}."
            "Remove it from services.aistack.environment."
          )
        ]
      )
      ++ map (
        key:
        refuse (!cfg.environment ? ${key})
          "services.aistack.overridable names ${key}, which is not a key of services.aistack.environment."
          "Remove it, or set services.aistack.environment.${key}. Keys of the stack's own are overridable as they are."
      ) cfg.overridable
      ++ forEach cfg.secrets (
        key: _: [
          (refuse (derivedIn ? ${key})
            "${key} is defined twice: the stack derives it from its own options, and services.aistack.secrets.${key} is set."
            "Remove the secret."
          )
        ]
      )
      ++ forEach containers (
        name: service:
        forEach service.environment (
          key: value:
          plain {
            at = "${option name}.environment";
            inherit key value;
            isSecret = lib.elem key service.secrets;
            finally = " Then name ${key} in ${option name}.secrets.";
          }
          ++ [
            (refuse (service.stackEnvironment && public ? ${key})
              "${key} is defined twice: ${option name}.environment.${key}, and the stack's .env, which this container gets too."
              "Remove one of them, or set ${option name}.stackEnvironment = false."
            )
            (refuse (lib.elem key service.secrets)
              "${key} is defined twice: ${option name}.environment.${key} and ${option name}.secrets."
              "Remove it from environment."
            )
          ]
        )
      );
  };
}
