# The reference stack: the catalog, and one container of the user's own that needs all of it. This is
# what bundle/reference is rendered from and what the scenarios run, with images that are at hand and
# times short enough for a test.
{
  services.aistack = {
    enable = true;

    secrets.POSTGRES_PASSWORD.file = "/etc/aistack/secrets/postgres-password";

    llama-cpp = {
      model = "/var/lib/aistack/models/tiny.gguf";
      contextSize = 256;
    };

    rollback.probationSeconds = 10;

    services = {
      postgres = {
        image = "localhost/aistack-images/postgres:1";
        pullTimeout = 60;
        stopTimeout = 20;
        health.startTimeout = 60;
      };
      redis = {
        image = "localhost/aistack-images/redis:1";
        pullTimeout = 60;
        stopTimeout = 10;
        health.startTimeout = 20;
      };
      qdrant = {
        image = "localhost/aistack-images/qdrant:1";
        pullTimeout = 60;
        stopTimeout = 10;
        health.startTimeout = 20;
      };
      llama-cpp = {
        image = "localhost/aistack-images/llama-cpp:1";
        pullTimeout = 60;
        health.startTimeout = 60;
      };

      app = {
        image = "localhost/aistack-images/app:1";
        pullTimeout = 60;
        port = 8000;
        publish = [ 8000 ];
        dependsOn = [
          "postgres"
          "redis"
          "qdrant"
          "llama-cpp"
        ];
        secrets = [ "POSTGRES_PASSWORD" ];
        user = "1000:1000";
        capabilities.drop = [ "all" ];
        readOnly = true;
        stopTimeout = 5;
        health = {
          kind = "http";
          path = "/ready";
          timeout = 2;
          startTimeout = 15;
        };
      };
    };
  };
}
