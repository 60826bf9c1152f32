# A PostgreSQL that runs elsewhere, and no Qdrant. Nothing is started for either, but whoever depends
# on PostgreSQL still starts only after it accepts the password there.
{
  services.aistack = {
    enable = true;
    secrets.POSTGRES_PASSWORD.file = "/run/secrets/postgres-password";

    postgres = {
      user = "assistant";
      database = "assistant";
    };

    services = {
      postgres.external = {
        host = "db.example.org";
        port = 5433;
      };
      qdrant.enable = false;
    };
  };
}
