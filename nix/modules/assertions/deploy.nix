# Deployments that could not be made as declared.
{ config, lib, ... }:
let
  cfg = config.services.aistack;
  inherit (import ../../lib { inherit lib; }) forEach option refuse;

  containers = lib.filterAttrs (_: service: service.enable && service.external == null) cfg.services;

  # `host:container[:options]`, of which the options may say that it is only read.
  writable =
    volume:
    let
      parts = lib.splitString ":" volume;
    in
    lib.length parts < 3 || !lib.elem "ro" (lib.splitString "," (lib.last parts));
in
{
  config = lib.mkIf cfg.enable {
    assertions = forEach containers (
      name: service:
      let
        inherit (service) deploy;
        kept = lib.filter writable service.volumes;
        contract = deploy.test.requests != [ ] || deploy.test.openapi != null;
      in
      [
        (refuse (deploy.strategy == "bridge" && kept != [ ])
          "${option name}.deploy.strategy is `bridge`, but two containers would write to ${lib.head kept}."
          "Use `restart`, or mount it read-only (`:ro`)."
        )
        (refuse (deploy.strategy == "bridge" && service.health.kind == null)
          "${option name}.deploy.strategy is `bridge`, but nobody could tell when the bridge is ready."
          "Set ${option name}.health.kind, or use `restart`."
        )
        (refuse (contract && service.port == null)
          "${option name}.deploy.test has requests, but there is no port to send them to."
          "Set ${option name}.port."
        )
      ]
    );
  };
}
