# Ralph's limits, and what he shares with aider-wrapper.
{ config, lib, ... }:
let
  cfg = config.services.aistack;
  inherit (import ../../lib { inherit lib; }) option refuse;
  inherit (cfg.ralph.maxIterations) ceiling;
  inherit (cfg.services) aider-wrapper ralph-wiggum;
  both = lib.all (service: service.enable && service.external == null) [
    aider-wrapper
    ralph-wiggum
  ];
in
{
  config = lib.mkIf cfg.enable {
    assertions = [
      (refuse (cfg.ralph.iterationTimeout > cfg.ralph.taskTimeout)
        "services.aistack.ralph.iterationTimeout (${toString cfg.ralph.iterationTimeout} s) is longer than services.aistack.ralph.taskTimeout (${toString cfg.ralph.taskTimeout} s), so no iteration could use its time."
        "Shorten the one, or lengthen the other."
      )
      (refuse (both && aider-wrapper.user != ralph-wiggum.user)
        "${option "ralph-wiggum"}.user is `${toString ralph-wiggum.user}`, but ${option "aider-wrapper"}.user is `${toString aider-wrapper.user}`, and both write to the same workspaces."
        "Set the same user for both."
      )
    ]
    ++ lib.mapAttrsToList (
      kind: value:
      refuse (value > ceiling)
        "services.aistack.ralph.maxIterations.${kind} (${toString value}) is more than services.aistack.ralph.maxIterations.ceiling (${toString ceiling})."
        "Lower it, or raise the ceiling."
    ) cfg.ralph.maxIterations;
  };
}
