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

  discovery = lib.concatMapAttrs (
    name: address:
    let
      service = "services.aistack.services.${name}";
      # Without a declared service there is no container whose port could be another.
      elsewhere = declared.${name}.external or { } != null;
    in
    {
      "${aistack.env.prefix name}_HOST" = {
        value = address.host;
        option = "${service}.external.host";
      };
      "${aistack.env.prefix name}_PORT" = {
        value = address.port;
        option = "${service}.${lib.optionalString elsewhere "external."}port";
      };
    }
  ) addresses;

  # A key whose value is that of an option.
  fixed = option: {
    value = lib.getAttrFromPath (lib.splitString "." option) cfg;
    option = "services.aistack.${option}";
  };

  # The same, for an option that may be overridden while the stack runs: nothing that Nix renders beside
  # the .env and the manifest depends on it.
  changeable = option: within { } option;
  within = range: option: fixed option // { changeable = range; };

  # Each command of a start is given up by systemd after its TimeoutStartSec, which is part of the units.
  longestWait = lib.foldl' lib.min (24 * 3600) (
    map (service: (aistack.timing cfg.manifest service).start - 30) (
      lib.attrValues (lib.filterAttrs (_: service: service.external == null) cfg.manifest.services)
    )
  );

  section = types.submodule (
    { config, ... }:
    {
      options = {
        title = lib.mkOption {
          type = types.str;
          description = "Comment above the section.";
        };
        keys = lib.mkOption {
          type = types.attrsOf types.raw;
          description = "Each key's `value`, the `option` that it follows from, and `changeable`, the range of an override, if it may be overridden.";
        };
        values = lib.mkOption {
          type = types.attrsOf aistack.types.envScalar;
          default = lib.mapAttrs (_: key: key.value) config.keys;
          apply = lib.mapAttrs (_: aistack.env.toValue);
          description = "Values of the keys.";
        };
      };
    }
  );
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

    overridable = lib.mkOption {
      type = types.listOf types.str;
      default = [ ];
      example = [ "LOG_LEVEL" ];
      description = "Keys of `services.aistack.environment` that `aistack env set` may change while the stack runs.";
    };

    derivedSections = lib.mkOption {
      type = types.listOf section;
      internal = true;
      visible = false;
      description = "Sections of the `.env` that follow from the other options, in their order.";
    };

    sections = lib.mkOption {
      type = types.listOf section;
      readOnly = true;
      internal = true;
      visible = false;
      description = "All sections of the `.env`, in their order.";
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
      description = "Whether a service of a proven release that fails its health checks is restarted, after what is wrong with the network for it was mended (`SELF_HEALING_ENABLED`).";
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
        keys = discovery;
      }
      {
        title = "PostgreSQL; the password is a secret and not in this file";
        keys = {
          POSTGRES_DB = fixed "postgres.database";
          POSTGRES_USER = fixed "postgres.user";
        };
      }
      {
        title = "Model";
        keys.LLAMA_CPP_MODEL_FILE = {
          value = cfg.llama-cpp.modelFile;
          option = "services.aistack.llama-cpp.model";
        };
      }
      {
        title = "Ralph Wiggum loop";
        keys = {
          RALPH_LOOP_ENABLED = changeable "ralph.enable";
          RALPH_ADAPTIVE_ITERATIONS = changeable "ralph.adaptive";
          RALPH_EXIT_CODE_BLOCK = fixed "ralph.exitCodeBlock";
          RALPH_MAX_ITERATIONS_CEILING = fixed "ralph.maxIterations.ceiling";
        }
        // lib.mapAttrs' (
          kind: _:
          lib.nameValuePair "RALPH_MAX_ITERATIONS_${lib.toUpper kind}" (
            within {
              min = 1;
              max = cfg.ralph.maxIterations.ceiling;
            } "ralph.maxIterations.${kind}"
          )
        ) (removeAttrs cfg.ralph.maxIterations [ "ceiling" ]);
      }
      {
        title = "Continuous learning";
        keys = {
          CONTINUOUS_LEARNING_ENABLED = changeable "learning.enable";
          LEARNING_PROCESSING_INTERVAL = within { min = 1; } "learning.processingInterval";
          PATTERN_EXTRACTION_ENABLED = changeable "learning.patternExtraction";
        };
      }
      {
        title = "Startup validation";
        keys = {
          STARTUP_DEPENDENCY_CHECK = changeable "startup.dependencyCheck";
          STARTUP_TIMEOUT_SECONDS = within {
            min = 1;
            max = longestWait;
          } "startup.timeoutSeconds";
        };
      }
      {
        title = "Telemetry";
        keys = {
          TELEMETRY_PATH = fixed "telemetry.path";
          OTEL_TRACING_ENABLED = changeable "telemetry.otel.enable";
        }
        // lib.optionalAttrs (cfg.telemetry.otel.endpoint != null) {
          OTEL_EXPORTER_OTLP_ENDPOINT = changeable "telemetry.otel.endpoint";
        };
      }
      {
        title = "Feature flags";
        keys = {
          ADAPTIVE_ITERATION_LIMITS = changeable "ralph.adaptive";
          SELF_HEALING_ENABLED = changeable "selfHealing.enable";
        };
      }
    ];

    services.aistack.sections = cfg.derivedSections ++ [
      {
        title = "From services.aistack.environment";
        keys = lib.mapAttrs (
          key: value:
          {
            inherit value;
            option = "services.aistack.environment.${key}";
          }
          // lib.optionalAttrs (lib.elem key cfg.overridable) { changeable = { }; }
        ) cfg.environment;
      }
    ];

    environment.etc."aistack/.env".text = aistack.env.render cfg.sections;
  };
}
