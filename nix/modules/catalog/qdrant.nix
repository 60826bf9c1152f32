# Qdrant, the vector database.
{ config, lib, ... }:
let
  cfg = config.services.aistack;
  inherit (cfg.services.qdrant) port;
  volumes = "${cfg.stateDir}/volumes";
in
{
  options.services.aistack.qdrant.grpcPort = lib.mkOption {
    type = lib.types.port;
    default = 6334;
    example = 7334;
    description = "Port on which Qdrant speaks gRPC to the other containers.";
  };

  config = lib.mkIf cfg.enable {
    services.aistack.services.qdrant = lib.mapAttrsRecursive (_: lib.mkDefault) {
      # The variant whose files belong to user 1000.
      image = "docker.io/qdrant/qdrant:v1.16.2-unprivileged";
      port = 6333;
      user = "1000:1000";
      volumes = [
        "${volumes}/qdrant:/qdrant/storage"
        "${volumes}/qdrant-snapshots:/qdrant/snapshots"
      ];
      stackEnvironment = false;
      environment = {
        QDRANT__SERVICE__HTTP_PORT = port;
        QDRANT__SERVICE__GRPC_PORT = cfg.qdrant.grpcPort;
        QDRANT__TELEMETRY_DISABLED = true;
        # It writes this marker beside its program otherwise, where the root file system is read-only.
        QDRANT_INIT_FILE_PATH = "/tmp/.qdrant-initialized";
      };
      capabilities.drop = [ "all" ];
      readOnly = true;
      tmpfs = [ "/tmp" ];
      preflight.freeDisk = [
        {
          path = cfg.stateDir;
          megabytes = 256;
        }
      ];
      stopTimeout = 30;
      health = {
        kind = "http";
        path = "/readyz";
        startTimeout = 60;
      };
    };
  };
}
