# Ralph's loop: tasks that an agent works on until they are done, within limits. Off unless it is switched on.
{ config, lib, ... }:
let
  cfg = config.services.aistack;
  aistack = import ../../lib { inherit lib; };
  inherit (lib) types;

  # Ralph takes no iteration, and no command of a task, that may go on for longer.
  upToAnHour = types.ints.between 1 3600;
in
{
  # What the plan has in the .env is in environment.nix; these only Ralph reads.
  options.services.aistack.ralph = {
    maxConcurrentTasks = lib.mkOption {
      type = types.ints.between 1 64;
      default = 2;
      example = 4;
      description = "Tasks that Ralph works on at once, each in a workspace of its own (`RALPH_MAX_CONCURRENT_TASKS`).";
    };
    iterationTimeout = lib.mkOption {
      type = upToAnHour;
      default = 900;
      example = 1800;
      description = "Seconds that the agent has for one iteration (`RALPH_ITERATION_TIMEOUT_SECONDS`).";
    };
    verifyTimeout = lib.mkOption {
      type = upToAnHour;
      default = 600;
      example = 1800;
      description = "Seconds that each command has which says whether a task is done (`RALPH_VERIFY_TIMEOUT_SECONDS`).";
    };
    approvalTimeout = lib.mkOption {
      type = aistack.types.seconds;
      default = 86400;
      example = 3600;
      description = "Seconds after which a task that nobody approved is rejected (`RALPH_APPROVAL_TIMEOUT_SECONDS`).";
    };
    taskTimeout = lib.mkOption {
      type = aistack.types.seconds;
      default = 86400;
      example = 7200;
      description = "Seconds of wall time that a task has if it does not say otherwise (`RALPH_TASK_TIMEOUT_SECONDS`).";
    };
    retainedTasks = lib.mkOption {
      type = types.ints.positive;
      default = 10000;
      example = 1000;
      description = "Finished tasks that Ralph remembers (`RALPH_RETAINED_TASKS`).";
    };
  };

  config = lib.mkIf cfg.enable {
    services.aistack.services.ralph-wiggum = lib.mapAttrsRecursive (_: lib.mkDefault) {
      # It lets a model change files and runs commands that tasks name: nobody should have that without a word.
      enable = false;
      # No registry has it. The flake makes it (NixOS streams it in, see nix/nixos-module.nix); elsewhere it is loaded once.
      image = "localhost/aistack-images/ralph-wiggum:1";
      port = 8098;
      dependsOn = [ "aider-wrapper" ];
      # The same user as aider-wrapper's: both write to the workspaces.
      user = "1000:1000";
      volumes = [
        "${cfg.stateDir}/volumes/ralph-wiggum:/data"
        "${cfg.stateDir}/volumes/workspaces:/workspace"
      ];
      secrets = lib.filter (key: cfg.secrets ? ${key}) [
        "RALPH_WIGGUM_API_KEY"
        # To call aider-wrapper with.
        "AIDER_WRAPPER_API_KEY"
      ];
      environment = {
        HOME = "/tmp";
        RALPH_WORKSPACE_PATH = "/workspace";
        RALPH_MAX_CONCURRENT_TASKS = cfg.ralph.maxConcurrentTasks;
        RALPH_ITERATION_TIMEOUT_SECONDS = cfg.ralph.iterationTimeout;
        RALPH_VERIFY_TIMEOUT_SECONDS = cfg.ralph.verifyTimeout;
        RALPH_APPROVAL_TIMEOUT_SECONDS = cfg.ralph.approvalTimeout;
        RALPH_TASK_TIMEOUT_SECONDS = cfg.ralph.taskTimeout;
        RALPH_RETAINED_TASKS = cfg.ralph.retainedTasks;
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
        # Not /ready, which needs aider-wrapper: without it tasks wait, and a restart would not help them.
        path = "/health";
        startTimeout = 30;
      };
      deploy.test.requests = [ { path = "/ready"; } ];
    };
  };
}
