# The catalog: what comes filled in, and that every value can be changed.
{
  lib,
  light,
  rendered,
  aistack,
  ...
}:
let
  services = settings: (light settings).services.aistack.manifest.services;
  all = services { };
  accelerated =
    acceleration:
    let
      found = (services { llama-cpp = { inherit acceleration; }; }).llama-cpp;
    in
    {
      image = found.image.ref;
      inherit (found) devices user;
      inherit (found.hardening) readOnly;
      expected = found.preflight.devices;
    };
in
{
  "all four are there by default" = {
    expr = lib.attrNames all;
    expected = [
      "llama-cpp"
      "postgres"
      "qdrant"
      "redis"
    ];
  };

  "images are pinned" = {
    expr = lib.mapAttrs (_: service: service.image.ref) all;
    expected = {
      llama-cpp = "ghcr.io/ggml-org/llama.cpp:server-b9014";
      postgres = "docker.io/pgvector/pgvector:0.8.1-pg17";
      qdrant = "docker.io/qdrant/qdrant:v1.16.2-unprivileged";
      redis = "docker.io/library/redis:8.2.2-bookworm";
    };
  };

  "ports are the plan's" = {
    expr = lib.mapAttrs (_: service: service.port) all;
    expected = {
      llama-cpp = 8080;
      postgres = 5432;
      qdrant = 6333;
      redis = 6379;
    };
  };

  "none is published on the host" = {
    expr = lib.concatMap (service: service.publish) (lib.attrValues all);
    expected = [ ];
  };

  "each is asked in its own protocol" = {
    expr = lib.mapAttrs (_: service: { inherit (service.probe) kind path; }) all;
    expected = {
      llama-cpp = {
        kind = "http";
        path = "/health";
      };
      postgres = {
        kind = "postgres";
        path = null;
      };
      qdrant = {
        kind = "http";
        path = "/readyz";
      };
      redis = {
        kind = "redis";
        path = null;
      };
    };
  };

  "PostgreSQL is asked as its own user, with the password" = {
    expr = { inherit (all.postgres.probe) user database secret; };
    expected = {
      user = "mcp";
      database = "aidb";
      secret = "POSTGRES_PASSWORD";
    };
  };

  "PostgreSQL learns its user and database, and the password as a secret" = {
    expr = { inherit (all.postgres) environment secrets stackEnvironment; };
    expected = {
      environment = {
        POSTGRES_USER = "mcp";
        POSTGRES_DB = "aidb";
        PGPORT = "5432";
      };
      secrets = [ "POSTGRES_PASSWORD" ];
      stackEnvironment = false;
    };
  };

  "none runs as root, none has a capability, none can write its root file system" = {
    expr = lib.filterAttrs (
      _: service:
      service.user == null
      || lib.hasPrefix "0" service.user
      ||
        service.hardening != {
          noNewPrivileges = true;
          capDrop = [ "all" ];
          capAdd = [ ];
          readOnly = true;
          inherit (service.hardening) tmpfs;
        }
    ) all;
    expected = { };
  };

  "data is kept below the state directory" = {
    expr = lib.mapAttrs (_: service: service.volumes) (removeAttrs all [ "llama-cpp" ]);
    expected = {
      postgres = [ "/var/lib/aistack/volumes/postgres:/var/lib/postgresql/data" ];
      qdrant = [
        "/var/lib/aistack/volumes/qdrant:/qdrant/storage"
        "/var/lib/aistack/volumes/qdrant-snapshots:/qdrant/snapshots"
      ];
      redis = [ "/var/lib/aistack/volumes/redis:/data" ];
    };
  };

  "the model is mounted read-only, and looked for before the start" =
    let
      found = (services { llama-cpp.model = "/srv/models/small.gguf"; }).llama-cpp;
    in
    {
      expr = {
        inherit (found) volumes command;
        inherit (found.preflight) files;
      };
      expected = {
        volumes = [ "/srv/models/small.gguf:/models/small.gguf:ro" ];
        files = [
          {
            path = "/srv/models/small.gguf";
            what = "the model (services.aistack.llama-cpp.model)";
          }
        ];
        command = [
          "--model"
          "/models/small.gguf"
          "--host"
          "0.0.0.0"
          "--port"
          "8080"
          "--ctx-size"
          "4096"
          "--n-gpu-layers"
          "0"
        ];
      };
    };

  "acceleration chooses image and devices" = {
    expr = lib.genAttrs [
      "cpu"
      "vulkan"
      "rocm"
      "cuda"
    ] accelerated;
    expected = {
      cpu = {
        image = "ghcr.io/ggml-org/llama.cpp:server-b9014";
        devices = [ ];
        user = "65534:65534";
        readOnly = true;
        expected = [ ];
      };
      vulkan = {
        image = "ghcr.io/ggml-org/llama.cpp:server-vulkan-b9014";
        devices = [ "/dev/dri" ];
        user = "0:0";
        readOnly = true;
        expected = [ "/dev/dri" ];
      };
      rocm = {
        image = "ghcr.io/ggml-org/llama.cpp:server-rocm-b9014";
        devices = [
          "/dev/kfd"
          "/dev/dri"
        ];
        user = "0:0";
        readOnly = true;
        expected = [
          "/dev/kfd"
          "/dev/dri"
        ];
      };
      cuda = {
        image = "ghcr.io/ggml-org/llama.cpp:server-cuda-b9014";
        devices = [ "nvidia.com/gpu=all" ];
        user = "0:0";
        readOnly = false;
        expected = [ ];
      };
    };
  };

  "NVIDIA's device names are waited for" = {
    expr = (light { llama-cpp.acceleration = "cuda"; }).systemd.services.podman-aistack-llama-cpp.after;
    expected = [
      "aistack-network.service"
      "nvidia-container-toolkit-cdi-generator.service"
    ];
  };

  "a changed port is listened on" = {
    expr =
      let
        found = services {
          services = lib.genAttrs [ "postgres" "redis" "qdrant" "llama-cpp" ] (_: {
            port = 7000;
          });
        };
      in
      [
        found.postgres.environment.PGPORT
        found.qdrant.environment.QDRANT__SERVICE__HTTP_PORT
        (lib.hasInfix "--port 7000" (toString found.redis.command))
        (lib.hasInfix "--port 7000" (toString found.llama-cpp.command))
        (lib.unique (lib.mapAttrsToList (_: service: service.probe.port) found))
      ];
    expected = [
      "7000"
      "7000"
      true
      true
      [ 7000 ]
    ];
  };

  "own options of the catalog" =
    let
      found = services {
        redis = {
          maxMemory = "512mb";
          appendOnly = false;
        };
        qdrant.grpcPort = 7334;
        llama-cpp = {
          contextSize = 8192;
          gpuLayers = 24;
          threads = 8;
          extraArguments = [ "--embeddings" ];
        };
      };
    in
    {
      expr = [
        found.redis.command
        found.qdrant.environment.QDRANT__SERVICE__GRPC_PORT
        (lib.drop 6 found.llama-cpp.command)
      ];
      expected = [
        [
          "--dir"
          "/data"
          "--port"
          "6379"
          "--appendonly"
          "no"
          "--maxmemory"
          "512mb"
        ]
        "7334"
        [
          "--ctx-size"
          "8192"
          "--n-gpu-layers"
          "24"
          "--threads"
          "8"
          "--embeddings"
        ]
      ];
    };

  "every value can be changed without force" =
    let
      found =
        (services {
          services.redis = {
            image = "registry.example.org/redis:1";
            user = "1:1";
            readOnly = false;
            tmpfs = [ ];
            capabilities.drop = [ ];
            command = [ ];
            volumes = [ ];
            health.kind = "tcp";
            preflight.freeDisk = [ ];
          };
        }).redis;
    in
    {
      expr = {
        inherit (found) user command volumes;
        inherit (found.hardening) readOnly tmpfs capDrop;
        image = found.image.ref;
        inherit (found.probe) kind;
      };
      expected = {
        user = "1:1";
        command = [ ];
        volumes = [ ];
        readOnly = false;
        tmpfs = [ ];
        capDrop = [ ];
        image = "registry.example.org/redis:1";
        kind = "tcp";
      };
    };

  "the reference stack runs what is at hand, and nothing from a registry" = {
    expr = lib.filter (ref: !lib.hasPrefix "localhost/" ref) (
      lib.mapAttrsToList (_: service: service.image.ref)
        (builtins.fromJSON rendered.reference.manifest).services
    );
    expected = [ ];
  };

  "no image of the catalog floats" = {
    expr = lib.filterAttrs (_: service: aistack.image.isFloating service.image.ref) all;
    expected = { };
  };
}
