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
        from = if service.imageFile != null then "imageFile" else "imageStream";
        archive = service.${from};
        # An archive made by Nixpkgs says what its image is called.
        inside =
          if archive ? imageName && archive ? imageTag then
            "${archive.imageName}:${archive.imageTag}"
          else
            service.image;
      in
      [
        (refuse (service.image == null) "${option name}.image is not set."
          "Set it to what the container runs (registry/name:tag), or set ${option name}.external if the service runs elsewhere."
        )
        (refuse (
          service.imageFile != null && service.imageStream != null
        ) "${option name}.imageFile and ${option name}.imageStream are both set." "Keep one of them.")
        (refuse (service.image != null && service.image != inside)
          "${option name}.image is `${service.image}`, but ${option name}.${from} holds `${inside}`, so what is loaded would not be what is run."
          "Leave image out, or set ${option name}.${from} = null to have it pulled."
        )
        (refuse (pulled && !service.allowFloatingTag && image.isFloating service.image)
          "${option name}.image is `${service.image}`, whose tag ${state}: what runs would depend on the day it was pulled, and a rollback would have nothing to go back to."
          "Name a version (registry/name:1.2.3) or a digest, or set ${option name}.allowFloatingTag = true."
        )
      ]
    );
  };
}
