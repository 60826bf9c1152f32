# aider behind an HTTP interface: edits and commits in the workspaces that it shares with Ralph. Off until Ralph is on.
{ config, lib, ... }:
let
  cfg = config.services.aistack;
  inherit (cfg) aider;
  inherit (lib) types;
  key = "AIDER_WRAPPER_API_KEY";
in
{
  options.services.aistack.aider = {
    maxConcurrent = lib.mkOption {
      type = types.ints.between 1 64;
      default = cfg.ralph.maxConcurrentTasks;
      defaultText = lib.literalExpression "config.services.aistack.ralph.maxConcurrentTasks";
      example = 4;
      description = "Runs of aider at a time, each of which takes some 100 MB (`AIDER_WRAPPER_MAX_CONCURRENT`).";
    };
    silenceTimeout = lib.mkOption {
      type = types.ints.between 1 3600;
      default = 180;
      example = 600;
      description = "Seconds that the model may say nothing before it counts as not there (`AIDER_WRAPPER_SILENCE_SECONDS`).";
    };
    mapTokens = lib.mkOption {
      type = types.ints.between 0 65536;
      default = 1024;
      example = 0;
      description = "Tokens of the map of the repository that the model is shown, at most; 0 for none (`AIDER_WRAPPER_MAP_TOKENS`).";
    };
    editFormat = lib.mkOption {
      type = types.nullOr (
        types.enum [
          "whole"
          "diff"
          "diff-fenced"
          "udiff"
        ]
      );
      default = null;
      example = "diff";
      description = "How the model writes its edits (`AIDER_WRAPPER_EDIT_FORMAT`); what aider takes for a model of its name when null.";
    };
  };

  config = lib.mkIf cfg.enable {
    services.aistack.services.aider-wrapper = lib.mapAttrsRecursive (_: lib.mkDefault) {
      inherit (cfg.services.ralph-wiggum) enable;
      # No registry has it. The flake makes it (NixOS streams it in, see nix/nixos-module.nix); elsewhere it is loaded once.
      image = "localhost/aistack-images/aider-wrapper:1";
      port = 8099;
      dependsOn = [ "llama-cpp" ];
      user = "1000:1000";
      volumes = [
        "${cfg.stateDir}/volumes/aider-wrapper:/data"
        "${cfg.stateDir}/volumes/workspaces:/workspace"
      ];
      secrets = lib.optional (cfg.secrets ? ${key}) key;
      environment = {
        # Its runs have a home of their own, below /data.
        HOME = "/tmp";
        AIDER_WRAPPER_MAX_CONCURRENT = aider.maxConcurrent;
        AIDER_WRAPPER_SILENCE_SECONDS = aider.silenceTimeout;
        AIDER_WRAPPER_MAP_TOKENS = aider.mapTokens;
      }
      // lib.optionalAttrs (aider.editFormat != null) {
        AIDER_WRAPPER_EDIT_FORMAT = aider.editFormat;
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
      stopTimeout = 10;
      health = {
        kind = "http";
        # Not /ready, which needs the model: a restart would not bring that back, and has an entry of its own.
        path = "/health";
        startTimeout = 60;
      };
      # A candidate has to find the model, though.
      deploy.test.requests = [ { path = "/ready"; } ];
    };
  };
}
