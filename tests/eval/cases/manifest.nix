# stack.json: complete, with every key present, in the shape the contract of schema version 1 gives it.
{
  lib,
  light,
  plain,
  rendered,
  exampleConfigs,
  failures,
  ...
}:
let
  manifest = settings: (light settings).services.aistack.manifest;
  service = settings: (manifest { services.app = plain // settings; }).services.app;

  # The names of all keys, sorted; for the services, which have names of their own, their union.
  keys = {
    stack = [
      "envFile"
      "environment"
      "environmentOptions"
      "network"
      "overridable"
      "rollback"
      "runtimeDir"
      "schemaVersion"
      "secretRotation"
      "secrets"
      "selfHealing"
      "services"
      "startup"
      "stateDir"
    ];
    service = [
      "command"
      "container"
      "dependsOn"
      "deploy"
      "devices"
      "environment"
      "external"
      "extraOptions"
      "hardening"
      "image"
      "port"
      "preflight"
      "probe"
      "publish"
      "resources"
      "rollbackPolicy"
      "secrets"
      "stackEnvironment"
      "stopTimeoutSeconds"
      "unit"
      "user"
      "volumes"
      "wants"
    ];
    probe = [
      "command"
      "database"
      "expect"
      "failures"
      "intervalSeconds"
      "kind"
      "path"
      "port"
      "secret"
      "startTimeoutSeconds"
      "timeoutSeconds"
      "user"
    ];
  };
in
{
  "every key is there, also where nothing is set" = {
    expr =
      let
        found = manifest { services.app = plain; };
      in
      {
        stack = lib.attrNames found;
        services = lib.unique (lib.mapAttrsToList (_: lib.attrNames) found.services);
        probe = lib.attrNames found.services.postgres.probe;
      };
    expected = {
      inherit (keys) stack probe;
      services = [ keys.service ];
    };
  };

  "the stack's own settings" = {
    expr = removeAttrs (manifest { }) [
      "environment"
      "environmentOptions"
      "overridable"
      "services"
    ];
    expected = {
      schemaVersion = 1;
      stateDir = "/var/lib/aistack";
      runtimeDir = "/run/aistack";
      envFile = "/etc/aistack/.env";
      network = {
        name = "local-ai";
        subnet = "10.89.100.0/24";
        gateway = "10.89.100.1";
        interface = "aistack0";
        dns = true;
      };
      startup = {
        dependencyCheck = true;
        timeoutSeconds = 30;
      };
      selfHealing = {
        enable = false;
        maxRestarts = 3;
        windowSeconds = 3600;
        backoffSeconds = 10;
      };
      secretRotation.enable = true;
      rollback = {
        policy = "image";
        retain = 5;
        probationSeconds = 60;
      };
      secrets.POSTGRES_PASSWORD = {
        file = "/run/secrets/postgres-password";
        as = "env";
      };
    };
  };

  "a container of which only the image is known" = {
    expr = service { };
    expected = {
      unit = "podman-aistack-app.service";
      container = "aistack-app";
      external = null;
      image = {
        ref = "registry.example.org/plain:1.0";
        archive = null;
        stream = null;
        live = "localhost/aistack/app:live";
        pullTimeoutSeconds = 900;
      };
      port = null;
      publish = [ ];
      dependsOn = [ ];
      deploy = {
        strategy = "restart";
        test = {
          soakSeconds = 3;
          timeoutSeconds = 10;
          requests = [ ];
          openapi = null;
        };
      };
      wants = [ ];
      probe = null;
      preflight = {
        files = [ ];
        freeDisk = [ ];
        devices = [ ];
      };
      stackEnvironment = true;
      environment = { };
      secrets = [ ];
      volumes = [ ];
      command = [ ];
      user = null;
      resources = {
        memory = null;
        cpus = null;
        pids = null;
      };
      hardening = {
        noNewPrivileges = true;
        capDrop = [ ];
        capAdd = [ ];
        readOnly = false;
        tmpfs = [ ];
      };
      devices = [ ];
      extraOptions = [ ];
      stopTimeoutSeconds = 10;
      rollbackPolicy = "image";
    };
  };

  "a service elsewhere has no unit, no container and no image, and keeps its probe" =
    let
      found =
        (manifest {
          services.postgres.external = {
            host = "db.example.org";
            port = 5433;
          };
        }).services.postgres;
    in
    {
      expr = {
        inherit (found)
          unit
          container
          image
          external
          port
          ;
        probe = { inherit (found.probe) kind port secret; };
      };
      expected = {
        unit = null;
        container = null;
        image = null;
        external = {
          host = "db.example.org";
          port = 5433;
        };
        port = 5433;
        probe = {
          kind = "postgres";
          port = 5433;
          secret = "POSTGRES_PASSWORD";
        };
      };
    };

  "an http probe has a path and no command, an exec probe a command and no port" = {
    expr =
      map
        (
          health:
          {
            inherit
              (service {
                port = 80;
                inherit health;
              })
              probe
              ;
          }
          .probe
        )
        [
          {
            kind = "http";
            path = "/ready";
            expect = "ok";
            interval = 5;
            timeout = 2;
            failures = 4;
            startTimeout = 6;
          }
          {
            kind = "exec";
            command = [ "/check" ];
          }
        ];
    expected = [
      {
        kind = "http";
        port = 80;
        path = "/ready";
        expect = "ok";
        user = null;
        database = null;
        secret = null;
        command = null;
        intervalSeconds = 5;
        timeoutSeconds = 2;
        failures = 4;
        startTimeoutSeconds = 6;
      }
      {
        kind = "exec";
        port = null;
        path = null;
        expect = null;
        user = null;
        database = null;
        secret = null;
        command = [ "/check" ];
        intervalSeconds = 30;
        timeoutSeconds = 5;
        failures = 3;
        startTimeoutSeconds = 60;
      }
    ];
  };

  "who logs in to a PostgreSQL of one's own is said, and not left to the hooks" = {
    expr =
      map
        (
          health:
          lib.getAttrs
            [
              "user"
              "database"
            ]
            (service {
              port = 5432;
              health = health // {
                kind = "postgres";
              };
            }).probe
        )
        [
          { }
          { user = "me"; }
          {
            user = "me";
            database = "mine";
          }
        ];
    expected = [
      {
        user = "postgres";
        database = "postgres";
      }
      {
        user = "me";
        database = "me";
      }
      {
        user = "me";
        database = "mine";
      }
    ];
  };

  "devices are looked for before the start, by the host's path; CDI names are no paths" = {
    expr =
      (service {
        devices = [
          "/dev/dri"
          "/dev/kfd:/dev/kfd:rw"
          "nvidia.com/gpu=all"
        ];
        preflight.devices = [
          "/dev/dri"
          "/dev/fuse"
        ];
      }).preflight.devices;
    expected = [
      "/dev/dri"
      "/dev/fuse"
      "/dev/kfd"
    ];
  };

  "what is switched off is not in the manifest" = {
    expr =
      lib.attrNames
        (manifest {
          services = {
            redis.enable = false;
            app = plain // {
              wants = [ "redis" ];
            };
          };
        }).services;
    expected = [
      "app"
      "llama-cpp"
      "postgres"
      "qdrant"
    ];
  };

  "an archive and a stream are store paths" =
    let
      package =
        name: attrs:
        {
          type = "derivation";
          inherit name;
          outPath = "${builtins.storeDir}/00000000000000000000000000000000-${name}";
        }
        // attrs;
    in
    {
      expr =
        map
          (settings: {
            inherit ((manifest { services.app = settings; }).services.app.image) ref archive stream;
          })
          [
            {
              imageFile = package "app.tar" {
                imageName = "app";
                imageTag = "1.2";
              };
            }
            {
              image = "app:1.3";
              imageStream = package "app" { };
            }
          ];
      expected = [
        {
          ref = "app:1.2";
          archive = "${builtins.storeDir}/00000000000000000000000000000000-app.tar";
          stream = null;
        }
        {
          ref = "app:1.3";
          archive = null;
          stream = "${builtins.storeDir}/00000000000000000000000000000000-app";
        }
      ];
    };

  "the policy of the stack is that of each service, unless it has its own" = {
    expr = map (s: s.rollbackPolicy) (
      lib.attrVals
        [
          "app"
          "redis"
        ]
        (manifest {
          rollback.policy = "none";
          services = {
            app = plain;
            redis.rollback.policy = "image";
          };
        }).services
    );
    expected = [
      "none"
      "image"
    ];
  };

  "the file says what the option says" = {
    expr = builtins.fromJSON rendered.reference.manifest;
    expected = builtins.fromJSON (builtins.toJSON exampleConfigs.reference.services.aistack.manifest);
  };

  "every example is accepted" = {
    expr = lib.filterAttrs (_: messages: messages != [ ]) (lib.mapAttrs (_: failures) exampleConfigs);
    expected = { };
  };

  "the examples there are" = {
    expr = lib.attrNames exampleConfigs;
    expected = [
      "external-postgres"
      "gpu"
      "minimal"
      "own-container"
      "ralph"
      "reference"
    ];
  };
}
