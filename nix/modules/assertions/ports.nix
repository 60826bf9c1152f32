# Ports: each of the host's given once, each of a container's known where it is needed.
{ config, lib, ... }:
let
  cfg = config.services.aistack;
  inherit (import ../../lib { inherit lib; })
    forEach
    option
    publish
    refuse
    ;

  enabled = lib.filterAttrs (_: service: service.enable) cfg.services;
  containers = lib.filterAttrs (_: service: service.external == null) enabled;

  published = forEach containers (
    name: service: map (port: port // { inherit name; }) service.publish
  );
  show = port: "${port.address}:${toString port.hostPort}/${port.protocol}";

  clashes =
    ports:
    lib.optionals (ports != [ ]) (
      let
        first = lib.head ports;
        others = lib.tail ports;
      in
      map (
        second:
        refuse (publish.clash first second)
          "${option first.name}.publish and ${option second.name}.publish both claim the host's port ${toString first.hostPort} (${show first} and ${show second})."
          "Give one of them another host port, such as \"${toString (first.hostPort + 1)}:${toString second.containerPort}\"."
      ) others
      ++ clashes others
    );
in
{
  config = lib.mkIf cfg.enable {
    assertions =
      clashes published
      ++ forEach enabled (
        name: service: [
          (refuse (service.external == null && lib.any (port: port.containerPort == 0) service.publish)
            "${option name}.publish does not say which port of the container it means."
            "Set ${option name}.port, or write \"8080:80\"."
          )
          (refuse (
            service.external != null && service.external.port == 0
          ) "${option name}.external.port is not set." "Set it to the port on which the service answers.")
        ]
      );
  };
}
