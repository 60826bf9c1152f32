# What differs when the units run on a host other than NixOS.
{ lib, ... }:
{
  options.systemd.services = lib.mkOption {
    type = lib.types.attrsOf (
      lib.types.submodule {
        # The host has its own tools, locales and time zones, and systemd's default PATH finds them.
        config.environment = lib.genAttrs [ "PATH" "LOCALE_ARCHIVE" "TZDIR" ] (_: lib.mkForce null);
      }
    );
  };

  config = {
    # The host brings these; NixOS would ask the package set for parts that only a build can offer.
    boot.kernel.enable = false;
    environment.stub-ld.enable = false;
    networking.useDHCP = false;
    nixpkgs.hostPlatform = lib.mkDefault "x86_64-linux";
    system.stateVersion = lib.mkDefault lib.trivial.release;
  };
}
