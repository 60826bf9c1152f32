# Dependencies: declared, switched on, able to say that they are ready, and in no circle.
{ config, lib, ... }:
let
  cfg = config.services.aistack;
  inherit (import ../../lib { inherit lib; })
    forEach
    graph
    list
    option
    refuse
    ;

  enabled = lib.filterAttrs (_: service: service.enable) cfg.services;

  undeclared =
    kind:
    forEach enabled (
      name: service:
      map (
        dependency:
        refuse (!(cfg.services ? ${dependency}))
          "${option name}.${kind} names `${dependency}`, which is no service of the stack."
          "Declare ${option dependency}, or correct the name; there are ${list (lib.attrNames enabled)}."
      ) service.${kind}
    );

  unusable = forEach enabled (
    name: service:
    lib.concatMap (
      dependency:
      let
        target = cfg.services.${dependency};
      in
      [
        (refuse (!target.enable) "${option name}.dependsOn names `${dependency}`, which is switched off."
          "Set ${option dependency}.enable = true, or ${option dependency}.external if it runs elsewhere, or take it out of dependsOn."
        )
        (refuse (target.enable && target.health.kind == null)
          "${option name}.dependsOn names `${dependency}`, which cannot be asked whether it is ready."
          "Set ${option dependency}.health.kind, or move `${dependency}` to ${option name}.wants."
        )
      ]
    ) (lib.filter (dependency: cfg.services ? ${dependency}) service.dependsOn)
  );

  cycle = graph.cycle (lib.mapAttrs (_: service: service.dependsOn) enabled);
in
{
  config = lib.mkIf cfg.enable {
    assertions =
      undeclared "dependsOn"
      ++ undeclared "wants"
      ++ unusable
      ++ [
        (refuse (cycle != null)
          "${option (lib.head cycle)}.dependsOn is part of a cycle: ${lib.concatStringsSep " -> " cycle}."
          "None of these could ever start first; make one of the steps soft, by moving it from dependsOn to wants."
        )
      ];
  };
}
