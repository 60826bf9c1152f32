# The reference stack with images from this flake, a model and a secret made at the first boot: all that
# a machine needs to show it.
{ lib, pkgs, ... }:
let
  images = pkgs.aistack-images or (pkgs.callPackage ./packages/images.nix { });
  secret = "/etc/aistack/secrets/postgres-password";
in
{
  imports = [
    ./nixos-module.nix
    ../examples/reference.nix
  ];

  services.aistack.services = lib.genAttrs [ "app" "llama-cpp" "postgres" "qdrant" "redis" ] (name: {
    imageStream = images.images.${name};
  });

  systemd.tmpfiles.rules = [
    "d /var/lib/aistack/models 0755 root root - -"
    "C /var/lib/aistack/models/tiny.gguf 0644 root root - ${images.tiny-model}"
  ];

  systemd.services.demo-secret = {
    description = "Password of the demonstration's database";
    requiredBy = [ "aistack-network.service" ];
    before = [ "aistack-network.service" ];
    unitConfig.ConditionPathExists = "!${secret}";
    serviceConfig.Type = "oneshot";
    script = ''
      install -d -m 0700 ${dirOf secret}
      umask 0377
      head -c 24 /dev/urandom | base64 > ${secret}
    '';
  };
}
