# The module as a flake's users import it: with its package and the images that no registry has, built from their own
# Nixpkgs.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  images = pkgs.aistack-images or (pkgs.callPackage ./packages/images.nix { });
in
{
  imports = [ ./modules ];

  # Weaker than a user's choice, stronger than the module's own default, which expects the overlay.
  services.aistack.package = lib.mkDefault (
    pkgs.aistack or (pkgs.callPackage ./packages/aistack.nix { })
  );

  services.aistack.services = lib.mkIf config.services.aistack.enable (
    lib.genAttrs [ "aider-wrapper" "ralph-wiggum" ] (name: {
      imageStream = lib.mkDefault images.images.${name};
    })
  );
}
