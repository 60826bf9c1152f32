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
    # Where bundle/install puts it; `-I -S` keeps the host's site-packages out of the hot path.
    services.aistack.hook = "/usr/bin/python3 -I -S /usr/lib/aistack/aistack-hook";

    # The host brings these; NixOS would ask the package set for parts that only a build can offer.
    boot.kernel.enable = false;
    environment.stub-ld.enable = false;
    networking.useDHCP = false;
    nixpkgs.hostPlatform = lib.mkDefault "x86_64-linux";
    system.stateVersion = lib.mkDefault lib.trivial.release;
  };
}
