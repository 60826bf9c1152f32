# Containers of your own beside the catalog. They get every key of the stack's .env, and the secrets they
# name, and are started only after the services they depend on answer.
{
  services.aistack = {
    enable = true;
    secrets.POSTGRES_PASSWORD.file = "/run/secrets/postgres-password";
    # Mounted at /run/secrets/SIGNING_KEY; the container finds that path in SIGNING_KEY_FILE.
    secrets.SIGNING_KEY = {
      file = "/run/secrets/signing-key";
      as = "file";
    };

    environment.LOG_LEVEL = "info";

    services = {
      api = {
        image = "registry.example.org/notes-api:2.3.1";
        port = 9000;
        publish = [ "192.168.1.5:8080:9000" ];
        dependsOn = [
          "postgres"
          "redis"
        ];
        # Used when it is there, and not waited for.
        wants = [ "qdrant" ];
        secrets = [
          "POSTGRES_PASSWORD"
          "SIGNING_KEY"
        ];
        environment.WORKERS = 4;
        volumes = [ "/var/lib/aistack/volumes/api:/data" ];
        user = "1000:1000";
        capabilities.drop = [ "all" ];
        readOnly = true;
        resources.memory = "1g";
        health = {
          kind = "http";
          path = "/ready";
          expect = "ok";
        };
      };

      worker = {
        image = "registry.example.org/notes-worker@sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";
        dependsOn = [ "api" ];
        # It has no port; this runs inside the container.
        health = {
          kind = "exec";
          command = [
            "/bin/worker"
            "--ping"
          ];
        };
      };
    };
  };
}
