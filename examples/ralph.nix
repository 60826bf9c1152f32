# The reference stack with Ralph's loop and aider-wrapper, and a scripted endpoint in the model's place, so that what the
# model answers is known beforehand. bundle/ralph is rendered from this; the demonstration and the scenarios about tasks
# run it. A stack of your own needs no more of it than `services.aistack.services.ralph-wiggum.enable = true`.
{ lib, ... }:
{
  imports = [ ./reference.nix ];

  services.aistack = {
    llama-cpp = {
      # aider's questions are long, and the tiny model's tokens are single bytes. It never comes to an end by itself.
      contextSize = lib.mkForce 16384;
      extraArguments = [
        "--n-predict"
        "32"
        "--metrics"
      ];
    };

    secrets = {
      AIDER_WRAPPER_API_KEY = {
        file = "/etc/aistack/secrets/aider-wrapper-api-key";
        as = "file";
      };
      RALPH_WIGGUM_API_KEY = {
        file = "/etc/aistack/secrets/ralph-wiggum-api-key";
        as = "file";
      };
    };

    services = {
      ralph-wiggum = {
        enable = true;
        pullTimeout = 60;
        publish = [ 8098 ];
      };
      aider-wrapper = {
        pullTimeout = 60;
        publish = [ 8099 ];
        # The script is its model, so what the .env says of llama-cpp must not be.
        stackEnvironment = false;
        environment = {
          LLAMA_CPP_HOST = "scripted-endpoint";
          LLAMA_CPP_PORT = 8000;
          TELEMETRY_PATH = "/data/telemetry";
        };
        dependsOn = [
          "llama-cpp"
          "scripted-endpoint"
        ];
      };

      scripted-endpoint = {
        image = "localhost/aistack-images/scripted-endpoint:1";
        pullTimeout = 60;
        port = 8000;
        publish = [ "8097:8000" ];
        user = "1000:1000";
        stackEnvironment = false;
        capabilities.drop = [ "all" ];
        readOnly = true;
        stopTimeout = 5;
        health = {
          kind = "http";
          path = "/health";
          startTimeout = 15;
        };
      };
    };
  };
}
