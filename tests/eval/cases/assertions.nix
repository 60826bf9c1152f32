# What must not pass evaluation, and what the administrator is told. The options and their fixes are part of the message.
{
  lib,
  messages,
  plain,
  lightModule,
  nixos,
  root,
  failures,
  ...
}:
let
  # Services by name, each a plain container unless said otherwise.
  plainly = lib.mapAttrs (_: lib.recursiveUpdate plain);

  # What is refused about a minimal stack with these settings and, plainly, these services.
  messagesFor =
    {
      settings ? { },
      services ? { },
      ...
    }:
    messages (lib.recursiveUpdate settings { services = plainly services; });

  # It is one thing, and the message says all of `says`.
  refuses = case: {
    refused = messagesFor case;
    inherit (case) says;
  };
  accepts = case: {
    expr = messagesFor case;
    expected = [ ];
  };

  probed = {
    port = 80;
    health.kind = "tcp";
  };
in
{
  "a minimal stack is accepted" = accepts { };

  "a dependency nobody declared is named, with those there are" = refuses {
    services.app.dependsOn = [ "postgress" ];
    says = [
      "services.aistack.services.app.dependsOn names `postgress`"
      "no service of the stack"
      "Declare services.aistack.services.postgress, or correct the name"
      "`postgres`"
    ];
  };

  "a soft dependency nobody declared is named" = refuses {
    services.app.wants = [ "cache" ];
    says = [
      "services.aistack.services.app.wants names `cache`"
    ];
  };

  "a hard dependency that is switched off is named" = refuses {
    services.app.dependsOn = [ "redis" ];
    settings.services.redis.enable = false;
    says = [
      "services.aistack.services.app.dependsOn names `redis`, which is switched off"
      "services.aistack.services.redis.enable = true"
      "services.aistack.services.redis.external"
    ];
  };

  "a cycle names its loop" = refuses {
    services = {
      a = probed // {
        dependsOn = [ "b" ];
      };
      b = probed // {
        dependsOn = [ "a" ];
      };
    };
    says = [
      "services.aistack.services.a.dependsOn is part of a cycle: a -> b -> a"
      "moving it from dependsOn to wants"
    ];
  };

  "a cycle of three names its loop, and not the way to it" = refuses {
    services = {
      entry.dependsOn = [ "x" ];
      x = probed // {
        dependsOn = [ "y" ];
      };
      y = probed // {
        dependsOn = [ "z" ];
      };
      z = probed // {
        dependsOn = [ "x" ];
      };
    };
    says = [ "cycle: x -> y -> z -> x." ];
  };

  "a service that depends on itself is a cycle" = refuses {
    services.a = probed // {
      dependsOn = [ "a" ];
    };
    says = [ "cycle: a -> a." ];
  };

  "a loop with one soft step is no cycle" = accepts {
    services = {
      a = probed // {
        dependsOn = [ "b" ];
      };
      b = probed // {
        wants = [ "a" ];
      };
    };
  };

  "a hard dependency without a probe is refused" = refuses {
    services = {
      app.dependsOn = [ "worker" ];
      worker.port = 80;
    };
    says = [
      "services.aistack.services.app.dependsOn names `worker`"
      "Set services.aistack.services.worker.health.kind"
      "services.aistack.services.app.wants"
    ];
  };

  "two services on one host port are refused" = refuses {
    services = {
      a = {
        port = 80;
        publish = [ 9000 ];
      };
      b = {
        port = 81;
        publish = [ "127.0.0.1:9000:81" ];
      };
    };
    says = [
      "services.aistack.services.a.publish and services.aistack.services.b.publish both claim the host's port 9000"
      "another host port"
    ];
  };

  "all addresses of the host include this one" = refuses {
    services = {
      a = {
        port = 80;
        publish = [ "0.0.0.0:9000:80" ];
      };
      b = {
        port = 81;
        publish = [ 9000 ];
      };
    };
    says = [ "both claim the host's port 9000 (0.0.0.0:9000/tcp and 127.0.0.1:9000/tcp)" ];
  };

  "one service with one host port twice is refused" = refuses {
    services.a = {
      port = 80;
      publish = [
        9000
        "9000:81"
      ];
    };
    says = [ "services.aistack.services.a.publish and services.aistack.services.a.publish both claim" ];
  };

  "two addresses, or two protocols, may share a port number" = accepts {
    services = {
      a = {
        port = 80;
        publish = [
          "127.0.0.1:9000:80"
          "127.0.0.1:9000:80/udp"
          "127.0.0.2:9000:80"
        ];
      };
    };
  };

  "a published port that says nothing of the container's is refused" = refuses {
    services.a.publish = [ 9000 ];
    says = [
      "services.aistack.services.a.publish"
      "Set services.aistack.services.a.port"
    ];
  };

  "a key the stack derives cannot be set again" = refuses {
    settings.environment.POSTGRES_HOST = "db";
    says = [
      "services.aistack.environment.POSTGRES_HOST is defined twice"
      "Remove it, and set the option it is derived from"
    ];
  };

  "a key cannot be both plain and secret" = refuses {
    settings = {
      environment.API_TOKEN = "x";
      secrets.API_TOKEN.file = "/run/secrets/token";
    };
    says = [
      "API_TOKEN is defined twice: services.aistack.environment.API_TOKEN and services.aistack.secrets.API_TOKEN"
    ];
  };

  "a secret cannot take the name of a derived key" = refuses {
    settings.secrets.POSTGRES_USER.file = "/run/secrets/user";
    says = [
      "POSTGRES_USER is defined twice"
      "services.aistack.secrets.POSTGRES_USER"
    ];
  };

  "a container's own key cannot shadow the stack's" = refuses {
    services.app.environment.REDIS_HOST = "elsewhere";
    says = [
      "REDIS_HOST is defined twice: services.aistack.services.app.environment.REDIS_HOST"
      "services.aistack.services.app.stackEnvironment = false"
    ];
  };

  "a container that does not get the stack's keys may use their names" = accepts {
    services = {
      app = {
        stackEnvironment = false;
        environment.REDIS_HOST = "elsewhere";
      };
    };
  };

  "a container's key cannot be plain and secret" = refuses {
    settings.secrets.API_TOKEN.file = "/run/secrets/token";
    services = {
      app = {
        environment.API_TOKEN = "x";
        secrets = [ "API_TOKEN" ];
      };
    };
    says = [
      "API_TOKEN is defined twice: services.aistack.services.app.environment.API_TOKEN and services.aistack.services.app.secrets"
    ];
  };

  "a secret named twice is refused" = refuses {
    settings.secrets.API_TOKEN.file = "/run/secrets/token";
    services = {
      app.secrets = [
        "API_TOKEN"
        "API_TOKEN"
      ];
    };
    says = [ "services.aistack.services.app.secrets names a key twice" ];
  };

  "a secret-looking key of the stack is refused" = refuses {
    settings.environment.OPENAI_API_KEY = "sk-1";
    says = [
      "services.aistack.environment.OPENAI_API_KEY looks like a secret"
      "services.aistack.secrets.OPENAI_API_KEY.file"
    ];
  };

  "a secret-looking key of a container is refused" = refuses {
    services.app.environment.DB_PASSWORD = "x";
    says = [
      "services.aistack.services.app.environment.DB_PASSWORD looks like a secret"
      "services.aistack.secrets.DB_PASSWORD.file"
      "name DB_PASSWORD in services.aistack.services.app.secrets"
    ];
  };

  "a password inside a URL is refused" = refuses {
    services.app.environment.DATABASE_URL = "postgres://mcp:hunter2@postgres/aidb";
    says = [ "services.aistack.services.app.environment.DATABASE_URL has a password in its URL" ];
  };

  "no message repeats the value of what looks like a secret" = {
    expr = lib.any (lib.hasInfix "hunter2") (messagesFor {
      services.app.environment = {
        DATABASE_URL = "postgres://mcp:hunter2@postgres/aidb";
        DB_PASSWORD = "hunter2";
      };
    });
    expected = false;
  };

  "a secret in the Nix store is refused" = refuses {
    settings.secrets.TOKEN.file = "${builtins.storeDir}/00000000000000000000000000000000-token";
    says = [
      "services.aistack.secrets.TOKEN.file is"
      "inside the Nix store"
      "\"/run/secrets/token\""
    ];
  };

  "a secret written as a path literal is refused before it is copied" = refuses {
    settings.secrets.TOKEN.file = ./assertions.nix;
    says = [
      "services.aistack.secrets.TOKEN.file is"
      "path literal"
    ];
  };

  "POSTGRES_PASSWORD is required" = {
    refused = failures (lightModule {
      services.aistack.enable = true;
    });
    says = [
      "services.aistack.secrets.POSTGRES_PASSWORD.file is not set, but services.aistack.services.postgres needs it"
      "set services.aistack.secrets.POSTGRES_PASSWORD.file = "
    ];
  };

  "POSTGRES_PASSWORD is required for a PostgreSQL elsewhere too" = {
    refused = failures (lightModule {
      services.aistack.enable = true;
      services.aistack.services.postgres.external.host = "db.example.org";
    });
    says = [ "services.aistack.secrets.POSTGRES_PASSWORD.file is not set" ];
  };

  "without PostgreSQL no password is required" = {
    expr = failures (lightModule {
      services.aistack.enable = true;
      services.aistack.services.postgres.enable = false;
    });
    expected = [ ];
  };

  "a secret that a service names must be declared" = refuses {
    services.app.secrets = [ "TOKEN" ];
    says = [
      "services.aistack.secrets.TOKEN.file is not set, but services.aistack.services.app needs it"
    ];
  };

  "a key outside the grammar is refused" = refuses {
    settings.environment.logLevel = "info";
    says = [
      "services.aistack.environment.logLevel: `logLevel` is no key"
      "upper-case letter"
    ];
  };

  "a shell's own variable is refused where a shell may read it" = refuses {
    settings.environment.UID = 1000;
    says = [
      "services.aistack.environment.UID"
      "a shell's own variable"
      "services.aistack.services.<name>.environment"
    ];
  };

  "a container may have a shell's own variable" = accepts {
    services.app.environment.PATH = "/opt/bin:/bin";
  };

  "a container's key outside the grammar is refused" = refuses {
    services = {
      app.environment."LOG-LEVEL" = "info";
    };
    says = [ "services.aistack.services.app.environment.LOG-LEVEL" ];
  };

  "a secret's key outside the grammar is refused" = refuses {
    settings.secrets.token.file = "/run/secrets/token";
    says = [ "services.aistack.secrets.token: `token` is no key" ];
  };

  "a model whose file name no .env can carry is refused" = refuses {
    settings.llama-cpp.model = "/models/my model.gguf";
    says = [
      "services.aistack.llama-cpp.model"
      "my model.gguf"
      "Rename the file"
    ];
  };

  "checks that would overtake each other are refused" = refuses {
    services.app = {
      port = 80;
      health = {
        kind = "tcp";
        interval = 5;
        timeout = 10;
      };
    };
    says = [
      "services.aistack.services.app.health.timeout (10 s)"
      "services.aistack.services.app.health.interval (5 s)"
      "at most the interval"
    ];
  };

  "a start shorter than one check is refused" = refuses {
    services.app = {
      port = 80;
      health = {
        kind = "tcp";
        timeout = 10;
        startTimeout = 3;
      };
    };
    says = [
      "services.aistack.services.app.health.startTimeout (3 s)"
      "Make it longer"
    ];
  };

  "a check that outlasts the wait for it is refused" = refuses {
    settings.startup.timeoutSeconds = 4;
    services = {
      app.dependsOn = [ "redis" ];
    };
    says = [
      "services.aistack.services.redis.health.timeout (5 s)"
      "services.aistack.startup.timeoutSeconds (4 s)"
      "Shorten the one, or lengthen the other"
    ];
  };

  "a check that nobody waits for may take its time" = accepts {
    settings.startup.timeoutSeconds = 4;
  };

  "limits above the ceiling are refused" = refuses {
    settings.ralph.maxIterations.complex = 200;
    says = [
      "services.aistack.ralph.maxIterations.complex (200)"
      "services.aistack.ralph.maxIterations.ceiling (100)"
    ];
  };

  "docker is refused" = {
    refused = failures (lightModule {
      services.aistack = {
        enable = true;
        secrets.POSTGRES_PASSWORD.file = "/run/secrets/postgres-password";
      };
      virtualisation.oci-containers.backend = "docker";
    });
    says = [
      "virtualisation.oci-containers.backend is `docker`"
      "Set virtualisation.oci-containers.backend = \"podman\""
    ];
  };

  "a tag that moves is refused" = refuses {
    services.app.image = "registry.example.org/app:latest";
    says = [
      "services.aistack.services.app.image is `registry.example.org/app:latest`, whose tag moves"
      "services.aistack.services.app.allowFloatingTag = true"
    ];
  };

  "no tag at all is refused" = refuses {
    services.app.image = "registry.example.org:5000/app";
    says = [
      "services.aistack.services.app.image is `registry.example.org:5000/app`, whose tag is missing"
    ];
  };

  "a tag that moves can be allowed" = accepts {
    services = {
      app = {
        image = "registry.example.org/app:latest";
        allowFloatingTag = true;
      };
    };
  };

  "an image that is loaded from a file cannot move" = accepts {
    settings.services.app = {
      image = "app:latest";
      imageFile = "${builtins.storeDir}/00000000000000000000000000000000-app.tar";
    };
  };

  "a container without an image is refused" = refuses {
    settings.services.app = { };
    says = [
      "services.aistack.services.app.image is not set"
      "services.aistack.services.app.external"
    ];
  };

  "two sources for one image are refused" = refuses {
    services.app = {
      imageFile = "${builtins.storeDir}/00000000000000000000000000000000-app.tar";
      imageStream = "${builtins.storeDir}/00000000000000000000000000000000-app";
    };
    says = [ "services.aistack.services.app.imageFile and services.aistack.services.app.imageStream" ];
  };

  "an archive of another image than the one that is run is refused" = refuses {
    services.app = {
      image = "registry.example.org/app:1.0";
      imageStream = {
        type = "derivation";
        name = "stream-app";
        outPath = "${builtins.storeDir}/00000000000000000000000000000000-app";
        imageName = "localhost/app";
        imageTag = "1.0";
      };
    };
    says = [
      "services.aistack.services.app.image is `registry.example.org/app:1.0`"
      "services.aistack.services.app.imageStream holds `localhost/app:1.0`"
      "or set services.aistack.services.app.imageStream = null"
    ];
  };

  "a probe without a port is refused" = refuses {
    services.app.health.kind = "http";
    says = [
      "services.aistack.services.app.health.kind is `http`, but there is no port"
      "Set services.aistack.services.app.port"
    ];
  };

  "an exec probe without a command is refused" = refuses {
    services.app.health.kind = "exec";
    says = [
      "Set services.aistack.services.app.health.command"
    ];
  };

  "a command cannot be run where the service runs elsewhere" = refuses {
    settings.services.app = {
      external = {
        host = "app.example.org";
        port = 80;
      };
      health = {
        kind = "exec";
        command = [ "/check" ];
      };
    };
    says = [ "services.aistack.services.app.health.kind is `exec`, but the service runs elsewhere" ];
  };

  "a service elsewhere needs a port" = refuses {
    settings.services.app.external.host = "app.example.org";
    says = [
      "services.aistack.services.app.external.port is not set"
    ];
  };

  "a name that is no host name is refused" = refuses {
    services."My_App" = { };
    says = [
      "services.aistack.services.My_App"
      "Rename it"
    ];
  };

  "what is wrong with a service that is switched off does not matter" = accepts {
    settings.services.app = {
      enable = false;
      dependsOn = [ "nobody" ];
    };
  };

  "every mistake is reported at once" = {
    expr = lib.length (messagesFor {
      services.app = {
        image = "app";
        dependsOn = [ "nobody" ];
        environment.DB_PASSWORD = "x";
      };
    });
    expected = 3;
  };

  "pruning the images that a rollback needs is warned of" =
    let
      warnings =
        flags:
        (lightModule {
          services.aistack.enable = true;
          virtualisation.podman.autoPrune = {
            enable = true;
            inherit flags;
          };
        }).warnings;
    in
    {
      expr = [
        (warnings [ ])
        (map (lib.hasPrefix "virtualisation.podman.autoPrune.flags removes") (warnings [ "--all" ]))
      ];
      expected = [
        [ ]
        [ true ]
      ];
    };

  "NixOS gets the same messages" =
    let
      inherit
        (nixos {
          services.aistack = {
            enable = true;
            secrets.POSTGRES_PASSWORD.file = "/run/secrets/postgres-password";
            services.app = plain // {
              dependsOn = [ "nobody" ];
            };
          };
        })
        options
        ;
      # Those of NixOS itself are about a machine that is not described here.
      ours = lib.filter (
        definition: lib.hasPrefix (toString root) (toString definition.file)
      ) options.assertions.definitionsWithLocations;
    in
    {
      refused = failures { assertions = lib.concatMap (definition: definition.value) ours; };
      says = [ "services.aistack.services.app.dependsOn names `nobody`" ];
    };
}
