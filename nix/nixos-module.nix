# The module as a flake's users import it: with its package, built from their own Nixpkgs.
{ lib, pkgs, ... }:
{
  imports = [ ./modules ];

  # Weaker than a user's choice, stronger than the module's own default, which expects the overlay.
  services.aistack.package = lib.mkDefault (
    pkgs.aistack or (pkgs.callPackage ./packages/aistack.nix { })
  );
}
