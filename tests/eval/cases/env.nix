# The single .env: every key of the plan, derived where it can be derived.
{
  lib,
  light,
  plain,
  rendered,
  ...
}:
let
  env = settings: (light settings).services.aistack.manifest.environment;
  pick = names: lib.filterAttrs (name: _: lib.elem name names);

  # The keys of the plan's Problems 1, 2 and 4 with their values there; the password is a secret.
  plan = {
    POSTGRES_HOST = "postgres";
    POSTGRES_PORT = "5432";
    POSTGRES_DB = "aidb";
    POSTGRES_USER = "mcp";
    REDIS_HOST = "redis";
    REDIS_PORT = "6379";
    QDRANT_HOST = "qdrant";
    QDRANT_PORT = "6333";
    LLAMA_CPP_HOST = "llama-cpp";
    LLAMA_CPP_PORT = "8080";
    LLAMA_CPP_MODEL_FILE = "qwen2.5-coder-7b-instruct-q4_k_m.gguf";
    AIDB_HOST = "aidb";
    AIDB_PORT = "8091";
    HYBRID_COORDINATOR_HOST = "hybrid-coordinator";
    HYBRID_COORDINATOR_PORT = "8092";
    RALPH_MAX_ITERATIONS_DEFAULT = "20";
    RALPH_MAX_ITERATIONS_SIMPLE = "10";
    RALPH_MAX_ITERATIONS_MEDIUM = "30";
    RALPH_MAX_ITERATIONS_COMPLEX = "50";
    RALPH_ADAPTIVE_ITERATIONS = "true";
    RALPH_LOOP_ENABLED = "true";
    RALPH_EXIT_CODE_BLOCK = "2";
    CONTINUOUS_LEARNING_ENABLED = "true";
    LEARNING_PROCESSING_INTERVAL = "3600";
    PATTERN_EXTRACTION_ENABLED = "true";
    STARTUP_DEPENDENCY_CHECK = "true";
    STARTUP_TIMEOUT_SECONDS = "30";
    TELEMETRY_PATH = "/data/telemetry";
    OTEL_TRACING_ENABLED = "true";
    ADAPTIVE_ITERATION_LIMITS = "true";
    SELF_HEALING_ENABLED = "false";
  };
in
{
  "every key of the plan, with the plan's value" = {
    expr = pick (lib.attrNames plan) (env { });
    expected = plan;
  };

  "the names the later services know each other by" = {
    expr = pick [
      "RALPH_WIGGUM_HOST"
      "RALPH_WIGGUM_PORT"
      "AIDER_WRAPPER_HOST"
      "AIDER_WRAPPER_PORT"
    ] (env { });
    expected = {
      RALPH_WIGGUM_HOST = "ralph-wiggum";
      RALPH_WIGGUM_PORT = "8098";
      AIDER_WRAPPER_HOST = "aider-wrapper";
      AIDER_WRAPPER_PORT = "8099";
    };
  };

  "the whole file, to the letter" = {
    expr = rendered.minimal.env;
    expected = builtins.readFile ../golden/minimal.env;
  };

  "no secret is in it, under any option" = {
    expr = lib.filter (lib.hasInfix "PASSWORD=") (lib.splitString "\n" rendered.own-container.env);
    expected = [ ];
  };

  "the manifest has exactly the file's keys" = {
    expr = env { environment.LOG_LEVEL = "debug"; };
    expected =
      let
        text = (light { environment.LOG_LEVEL = "debug"; }).environment.etc."aistack/.env".text;
        pairs = map (line: builtins.match "([A-Z0-9_]+)=(.*)" line) (
          lib.filter (line: line != "" && !lib.hasPrefix "#" line) (lib.splitString "\n" text)
        );
      in
      lib.listToAttrs (map (pair: lib.nameValuePair (lib.elemAt pair 0) (lib.elemAt pair 1)) pairs);
  };

  "every line is a comment, a key of the grammar with a value of the grammar, or empty" = {
    expr =
      lib.filter (line: builtins.match "(#.*|[A-Z][A-Z0-9_]*=[A-Za-z0-9_./:@%+,=-]*)?" line == null)
        (lib.splitString "\n" (lib.concatMapStrings (name: rendered.${name}.env) (lib.attrNames rendered)));
    expected = [ ];
  };

  "one option sets both of the plan's names for adaptive limits" = {
    expr =
      pick
        [
          "RALPH_ADAPTIVE_ITERATIONS"
          "ADAPTIVE_ITERATION_LIMITS"
        ]
        (env {
          ralph.adaptive = false;
        });
    expected = {
      RALPH_ADAPTIVE_ITERATIONS = "false";
      ADAPTIVE_ITERATION_LIMITS = "false";
    };
  };

  "every setting reaches its key" =
    let
      changed = env {
        ralph = {
          enable = false;
          maxIterations = {
            default = 21;
            simple = 11;
            medium = 31;
            complex = 51;
            ceiling = 101;
          };
          exitCodeBlock = 3;
        };
        learning = {
          enable = false;
          processingInterval = 60;
          patternExtraction = false;
        };
        startup = {
          dependencyCheck = false;
          timeoutSeconds = 5;
        };
        telemetry = {
          path = "/t";
          otel.enable = false;
          otel.endpoint = "http://collector:4318";
        };
        selfHealing.enable = true;
        postgres = {
          user = "u";
          database = "d";
        };
        llama-cpp.model = "/models/other.gguf";
      };
    in
    {
      expr = lib.filterAttrs (key: value: (env { }).${key} or null != value) changed;
      expected = {
        RALPH_LOOP_ENABLED = "false";
        RALPH_MAX_ITERATIONS_DEFAULT = "21";
        RALPH_MAX_ITERATIONS_SIMPLE = "11";
        RALPH_MAX_ITERATIONS_MEDIUM = "31";
        RALPH_MAX_ITERATIONS_COMPLEX = "51";
        RALPH_MAX_ITERATIONS_CEILING = "101";
        RALPH_EXIT_CODE_BLOCK = "3";
        CONTINUOUS_LEARNING_ENABLED = "false";
        LEARNING_PROCESSING_INTERVAL = "60";
        PATTERN_EXTRACTION_ENABLED = "false";
        STARTUP_DEPENDENCY_CHECK = "false";
        STARTUP_TIMEOUT_SECONDS = "5";
        TELEMETRY_PATH = "/t";
        OTEL_TRACING_ENABLED = "false";
        OTEL_EXPORTER_OTLP_ENDPOINT = "http://collector:4318";
        SELF_HEALING_ENABLED = "true";
        POSTGRES_USER = "u";
        POSTGRES_DB = "d";
        LLAMA_CPP_MODEL_FILE = "other.gguf";
      };
    };

  "a service of one's own is found by its name and port" = {
    expr =
      pick
        [
          "NOTES_API_HOST"
          "NOTES_API_PORT"
        ]
        (env {
          services.notes-api = plain // {
            port = 9000;
          };
        });
    expected = {
      NOTES_API_HOST = "notes-api";
      NOTES_API_PORT = "9000";
    };
  };

  "a service without a port has no keys, nor has one that is switched off" = {
    expr = lib.filter (lib.hasPrefix "NOTES_") (
      lib.attrNames (env {
        services.notes-worker = plain;
        services.notes-api = plain // {
          port = 9000;
          enable = false;
        };
      })
    );
    expected = [ ];
  };

  "a service elsewhere is found there" = {
    expr =
      pick
        [
          "POSTGRES_HOST"
          "POSTGRES_PORT"
          "REDIS_HOST"
          "REDIS_PORT"
        ]
        (env {
          services.postgres.external = {
            host = "db.example.org";
            port = 5433;
          };
          services.redis.external.host = "10.0.0.7";
        });
    expected = {
      POSTGRES_HOST = "db.example.org";
      POSTGRES_PORT = "5433";
      REDIS_HOST = "10.0.0.7";
      REDIS_PORT = "6379";
    };
  };

  "a changed port changes its key" = {
    expr = (env { services.redis.port = 6380; }).REDIS_PORT;
    expected = "6380";
  };

  "a later service's own declaration wins over its reserved port" = {
    expr =
      pick
        [
          "AIDB_HOST"
          "AIDB_PORT"
        ]
        (env {
          services.aidb = plain // {
            port = 9999;
          };
        });
    expected = {
      AIDB_HOST = "aidb";
      AIDB_PORT = "9999";
    };
  };

  "keys of one's own: numbers and booleans are written as such" = {
    expr =
      pick
        [
          "A"
          "B"
          "C"
        ]
        (env {
          environment = {
            A = 1;
            B = true;
            C = "x";
          };
        });
    expected = {
      A = "1";
      B = "true";
      C = "x";
    };
  };

  "a fetched model keeps its name" = {
    expr =
      let
        fetched = {
          type = "derivation";
          name = "small.gguf";
          outPath = "${builtins.storeDir}/00000000000000000000000000000000-small.gguf";
        };
        config = light { llama-cpp.model = fetched; };
        service = config.services.aistack.manifest.services.llama-cpp;
      in
      [
        config.services.aistack.manifest.environment.LLAMA_CPP_MODEL_FILE
        service.volumes
        (map (file: file.path) service.preflight.files)
      ];
    expected = [
      "small.gguf"
      [ "${builtins.storeDir}/00000000000000000000000000000000-small.gguf:/models/small.gguf:ro" ]
      [ "${builtins.storeDir}/00000000000000000000000000000000-small.gguf" ]
    ];
  };

  "the file says that it is generated" = {
    expr = lib.hasPrefix "# Generated" rendered.reference.env;
    expected = true;
  };
}
