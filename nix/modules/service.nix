# The options of one service: `services.aistack.services.<name>`.
{
  config,
  lib,
  aistack,
  stack,
  ...
}:
let
  inherit (lib) types;
in
{
  options = {
    enable = lib.mkOption {
      type = types.bool;
      default = true;
      example = false;
      description = "Whether the service is part of the stack.";
    };

    image = lib.mkOption {
      type = types.nullOr aistack.types.oneLine;
      default =
        let
          file = if config.imageFile != null then config.imageFile else config.imageStream;
        in
        if file ? imageName && file ? imageTag then "${file.imageName}:${file.imageTag}" else null;
      defaultText = lib.literalMD "the name and tag that {option}`imageFile` or {option}`imageStream` carries, if there is one";
      example = "registry.example.org/app:1.4.2";
      description = "Reference of the image to run, with a tag that does not move or a digest.";
    };

    imageFile = lib.mkOption {
      type = types.nullOr types.package;
      default = null;
      example = lib.literalExpression "pkgs.dockerTools.buildImage { … }";
      description = "Image archive to load instead of pulling {option}`image`.";
    };

    imageStream = lib.mkOption {
      type = types.nullOr types.package;
      default = null;
      example = lib.literalExpression "pkgs.dockerTools.streamLayeredImage { … }";
      description = "Script whose output is the image archive to load, which keeps large images out of the Nix store.";
    };

    allowFloatingTag = lib.mkOption {
      type = types.bool;
      default = false;
      example = true;
      description = "Whether {option}`image` may have no tag, or one that moves (`latest`), so that two starts may run different images.";
    };

    pullTimeout = lib.mkOption {
      type = aistack.types.seconds;
      default = 900;
      example = 3600;
      description = "Seconds that pulling or loading the image may take.";
    };

    port = lib.mkOption {
      type = types.nullOr types.port;
      default = null;
      example = 8000;
      description = "Port the container listens on, which other services find as `<NAME>_PORT`.";
    };

    publish = lib.mkOption {
      type = types.listOf (
        types.coercedTo
          (types.either types.port (
            types.addCheck types.str aistack.publish.isShort
            // {
              description = "port as \"8080\", \"8080:80\" or \"127.0.0.1:8080:80\"";
            }
          ))
          aistack.publish.parse
          (
            types.submodule {
              options = {
                address = lib.mkOption {
                  type = types.strMatching "[0-9.]+|\\[[0-9a-fA-F:]+]";
                  default = "127.0.0.1";
                  example = "0.0.0.0";
                  description = "Address of the host to publish on.";
                };
                hostPort = lib.mkOption {
                  type = types.port;
                  example = 8080;
                  description = "Port of the host.";
                };
                containerPort = lib.mkOption {
                  type = types.port;
                  default = if config.port != null then config.port else 0;
                  defaultText = lib.literalMD "{option}`port` of the service";
                  example = 80;
                  description = "Port of the container.";
                };
                protocol = lib.mkOption {
                  type = types.enum [
                    "tcp"
                    "udp"
                  ];
                  default = "tcp";
                  example = "udp";
                  description = "Protocol to publish.";
                };
              };
            }
          )
      );
      default = [ ];
      example = [
        8080
        "192.168.1.5:8081:8080"
      ];
      description = "Host ports on which the service can be reached, on `127.0.0.1` unless an address is given.";
    };

    external = lib.mkOption {
      type = types.nullOr (
        types.submodule {
          options = {
            host = lib.mkOption {
              type = types.strMatching "[A-Za-z0-9.:-]+" // {
                description = "host name or address";
              };
              example = "db.example.org";
              description = "Host on which the service runs.";
            };
            port = lib.mkOption {
              type = types.port;
              default = if config.port != null then config.port else 0;
              defaultText = lib.literalMD "{option}`port` of the service";
              example = 5432;
              description = "Port on which the service answers.";
            };
          };
        }
      );
      default = null;
      example = {
        host = "db.example.org";
        port = 5432;
      };
      description = "Where the service runs if it is not a container of this stack; its dependents still check that it answers before they start.";
    };

    dependsOn = lib.mkOption {
      type = types.listOf types.str;
      default = [ ];
      example = [ "postgres" ];
      description = "Services that must answer before this one is started.";
    };

    wants = lib.mkOption {
      type = types.listOf types.str;
      default = [ ];
      example = [ "qdrant" ];
      description = "Services that this one uses when they are there; they are started with it, and not waited for.";
    };

    health = {
      kind = lib.mkOption {
        type = types.nullOr (
          types.enum [
            "http"
            "tcp"
            "postgres"
            "redis"
            "exec"
          ]
        );
        default = null;
        example = "http";
        description = "How to ask the service whether it is ready; a service that others depend on needs one.";
      };
      port = lib.mkOption {
        type = types.nullOr types.port;
        default = if config.external != null then config.external.port else config.port;
        defaultText = lib.literalMD "{option}`external.port`, or else {option}`port` of the service";
        example = 9000;
        description = "Port to ask.";
      };
      path = lib.mkOption {
        type = types.strMatching "/[^[:space:]]*" // {
          description = "path of a URL, from its first /";
        };
        default = "/";
        example = "/ready";
        description = "Path to ask for, for kind `http`; a status of 200 to 299 means ready.";
      };
      expect = lib.mkOption {
        type = types.nullOr types.str;
        default = null;
        example = "ok";
        description = "Text that the answer must contain, for kinds `http`, `tcp` and `exec`.";
      };
      user = lib.mkOption {
        type = types.nullOr types.str;
        default = if config.health.kind == "postgres" then "postgres" else null;
        defaultText = lib.literalMD "`postgres` for kind `postgres`, otherwise null";
        example = "mcp";
        description = "User to log in as, for kinds `postgres` and `redis`.";
      };
      database = lib.mkOption {
        type = types.nullOr types.str;
        default = if config.health.kind == "postgres" then config.health.user else null;
        defaultText = lib.literalMD "{option}`health.user` for kind `postgres`, otherwise null";
        example = "aidb";
        description = "Database to log in to, for kind `postgres`.";
      };
      secret = lib.mkOption {
        type = types.nullOr types.str;
        default = null;
        example = "POSTGRES_PASSWORD";
        description = "Key of the secret to log in with, for kinds `postgres` and `redis`.";
      };
      command = lib.mkOption {
        type = types.listOf types.str;
        default = [ ];
        example = [
          "/bin/check"
          "--quick"
        ];
        description = "Command to run inside the container, for kind `exec`; exit code 0 means ready.";
      };
      interval = lib.mkOption {
        type = aistack.types.seconds;
        default = 30;
        example = 10;
        description = "Seconds between two health checks; all services with the same interval are checked by one timer.";
      };
      timeout = lib.mkOption {
        type = aistack.types.seconds;
        default = 5;
        example = 2;
        description = "Seconds after which an unanswered check has failed.";
      };
      failures = lib.mkOption {
        type = types.ints.positive;
        default = 3;
        example = 5;
        description = "Failed checks in a row after which the service counts as unhealthy.";
      };
      startTimeout = lib.mkOption {
        type = aistack.types.seconds;
        default = 60;
        example = 300;
        description = "Seconds the service has to become ready after its container was started.";
      };
    };

    preflight = {
      files = lib.mkOption {
        type = types.listOf (
          types.submodule {
            options = {
              path = lib.mkOption {
                type = aistack.types.hostPath;
                example = "/var/lib/aistack/models/model.gguf";
                description = "File that must exist and be readable by the container's user.";
              };
              what = lib.mkOption {
                type = aistack.types.oneLine;
                example = "the model";
                description = "What the file is, for the message when it is missing.";
              };
            };
          }
        );
        default = [ ];
        example = [
          {
            path = "/var/lib/aistack/models/model.gguf";
            what = "the model";
          }
        ];
        description = "Files that must be there before the container is started.";
      };
      freeDisk = lib.mkOption {
        type = types.listOf (
          types.submodule {
            options = {
              path = lib.mkOption {
                type = aistack.types.hostPath;
                example = "/var/lib/aistack";
                description = "Path on the file system in question.";
              };
              megabytes = lib.mkOption {
                type = types.ints.positive;
                example = 1024;
                description = "Megabytes that must be free on it.";
              };
            };
          }
        );
        default = [ ];
        example = [
          {
            path = "/var/lib/aistack";
            megabytes = 1024;
          }
        ];
        description = "Disk space that must be free before the container is started.";
      };
      devices = lib.mkOption {
        type = types.listOf aistack.types.hostPath;
        default = [ ];
        example = [ "/dev/dri" ];
        description = "Devices that must be there before the container is started, beside those of {option}`devices`.";
      };
    };

    stackEnvironment = lib.mkOption {
      type = types.bool;
      default = true;
      example = false;
      description = "Whether the container gets every key of the stack's `.env`.";
    };

    environment = lib.mkOption {
      type = types.attrsOf aistack.types.containerEnvScalar;
      default = { };
      example = {
        LOG_LEVEL = "debug";
      };
      description = "Environment variables of this container alone.";
    };

    secrets = lib.mkOption {
      type = types.listOf types.str;
      default = [ ];
      example = [ "POSTGRES_PASSWORD" ];
      description = "Keys of {option}`services.aistack.secrets` that the container gets.";
    };

    volumes = lib.mkOption {
      type = types.listOf aistack.types.oneLine;
      default = [ ];
      example = [ "/var/lib/aistack/volumes/app:/data" ];
      description = "Volumes as `host:container[:options]`; a host directory below the `volumes` directory of {option}`services.aistack.stateDir` is created and given to {option}`user`.";
    };

    command = lib.mkOption {
      type = types.listOf types.str;
      default = [ ];
      example = [ "--verbose" ];
      description = "Arguments for the image's entry point.";
    };

    user = lib.mkOption {
      type = types.nullOr aistack.types.numericUser;
      default = null;
      example = "1000:1000";
      description = "User, and group, that the container runs as.";
    };

    resources = {
      memory = lib.mkOption {
        type = types.nullOr (types.strMatching "[0-9]+[bkmg]?");
        default = null;
        example = "2g";
        description = "Most memory the container may use.";
      };
      cpus = lib.mkOption {
        type = types.nullOr (types.either types.ints.positive (types.strMatching "[0-9]+(\\.[0-9]+)?"));
        default = null;
        example = "1.5";
        description = "Most processors the container may use.";
      };
      pids = lib.mkOption {
        type = types.nullOr types.ints.positive;
        default = null;
        example = 200;
        description = "Most processes and threads the container may have.";
      };
    };

    noNewPrivileges = lib.mkOption {
      type = types.bool;
      default = true;
      example = false;
      description = "Whether processes of the container are kept from gaining privileges (set-user-ID programs).";
    };

    capabilities = {
      drop = lib.mkOption {
        type = types.listOf types.str;
        default = [ ];
        example = [ "all" ];
        description = "Capabilities that the container does not get.";
      };
      add = lib.mkOption {
        type = types.listOf types.str;
        default = [ ];
        example = [ "NET_BIND_SERVICE" ];
        description = "Capabilities that the container gets all the same.";
      };
    };

    readOnly = lib.mkOption {
      type = types.bool;
      default = false;
      example = true;
      description = "Whether the container's root file system is read-only.";
    };

    tmpfs = lib.mkOption {
      type = types.listOf aistack.types.oneLine;
      default = [ ];
      example = [ "/tmp" ];
      description = "Directories of the container that are kept in memory, as `path[:options]`.";
    };

    devices = lib.mkOption {
      type = types.listOf aistack.types.oneLine;
      default = [ ];
      example = [ "/dev/dri" ];
      description = "Devices of the host that the container may use, as paths or CDI names.";
    };

    extraOptions = lib.mkOption {
      type = types.listOf types.str;
      default = [ ];
      example = [ "--shm-size=256m" ];
      description = "Further options for `podman run`, after all others.";
    };

    stopTimeout = lib.mkOption {
      type = types.ints.unsigned;
      default = 10;
      example = 60;
      description = "Seconds the container has to end by itself when it is stopped.";
    };

    rollback.policy = lib.mkOption {
      type = types.enum [
        "image"
        "system"
        "none"
      ];
      default = stack.rollback.policy;
      defaultText = lib.literalExpression "config.services.aistack.rollback.policy";
      example = "none";
      description = "What to go back to when a new release of this service fails: the last good image, the previous NixOS generation, or nothing.";
    };

    deploy = {
      strategy = lib.mkOption {
        type = types.enum [
          "restart"
          "bridge"
        ];
        default = "restart";
        example = "bridge";
        description = ''
          How a deployment switches to the new release: by a restart (`restart`), or with a second container that answers
          under the service's name meanwhile, so that clients in the stack's network notice nothing (`bridge`).

          A bridge is for services that keep no data of their own: for a moment two of them run.
        '';
      };
      test = {
        soakSeconds = lib.mkOption {
          type = types.ints.unsigned;
          default = 3;
          example = 30;
          description = "Seconds for which a candidate has to stay ready in its isolated test.";
        };
        timeout = lib.mkOption {
          type = aistack.types.seconds;
          default = 10;
          example = 60;
          description = "Seconds that the answer to one request of {option}`deploy.test.requests` may take.";
        };
        requests = lib.mkOption {
          type = types.listOf (
            types.submodule {
              options = {
                method = lib.mkOption {
                  type = types.strMatching "[A-Z]+" // {
                    description = "HTTP method in capitals";
                  };
                  default = "GET";
                  example = "POST";
                  description = "Method of the request.";
                };
                path = lib.mkOption {
                  type = types.strMatching "/[^[:space:]]*" // {
                    description = "path of a URL, from its first /";
                  };
                  example = "/v1/models";
                  description = "Path of the request, with its query.";
                };
                headers = lib.mkOption {
                  type = types.attrsOf aistack.types.oneLine;
                  default = { };
                  example = {
                    Content-Type = "application/json";
                  };
                  description = "Headers of the request.";
                };
                body = lib.mkOption {
                  type = types.nullOr types.str;
                  default = null;
                  example = ''{"prompt": "hello"}'';
                  description = "Body of the request.";
                };
                status = lib.mkOption {
                  type = types.ints.between 100 599;
                  default = 200;
                  example = 404;
                  description = "Status of the answer.";
                };
                contains = lib.mkOption {
                  type = types.listOf types.str;
                  default = [ ];
                  example = [ "\"object\":" ];
                  description = "Texts that the answer must contain.";
                };
              };
            }
          );
          default = [ ];
          example = [
            {
              path = "/v1/models";
              contains = [ "data" ];
            }
          ];
          description = "Requests that a candidate gets in its isolated test, with the answers that its clients rely on.";
        };
        openapi = lib.mkOption {
          type = types.nullOr (types.either types.package aistack.types.hostPath);
          default = null;
          example = lib.literalExpression ''pkgs.writeText "openapi.json" (builtins.toJSON { … })'';
          description = "OpenAPI document (JSON) that a candidate must keep: every GET without parameters is tried.";
        };
      };
    };
  };
}
