# What may be overridden while the stack runs, within which range, and which option each key of the .env follows from.
{
  lib,
  light,
  plain,
  messages,
  evaluate,
  ...
}:
let
  manifest = settings: (light settings).services.aistack.manifest;
  overridable = settings: (manifest settings).overridable;
  range = entry: lib.getAttrs [ "type" "min" "max" ] entry;
in
{
  "limits, flags and times of the stack itself may be overridden; addresses, names and paths may not" =
    {
      expr = lib.mapAttrs (_: entry: "${entry.type} ${toString entry.min}..${toString entry.max}") (
        overridable { }
      );
      expected = {
        ADAPTIVE_ITERATION_LIMITS = "bool ..";
        CONTINUOUS_LEARNING_ENABLED = "bool ..";
        LEARNING_PROCESSING_INTERVAL = "int 1..";
        OTEL_TRACING_ENABLED = "bool ..";
        PATTERN_EXTRACTION_ENABLED = "bool ..";
        RALPH_ADAPTIVE_ITERATIONS = "bool ..";
        RALPH_LOOP_ENABLED = "bool ..";
        RALPH_MAX_ITERATIONS_COMPLEX = "int 1..100";
        RALPH_MAX_ITERATIONS_DEFAULT = "int 1..100";
        RALPH_MAX_ITERATIONS_MEDIUM = "int 1..100";
        RALPH_MAX_ITERATIONS_SIMPLE = "int 1..100";
        SELF_HEALING_ENABLED = "bool ..";
        STARTUP_DEPENDENCY_CHECK = "bool ..";
        STARTUP_TIMEOUT_SECONDS = "int 1..900";
      };
    };

  "one entry, whole" = {
    expr = (overridable { }).RALPH_MAX_ITERATIONS_SIMPLE;
    expected = {
      type = "int";
      min = 1;
      max = 100;
      option = "services.aistack.ralph.maxIterations.simple";
      keys = [ "RALPH_MAX_ITERATIONS_SIMPLE" ];
    };
  };

  "the two keys of one option move together" = {
    expr = map (key: { inherit ((overridable { }).${key}) option keys; }) [
      "ADAPTIVE_ITERATION_LIMITS"
      "RALPH_ADAPTIVE_ITERATIONS"
    ];
    expected = lib.replicate 2 {
      option = "services.aistack.ralph.adaptive";
      keys = [
        "ADAPTIVE_ITERATION_LIMITS"
        "RALPH_ADAPTIVE_ITERATIONS"
      ];
    };
  };

  "no iteration limit may go above the ceiling" = {
    expr = (overridable { ralph.maxIterations.ceiling = 60; }).RALPH_MAX_ITERATIONS_SIMPLE.max;
    expected = 60;
  };

  "the startup time-out stays within what every unit gives its start" = {
    expr =
      let
        found = manifest {
          services =
            lib.genAttrs [ "postgres" "redis" "qdrant" "llama-cpp" ] (_: {
              pullTimeout = 200;
            })
            // {
              app = plain // {
                pullTimeout = 45;
                health.startTimeout = 20;
                health.kind = "tcp";
                port = 1;
              };
            };
        };
      in
      found.overridable.STARTUP_TIMEOUT_SECONDS.max;
    expected = 45;
  };

  "what is declared is always within its range" = {
    expr =
      let
        found = manifest {
          startup.timeoutSeconds = 2000;
          ralph.maxIterations = {
            ceiling = 7;
            default = 7;
            simple = 1;
            medium = 7;
            complex = 7;
          };
        };
      in
      lib.filterAttrs (
        key: entry:
        entry.type == "int"
        && (
          lib.toInt found.environment.${key} < entry.min
          || (entry.max != null && lib.toInt found.environment.${key} > entry.max)
        )
      ) found.overridable;
    expected = { };
  };

  "a collector can be changed where there is one" = {
    expr =
      (overridable { telemetry.otel.endpoint = "http://collector:4318"; })
      .OTEL_EXPORTER_OTLP_ENDPOINT.type;
    expected = "string";
  };

  "keys of one's own, of the type their value has" = {
    expr = lib.mapAttrs (_: range) (
      lib.getAttrs [ "LOG_LEVEL" "WORKERS" "VERBOSE" ] (overridable {
        environment = {
          LOG_LEVEL = "info";
          WORKERS = 4;
          VERBOSE = false;
          OTHER = "x";
        };
        overridable = [
          "LOG_LEVEL"
          "WORKERS"
          "VERBOSE"
        ];
      })
    );
    expected = {
      LOG_LEVEL = {
        type = "string";
        min = null;
        max = null;
      };
      WORKERS = {
        type = "int";
        min = null;
        max = null;
      };
      VERBOSE = {
        type = "bool";
        min = null;
        max = null;
      };
    };
  };

  "a key of one's own that is not named may not be overridden" = {
    expr = (overridable { environment.LOG_LEVEL = "info"; }) ? LOG_LEVEL;
    expected = false;
  };

  "a key that is none is refused" = {
    refused = messages { overridable = [ "LOG_LEVEL" ]; };
    says = [
      "services.aistack.overridable names LOG_LEVEL"
      "services.aistack.environment.LOG_LEVEL"
    ];
  };

  "every key says which option it follows from" = {
    expr =
      let
        found = manifest {
          environment.LOG_LEVEL = "info";
          services.postgres.external = {
            host = "db.example.org";
            port = 5433;
          };
        };
      in
      {
        all = lib.attrNames found.environmentOptions == lib.attrNames found.environment;
        some = lib.getAttrs [
          "AIDB_PORT"
          "LLAMA_CPP_MODEL_FILE"
          "LOG_LEVEL"
          "POSTGRES_HOST"
          "POSTGRES_PORT"
          "REDIS_PORT"
          "TELEMETRY_PATH"
        ] found.environmentOptions;
      };
    expected = {
      all = true;
      some = {
        AIDB_PORT = "services.aistack.services.aidb.external.port";
        LLAMA_CPP_MODEL_FILE = "services.aistack.llama-cpp.model";
        LOG_LEVEL = "services.aistack.environment.LOG_LEVEL";
        POSTGRES_HOST = "services.aistack.services.postgres.external.host";
        POSTGRES_PORT = "services.aistack.services.postgres.external.port";
        REDIS_PORT = "services.aistack.services.redis.port";
        TELEMETRY_PATH = "services.aistack.telemetry.path";
      };
    };
  };

  "every option that a key names is one" = {
    expr =
      let
        declared = map (option: option.name) (lib.optionAttrSetToDocList (evaluate [ ]).options);
        general =
          option:
          let
            found = builtins.match "services\\.aistack\\.services\\.[^.]+\\.(.*)" option;
          in
          if found == null then option else "services.aistack.services.<name>.${lib.head found}";
      in
      lib.subtractLists declared (map general (lib.attrValues (manifest { }).environmentOptions));
    expected = [ ];
  };
}
