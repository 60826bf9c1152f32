# The machine of every scenario: the reference stack is installed, with its images, model and secret,
# and nothing of it runs. The test script starts it.
{ lib, pkgs, ... }:
let
  images = pkgs.aistack-images;
in
{
  imports = [
    ../../nix/nixos-module.nix
    ../../examples/reference.nix
  ];

  virtualisation = {
    cores = 2;
    diskSize = 8192;
    memorySize = 3072;
  };

  # For the test scripts' own questions.
  environment.systemPackages = [
    pkgs.curl
    pkgs.jq
    pkgs.psmisc
    pkgs.python3
    pkgs.sqlite
  ];

  systemd = {
    targets.aistack.wantedBy = lib.mkForce [ ];

    tmpfiles.rules = [
      "d /var/lib/aistack/models 0755 root root - -"
      "C /var/lib/aistack/models/tiny.gguf 0644 root root - ${images.tiny-model}"
    ];

    services.prepare-scenario = {
      description = "Images and secret of the scenario";
      wantedBy = [ "multi-user.target" ];
      requiredBy = [ "aistack-network.service" ];
      before = [ "aistack-network.service" ];
      # Images outlive a reboot, and so does the secret.
      unitConfig.ConditionPathExists = "!/etc/aistack/secrets/postgres-password";
      serviceConfig = {
        Type = "oneshot";
        RemainAfterExit = true;
      };
      path = [ pkgs.podman ];
      script = ''
        ${lib.concatMapStrings (image: "${image} | podman load --quiet\n") (lib.attrValues images.images)}
        install -d -m 0700 /etc/aistack/secrets
        umask 0377
        head -c 24 /dev/urandom | base64 > /etc/aistack/secrets/postgres-password
      '';
    };
  };
}
