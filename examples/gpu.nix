# The model on a graphics card. `acceleration` chooses the image and the devices: "vulkan" works on most
# cards, "rocm" on AMD's, "cuda" on NVIDIA's (which also needs hardware.nvidia-container-toolkit.enable).
{
  services.aistack = {
    enable = true;
    secrets.POSTGRES_PASSWORD.file = "/run/secrets/postgres-password";

    llama-cpp = {
      # Or a derivation that fetches it, such as pkgs.fetchurl { url = …; hash = …; }.
      model = "/srv/models/qwen2.5-coder-14b-instruct-q4_k_m.gguf";
      acceleration = "vulkan";
      contextSize = 16384;
    };

    # Large models take their time to be read.
    services.llama-cpp.health.startTimeout = 600;
  };
}
