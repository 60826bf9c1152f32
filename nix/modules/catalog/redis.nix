# Redis, with every write in an append-only file.
{ config, lib, ... }:
let
  cfg = config.services.aistack;
  inherit (cfg.services.redis) port;
in
{
  options.services.aistack.redis = {
    maxMemory = lib.mkOption {
      type = lib.types.nullOr (lib.types.strMatching "[0-9]+(kb|mb|gb)?");
      default = null;
      example = "512mb";
      description = "Memory for data, after which writes are refused; without a limit when null.";
    };
    appendOnly = lib.mkOption {
      type = lib.types.bool;
      default = true;
      example = false;
      description = "Whether every write goes to a file, so that a crash loses one second at most.";
    };
  };

  config = lib.mkIf cfg.enable {
    services.aistack.services.redis = lib.mapAttrsRecursive (_: lib.mkDefault) {
      image = "docker.io/library/redis:8.2.2-bookworm";
      port = 6379;
      user = "999:999";
      volumes = [ "${cfg.stateDir}/volumes/redis:/data" ];
      stackEnvironment = false;
      command = [
        "--dir"
        "/data"
        "--port"
        (toString port)
        "--appendonly"
        (if cfg.redis.appendOnly then "yes" else "no")
      ]
      ++ lib.optionals (cfg.redis.maxMemory != null) [
        "--maxmemory"
        cfg.redis.maxMemory
      ];
      capabilities.drop = [ "all" ];
      readOnly = true;
      tmpfs = [ "/tmp" ];
      preflight.freeDisk = [
        {
          path = cfg.stateDir;
          megabytes = 64;
        }
      ];
      stopTimeout = 30;
      health = {
        kind = "redis";
        startTimeout = 30;
      };
    };
  };
}
