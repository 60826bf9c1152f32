# What must not pass evaluation. Each message names the option and what to do about it.
{ config, lib, ... }:
let
  cfg = config.services.aistack;
  aistack = import ../lib { inherit lib; };

  enabled = lib.filterAttrs (_: service: service.enable) cfg.services;
  containers = lib.filterAttrs (_: service: service.external == null) enabled;
  option = name: "services.aistack.services.${name}";

  quote = text: "`${text}`";
  list = names: lib.concatMapStringsSep ", " quote names;

  # { holds; message; } for each service, as NixOS wants them.
  forEach =
    services: check:
    lib.concatLists (
      lib.mapAttrsToList (
        name: service:
        map (message: {
          assertion = false;
          inherit message;
        }) (check name service)
      ) services
    );

  complain = condition: message: lib.optional condition message;

  names = forEach cfg.services (
    name: _:
    complain (builtins.match "[a-z]([a-z0-9-]{0,61}[a-z0-9])?" name == null)
      "${option name}: a service's name is its host name and the start of its keys in the .env, so it has only lower-case letters, digits and dashes, starts with a letter and ends with none of the dashes, and is at most 63 characters long. Rename it."
  );

  dependencies =
    forEach enabled (
      name: service:
      lib.concatMap
        (
          kind:
          lib.concatMap (
            dependency:
            complain (!(cfg.services ? ${dependency}))
              "${option name}.${kind} names ${quote dependency}, which is no service of the stack. Declare ${option dependency}, or correct the name; there are ${list (lib.attrNames enabled)}."
          ) service.${kind}
        )
        [
          "dependsOn"
          "wants"
        ]
    )
    ++ forEach enabled (
      name: service:
      lib.concatMap (
        dependency:
        let
          target = cfg.services.${dependency};
        in
        lib.optionals (cfg.services ? ${dependency}) (
          complain (!target.enable)
            "${option name}.dependsOn names ${quote dependency}, which is switched off. Set ${option dependency}.enable = true, or ${option dependency}.external if it runs elsewhere, or take it out of dependsOn."
          ++
            complain (target.enable && target.health.kind == null)
              "${option name}.dependsOn names ${quote dependency}, which cannot be asked whether it is ready. Set ${option dependency}.health.kind, or move ${quote dependency} to ${option name}.wants."
        )
      ) service.dependsOn
    );

  cycle = aistack.graph.cycle (lib.mapAttrs (_: service: service.dependsOn) enabled);
  cycles = lib.optional (cycle != null) {
    assertion = false;
    message = "${option (lib.head cycle)}.dependsOn is part of a cycle: ${lib.concatStringsSep " -> " cycle}. None of these could ever start first; make one of the steps soft, by moving it from dependsOn to wants.";
  };

  ports =
    let
      published = lib.concatLists (
        lib.mapAttrsToList (name: service: map (port: port // { inherit name; }) service.publish) containers
      );
      show = port: "${port.address}:${toString port.hostPort}/${port.protocol}";
      clashesOf =
        rest:
        if rest == [ ] then
          [ ]
        else
          let
            first = lib.head rest;
          in
          map (second: {
            assertion = false;
            message = "${option first.name}.publish and ${option second.name}.publish both claim the host's port ${toString first.hostPort} (${show first} and ${show second}). Give one of them another host port, such as \"${toString (first.hostPort + 1)}:${toString second.containerPort}\".";
          }) (lib.filter (aistack.publish.clash first) (lib.tail rest))
          ++ clashesOf (lib.tail rest);
    in
    clashesOf published
    ++ forEach enabled (
      name: service:
      complain (service.external == null && lib.any (port: port.containerPort == 0) service.publish)
        "${option name}.publish does not say which port of the container it means. Set ${option name}.port, or write \"8080:80\"."
      ++ complain (
        service.external != null && service.external.port == 0
      ) "${option name}.external.port is not set. Set it to the port on which the service answers."
      ++
        complain
          (
            service.external == null
            && service.health.kind != null
            && service.health.kind != "exec"
            && service.health.port == null
          )
          "${option name}.health.kind is ${quote service.health.kind}, but there is no port to ask. Set ${option name}.port or ${option name}.health.port."
      ++
        complain (service.health.kind == "exec" && service.health.command == [ ])
          "${option name}.health.kind is `exec`, but there is no command to run. Set ${option name}.health.command."
      ++
        complain (service.external != null && service.health.kind == "exec")
          "${option name}.health.kind is `exec`, but the service runs elsewhere and has no container to run a command in. Use http, tcp, postgres or redis."
    );

  images = forEach containers (
    name: service:
    let
      loaded = service.imageFile != null || service.imageStream != null;
    in
    complain (
      service.imageFile != null && service.imageStream != null
    ) "${option name}.imageFile and ${option name}.imageStream are both set. Keep one of them."
    ++
      complain (service.image == null)
        "${option name}.image is not set. Set it to what the container runs (registry/name:tag), or set ${option name}.external if the service runs elsewhere."
    ++
      complain
        (
          service.image != null
          && !loaded
          && !service.allowFloatingTag
          && aistack.image.isFloating service.image
        )
        "${option name}.image is ${quote service.image}, whose tag ${
          if aistack.image.tag service.image == null then "is missing" else "moves"
        }: what runs would depend on the day it was pulled, and a rollback would have nothing to go back to. Name a version (registry/name:1.2.3) or a digest, or set ${option name}.allowFloatingTag = true."
  );

  sections = cfg.environmentSections;
  definitions = lib.foldl' (
    seen: section:
    seen // lib.mapAttrs (key: _: (seen.${key} or [ ]) ++ [ section.title ]) section.values
  ) { } sections;
  stackValues = cfg.manifest.environment;

  keyGrammar = "A key starts with an upper-case letter and has only upper-case letters, digits and underscores. Rename it.";
  secretAdvice =
    key:
    "Everybody on this machine could read it. Put the value in a file and set services.aistack.secrets.${key}.file to its path, outside the Nix store.";

  environment =
    lib.concatLists (
      lib.mapAttrsToList (
        key: value:
        map
          (message: {
            assertion = false;
            inherit message;
          })
          (
            complain (
              !aistack.env.isKey key
            ) "services.aistack.environment.${key}: ${quote key} is no key of an .env file. ${keyGrammar}"
            ++
              complain (lib.length (definitions.${key} or [ ]) > 1)
                "services.aistack.environment.${key} is defined twice: the stack derives ${key} from its own options already (section \"${lib.head definitions.${key}}\" of /etc/aistack/.env). Remove it, and set the option it is derived from."
            ++
              complain (cfg.secrets ? ${key})
                "${key} is defined twice: services.aistack.environment.${key} and services.aistack.secrets.${key}. Remove it from services.aistack.environment."
            ++ complain (
              aistack.env.looksSecret key && !(cfg.secrets ? ${key})
            ) "services.aistack.environment.${key} looks like a secret. ${secretAdvice key}"
            ++ complain (
              lib.isString value && aistack.env.hasCredentials value
            ) "services.aistack.environment.${key} has a password in its URL. ${secretAdvice key}"
          )
      ) cfg.environment
    )
    ++ map (key: {
      assertion = cfg.environment ? ${key} || !(stackValues ? ${key});
      message = "${key} is defined twice: the stack derives it from its own options, and services.aistack.secrets.${key} is set. Remove the secret.";
    }) (lib.attrNames cfg.secrets)
    ++ forEach containers (
      name: service:
      lib.concatLists (
        lib.mapAttrsToList (
          key: value:
          complain (
            !aistack.env.isKey key
          ) "${option name}.environment.${key}: ${quote key} is no key of an .env file. ${keyGrammar}"
          ++
            complain (service.stackEnvironment && stackValues ? ${key})
              "${key} is defined twice: ${option name}.environment.${key}, and the stack's .env, which this container gets too. Remove one of them, or set ${option name}.stackEnvironment = false."
          ++ complain (lib.elem key service.secrets) "${key} is defined twice: ${option name}.environment.${key} and ${option name}.secrets. Remove it from environment."
          ++
            complain (aistack.env.looksSecret key && !(lib.elem key service.secrets))
              "${option name}.environment.${key} looks like a secret. ${secretAdvice key} Then name ${key} in ${option name}.secrets."
          ++ complain (
            lib.isString value && aistack.env.hasCredentials value
          ) "${option name}.environment.${key} has a password in its URL. ${secretAdvice key}"
        ) service.environment
      )
      ++ complain (
        service.secrets != lib.unique service.secrets
      ) "${option name}.secrets names a key twice. Remove one of them: ${list service.secrets}."
    );

  secrets =
    lib.concatLists (
      lib.mapAttrsToList (key: secret: [
        {
          assertion = aistack.env.isKey key;
          message = "services.aistack.secrets.${key}: ${quote key} is no key of an .env file. ${keyGrammar}";
        }
        {
          assertion =
            !(builtins.isPath secret.file) && !(lib.hasPrefix "${builtins.storeDir}/" (toString secret.file));
          message = "services.aistack.secrets.${key}.file is ${quote (toString secret.file)}, ${
            if builtins.isPath secret.file then
              "written as a path literal, which Nix copies to its store"
            else
              "a file inside the Nix store"
          }: everybody on this machine could read it. Keep the secret outside the store (sops-nix, agenix, or a file only root can read) and write its path as a string, such as \"/run/secrets/${lib.toLower key}\".";
        }
      ]) cfg.secrets
    )
    ++ forEach enabled (
      name: service:
      lib.concatMap
        (
          key:
          complain (!(cfg.secrets ? ${key}))
            "services.aistack.secrets.${key}.file is not set, but ${option name} needs it. Write the secret to a file that only root can read and set services.aistack.secrets.${key}.file = \"/path/of/that/file\"."
        )
        (
          lib.unique (
            lib.optionals (service.external == null) service.secrets
            ++ lib.optional (service.health.kind != null && service.health.secret != null) service.health.secret
          )
        )
    );

  timeouts = forEach enabled (
    name: service:
    let
      inherit (service) health;
      at = "${option name}.health";
    in
    lib.optionals (health.kind != null) (
      complain (health.timeout > health.interval)
        "${at}.timeout (${toString health.timeout} s) is longer than ${at}.interval (${toString health.interval} s), so checks would overtake each other. Make the timeout at most the interval."
      ++
        complain (health.timeout > health.startTimeout)
          "${at}.startTimeout (${toString health.startTimeout} s) is shorter than ${at}.timeout (${toString health.timeout} s), so not even one check could end before the start is given up. Make it longer."
    )
  );

  iterations = lib.mapAttrsToList (kind: value: {
    assertion = value <= cfg.ralph.maxIterations.ceiling;
    message = "services.aistack.ralph.maxIterations.${kind} (${toString value}) is more than services.aistack.ralph.maxIterations.ceiling (${toString cfg.ralph.maxIterations.ceiling}). Lower it, or raise the ceiling.";
  }) cfg.ralph.maxIterations;

  model = {
    assertion = aistack.env.isValue cfg.llama-cpp.modelFile;
    message = "services.aistack.llama-cpp.model: the file name ${quote cfg.llama-cpp.modelFile} cannot be written to the .env. Rename the file so that it has only letters, digits and _ . : @ % + , = -";
  };

  backend = {
    assertion = config.virtualisation.oci-containers.backend == "podman";
    message = "virtualisation.oci-containers.backend is ${quote config.virtualisation.oci-containers.backend}, but services.aistack works with podman only. Set virtualisation.oci-containers.backend = \"podman\", or remove the line.";
  };
in
{
  config = lib.mkIf cfg.enable {
    assertions =
      names
      ++ dependencies
      ++ cycles
      ++ ports
      ++ images
      ++ environment
      ++ secrets
      ++ timeouts
      ++ iterations
      ++ [
        model
        backend
      ];
  };
}
