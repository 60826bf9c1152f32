# The stack as a whole: its backend, the names of its services.
{ config, lib, ... }:
let
  cfg = config.services.aistack;
  inherit (import ../../lib { inherit lib; })
    env
    forEach
    option
    refuse
    ;
  inherit (config.virtualisation.oci-containers) backend;
in
{
  config = lib.mkIf cfg.enable {
    assertions = [
      (refuse (backend != "podman")
        "virtualisation.oci-containers.backend is `${backend}`, but services.aistack works with podman only."
        "Set virtualisation.oci-containers.backend = \"podman\", or remove the line."
      )
      (refuse (!env.isValue cfg.llama-cpp.modelFile)
        "services.aistack.llama-cpp.model: the file name `${cfg.llama-cpp.modelFile}` cannot be written to the .env."
        "Rename the file so that it has only letters, digits and _ . : @ % + , = -"
      )
    ]
    ++ forEach cfg.services (
      name: _: [
        (refuse (builtins.match "[a-z]([a-z0-9-]{0,61}[a-z0-9])?" name == null)
          "${option name}: a service's name is its host name, so it is at most 63 lower-case letters, digits and dashes, starts with a letter and does not end with a dash."
          "Rename it."
        )
      ]
    );
  };
}
