# The typed settings of the stack, and the one .env that follows from them.
{ config, lib, ... }:
let
  cfg = config.services.aistack;
  aistack = import ../lib { inherit lib; };
  inherit (lib) types;

  # Names and ports that the stack's own programs know each other by, whether or not a container of
  # that name is declared.
  wellKnown = {
    postgres = 5432;
    redis = 6379;
    qdrant = 6333;
    llama-cpp = 8080;
    aidb = 8091;
    hybrid-coordinator = 8092;
    ralph-wiggum = 8098;
    aider-wrapper = 8099;
  };

  declared = lib.filterAttrs (name: service: service.enable || wellKnown ? ${name}) cfg.services;

  addresses =
    lib.mapAttrs (host: port: { inherit host port; }) wellKnown
    // lib.mapAttrs (
      name: service:
      if service.external != null then
        { inherit (service.external) host port; }
      else
        {
          host = name;
          inherit (service) port;
        }
    ) (lib.filterAttrs (_: service: service.external != null || service.port != null) declared);

  discovery = lib.concatMapAttrs (name: address: {
    "${aistack.env.prefix name}_HOST" = address.host;
    "${aistack.env.prefix name}_PORT" = address.port;
  }) addresses;
in
{
  options.services.aistack = {
    environment = lib.mkOption {
      type = types.attrsOf aistack.types.envScalar;
      default = { };
      example = {
        LOG_LEVEL = "info";
      };
      description = "Keys to add to the stack's `.env`, beside those that follow from the other options.";
    };

    derivedSections = lib.mkOption {
      type = types.listOf (
        types.submodule {
          options = {
            title = lib.mkOption {
              type = types.str;
              description = "Comment above the section.";
            };
            values = lib.mkOption {
              type = types.attrsOf aistack.types.envScalar;
              apply = lib.mapAttrs (_: aistack.env.toValue);
              description = "Keys of the section.";
            };
          };
        }
      );
      internal = true;
      visible = false;
      description = "Sections of the `.env` that follow from the other options, in their order.";
    };

    startup = {
      dependencyCheck = lib.mkOption {
        type = types.bool;
        default = true;
        example = false;
        description = "Whether a service is started only after the services it depends on answer (`STARTUP_DEPENDENCY_CHECK`).";
      };
      timeoutSeconds = lib.mkOption {
        type = aistack.types.seconds;
        default = 30;
        example = 120;
        description = "Seconds to wait for each dependency before a start is given up (`STARTUP_TIMEOUT_SECONDS`).";
      };
    };

    selfHealing.enable = lib.mkOption {
      type = types.bool;
      default = false;
      example = true;
      description = "Whether a proven service that stops answering is restarted (`SELF_HEALING_ENABLED`).";
    };

    ralph = {
      enable = lib.mkOption {
        type = types.bool;
        default = true;
        example = false;
        description = "Whether Ralph works on a task in a loop (`RALPH_LOOP_ENABLED`).";
      };
      adaptive = lib.mkOption {
        type = types.bool;
        default = true;
        example = false;
        description = "Whether iteration limits follow the task's complexity (`RALPH_ADAPTIVE_ITERATIONS` and `ADAPTIVE_ITERATION_LIMITS`).";
      };
      maxIterations =
        lib.mapAttrs
          (
            kind: default:
            lib.mkOption {
              type = types.ints.positive;
              inherit default;
              example = default * 2;
              description =
                if kind == "ceiling" then
                  "Most iterations that any task may have, adaptive limits included (`RALPH_MAX_ITERATIONS_CEILING`)."
                else
                  "Iterations for a ${kind} task (`RALPH_MAX_ITERATIONS_${lib.toUpper kind}`).";
            }
          )
          {
            default = 20;
            simple = 10;
            medium = 30;
            complex = 50;
            ceiling = 100;
          };
      exitCodeBlock = lib.mkOption {
        type = types.ints.between 0 255;
        default = 2;
        example = 3;
        description = "Exit code with which a hook keeps Ralph in its loop (`RALPH_EXIT_CODE_BLOCK`).";
      };
    };

    learning = {
      enable = lib.mkOption {
        type = types.bool;
        default = true;
        example = false;
        description = "Whether the stack learns from finished tasks (`CONTINUOUS_LEARNING_ENABLED`).";
      };
      processingInterval = lib.mkOption {
        type = aistack.types.seconds;
        default = 3600;
        example = 600;
        description = "Seconds between two runs of the learning pipeline (`LEARNING_PROCESSING_INTERVAL`).";
      };
      patternExtraction = lib.mkOption {
        type = types.bool;
        default = true;
        example = false;
        description = "Whether the pipeline extracts patterns (`PATTERN_EXTRACTION_ENABLED`).";
      };
    };

    telemetry = {
      path = lib.mkOption {
        type = types.addCheck aistack.types.envValue (lib.hasPrefix "/") // {
          description = "absolute path without blanks or quotes";
        };
        default = "/data/telemetry";
        example = "/data/events";
        description = "Directory inside the containers for telemetry (`TELEMETRY_PATH`).";
      };
      otel = {
        enable = lib.mkOption {
          type = types.bool;
          default = true;
          example = false;
          description = "Whether requests are traced with OpenTelemetry (`OTEL_TRACING_ENABLED`).";
        };
        endpoint = lib.mkOption {
          type = types.nullOr aistack.types.envValue;
          default = null;
          example = "http://collector.example.org:4318";
          description = "Collector that traces are sent to (`OTEL_EXPORTER_OTLP_ENDPOINT`); the key is left out when null.";
        };
      };
    };
  };

  config = lib.mkIf cfg.enable {
    services.aistack.derivedSections = [
      {
        title = "Service discovery: where each service answers";
        values = discovery;
      }
      {
        title = "PostgreSQL; the password is a secret and not in this file";
        values = {
          POSTGRES_DB = cfg.postgres.database;
          POSTGRES_USER = cfg.postgres.user;
        };
      }
      {
        title = "Model";
        values.LLAMA_CPP_MODEL_FILE = cfg.llama-cpp.modelFile;
      }
      {
        title = "Ralph Wiggum loop";
        values = {
          RALPH_LOOP_ENABLED = cfg.ralph.enable;
          RALPH_ADAPTIVE_ITERATIONS = cfg.ralph.adaptive;
          RALPH_EXIT_CODE_BLOCK = cfg.ralph.exitCodeBlock;
        }
        // lib.mapAttrs' (
          kind: lib.nameValuePair "RALPH_MAX_ITERATIONS_${lib.toUpper kind}"
        ) cfg.ralph.maxIterations;
      }
      {
        title = "Continuous learning";
        values = {
          CONTINUOUS_LEARNING_ENABLED = cfg.learning.enable;
          LEARNING_PROCESSING_INTERVAL = cfg.learning.processingInterval;
          PATTERN_EXTRACTION_ENABLED = cfg.learning.patternExtraction;
        };
      }
      {
        title = "Startup validation";
        values = {
          STARTUP_DEPENDENCY_CHECK = cfg.startup.dependencyCheck;
          STARTUP_TIMEOUT_SECONDS = cfg.startup.timeoutSeconds;
        };
      }
      {
        title = "Telemetry";
        values = {
          TELEMETRY_PATH = cfg.telemetry.path;
          OTEL_TRACING_ENABLED = cfg.telemetry.otel.enable;
        }
        // lib.optionalAttrs (cfg.telemetry.otel.endpoint != null) {
          OTEL_EXPORTER_OTLP_ENDPOINT = cfg.telemetry.otel.endpoint;
        };
      }
      {
        title = "Feature flags";
        values = {
          ADAPTIVE_ITERATION_LIMITS = cfg.ralph.adaptive;
          SELF_HEALING_ENABLED = cfg.selfHealing.enable;
        };
      }
    ];

    environment.etc."aistack/.env".text = aistack.env.render (
      cfg.derivedSections
      ++ [
        {
          title = "From services.aistack.environment";
          values = lib.mapAttrs (_: aistack.env.toValue) cfg.environment;
        }
      ]
    );
  };
}
