# Images: there is one, from one source, and it is the same one tomorrow.
{ config, lib, ... }:
let
  cfg = config.services.aistack;
  inherit (import ../../lib { inherit lib; })
    forEach
    image
    option
    refuse
    ;

  containers = lib.filterAttrs (_: service: service.enable && service.external == null) cfg.services;
in
{
  config = lib.mkIf cfg.enable {
    assertions = forEach containers (
      name: service:
      let
        pulled = service.image != null && service.imageFile == null && service.imageStream == null;
        state = if image.tag service.image == null then "is missing" else "moves";
      in
      [
        (refuse (service.image == null) "${option name}.image is not set."
          "Set it to what the container runs (registry/name:tag), or set ${option name}.external if the service runs elsewhere."
        )
        (refuse (
          service.imageFile != null && service.imageStream != null
        ) "${option name}.imageFile and ${option name}.imageStream are both set." "Keep one of them.")
        (refuse (pulled && !service.allowFloatingTag && image.isFloating service.image)
          "${option name}.image is `${service.image}`, whose tag ${state}: what runs would depend on the day it was pulled, and a rollback would have nothing to go back to."
          "Name a version (registry/name:1.2.3) or a digest, or set ${option name}.allowFloatingTag = true."
        )
      ]
    );
  };
}
