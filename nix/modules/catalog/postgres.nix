# PostgreSQL 17 with pgvector.
{ config, lib, ... }:
let
  cfg = config.services.aistack;
  inherit (cfg.services.postgres) port;

  # Unquoted identifiers of PostgreSQL: usable as they are in SQL, a connection string and the .env.
  identifier = lib.types.strMatching "[a-z_][a-z0-9_]{0,62}";
in
{
  options.services.aistack.postgres = {
    user = lib.mkOption {
      type = identifier;
      default = "mcp";
      example = "assistant";
      description = "Role that owns the database (`POSTGRES_USER`).";
    };
    database = lib.mkOption {
      type = identifier;
      default = "aidb";
      example = "assistant";
      description = "Database that is created at the first start (`POSTGRES_DB`).";
    };
  };

  config = lib.mkIf cfg.enable {
    services.aistack.services.postgres = lib.mapAttrsRecursive (_: lib.mkDefault) {
      image = "docker.io/pgvector/pgvector:0.8.1-pg17";
      port = 5432;
      # The image's own postgres user; started as it, the entry point needs no capability at all.
      user = "999:999";
      volumes = [ "${cfg.stateDir}/volumes/postgres:/var/lib/postgresql/data" ];
      secrets = [ "POSTGRES_PASSWORD" ];
      stackEnvironment = false;
      environment = {
        POSTGRES_USER = cfg.postgres.user;
        POSTGRES_DB = cfg.postgres.database;
        PGPORT = port;
      };
      capabilities.drop = [ "all" ];
      readOnly = true;
      tmpfs = [
        "/tmp"
        # The socket's directory.
        "/run/postgresql:mode=1777"
      ];
      preflight.freeDisk = [
        {
          path = cfg.stateDir;
          megabytes = 256;
        }
      ];
      # A checkpoint is written before the server ends.
      stopTimeout = 60;
      health = {
        kind = "postgres";
        inherit (cfg.postgres) user database;
        secret = "POSTGRES_PASSWORD";
        # The first start creates the database.
        startTimeout = 120;
      };
    };
  };
}
