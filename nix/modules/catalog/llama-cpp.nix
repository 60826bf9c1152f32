# The llama.cpp server, with one model, on the processor or a graphics card.
{ config, lib, ... }:
let
  cfg = config.services.aistack;
  settings = cfg.llama-cpp;
  inherit (cfg.services.llama-cpp) port;
  aistack = import ../../lib { inherit lib; };
  inherit (lib) types;

  build = "b9014";

  # As root inside the container, because that is whom the device nodes of graphics cards belong to.
  accelerations = {
    cpu = {
      tag = "server-${build}";
      devices = [ ];
      user = "65534:65534";
    };
    vulkan = {
      tag = "server-vulkan-${build}";
      devices = [ "/dev/dri" ];
      user = "0:0";
    };
    rocm = {
      tag = "server-rocm-${build}";
      devices = [
        "/dev/kfd"
        "/dev/dri"
      ];
      user = "0:0";
    };
    cuda = {
      tag = "server-cuda-${build}";
      # By the names that the NVIDIA container toolkit gives its devices.
      devices = [ "nvidia.com/gpu=all" ];
      user = "0:0";
    };
  };
  chosen = accelerations.${settings.acceleration};

  # Not toString for a derivation: the manifest must depend on it.
  modelPath = "${settings.model}";
in
{
  options.services.aistack.llama-cpp = {
    model = lib.mkOption {
      type = types.either types.package aistack.types.hostPath;
      default = "${cfg.stateDir}/models/qwen2.5-coder-7b-instruct-q4_k_m.gguf";
      defaultText = lib.literalExpression ''"''${config.services.aistack.stateDir}/models/qwen2.5-coder-7b-instruct-q4_k_m.gguf"'';
      example = lib.literalExpression ''
        pkgs.fetchurl {
          url = "https://models.example.org/small.gguf";
          hash = "sha256-…";
        }
      '';
      description = "Model to serve, a GGUF file: a path of the host, or a derivation that fetches it.";
    };
    modelFile = lib.mkOption {
      type = types.str;
      internal = true;
      readOnly = true;
      default =
        if lib.isDerivation settings.model then settings.model.name else baseNameOf settings.model;
      defaultText = lib.literalMD "the file name of {option}`model`";
      description = "Name of the model's file inside the container (`LLAMA_CPP_MODEL_FILE`).";
    };
    acceleration = lib.mkOption {
      type = types.enum (lib.attrNames accelerations);
      default = "cpu";
      example = "vulkan";
      description = "What the model runs on, which chooses the image and the devices.";
    };
    gpuLayers = lib.mkOption {
      type = types.ints.unsigned;
      default = if settings.acceleration == "cpu" then 0 else 999;
      defaultText = lib.literalMD "0 on the processor, otherwise 999, which is all of them";
      example = 24;
      description = "Layers of the model that are kept on the graphics card.";
    };
    contextSize = lib.mkOption {
      type = types.ints.positive;
      default = 4096;
      example = 32768;
      description = "Tokens of context, shared by all requests that are served at once.";
    };
    threads = lib.mkOption {
      type = types.nullOr types.ints.positive;
      default = null;
      example = 8;
      description = "Threads to compute with; llama.cpp decides when null.";
    };
    extraArguments = lib.mkOption {
      type = types.listOf types.str;
      default = [ ];
      example = [ "--embeddings" ];
      description = "Further arguments for llama-server.";
    };
  };

  config = lib.mkIf cfg.enable {
    services.aistack.services.llama-cpp = lib.mapAttrsRecursive (_: lib.mkDefault) {
      image = "ghcr.io/ggml-org/llama.cpp:${chosen.tag}";
      port = 8080;
      inherit (chosen) user devices;
      volumes = [ "${modelPath}:/models/${settings.modelFile}:ro" ];
      stackEnvironment = false;
      # Caches of compiled kernels go where the container may write.
      environment.HOME = "/tmp";
      command = [
        "--model"
        "/models/${settings.modelFile}"
        "--host"
        "0.0.0.0"
        "--port"
        (toString port)
        "--ctx-size"
        (toString settings.contextSize)
        "--n-gpu-layers"
        (toString settings.gpuLayers)
      ]
      ++ lib.optionals (settings.threads != null) [
        "--threads"
        (toString settings.threads)
      ]
      ++ settings.extraArguments;
      capabilities.drop = [ "all" ];
      # The NVIDIA toolkit's hook writes the loader's cache into the root file system.
      readOnly = settings.acceleration != "cuda";
      tmpfs = [ "/tmp" ];
      preflight.files = [
        {
          path = modelPath;
          what = "the model (services.aistack.llama-cpp.model)";
        }
      ];
      stopTimeout = 10;
      health = {
        kind = "http";
        path = "/health";
        # Models of many gigabytes are read from disk first.
        startTimeout = 300;
      };
    };

    # The device names of the NVIDIA toolkit exist once this has run.
    systemd.services.podman-aistack-llama-cpp =
      lib.mkIf
        (
          settings.acceleration == "cuda"
          && cfg.services.llama-cpp.enable
          && cfg.services.llama-cpp.external == null
        )
        {
          after = lib.mkOverride 90 [ "nvidia-container-toolkit-cdi-generator.service" ];
        };
  };
}
