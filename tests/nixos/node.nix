# The machine of every scenario: its stack (default.nix says which) is installed, with its images, model and secrets,
# and nothing of it runs. The test script starts it.
{
  config,
  lib,
  pkgs,
  ...
}:
let
  cfg = config.services.aistack;
  images = pkgs.aistack-images;
  needed = lib.filter (name: cfg.manifest.services ? ${name}) (lib.attrNames images.images);
  files = map (secret: secret.file) (lib.attrValues cfg.secrets);
in
{
  imports = [ ../../nix/nixos-module.nix ];

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
      description = "Images and secrets of the scenario";
      wantedBy = [ "multi-user.target" ];
      requiredBy = [ "aistack-network.service" ];
      before = [ "aistack-network.service" ];
      # Images outlive a reboot, and so do the secrets.
      unitConfig.ConditionPathExists = "!${lib.last files}";
      serviceConfig = {
        Type = "oneshot";
        RemainAfterExit = true;
      };
      path = [ pkgs.podman ];
      script = ''
        ${lib.concatMapStrings (name: "${images.images.${name}} | podman load --quiet\n") needed}
        install -d -m 0700 /etc/aistack/secrets
        umask 0377
        for file in ${lib.escapeShellArgs files}; do
          head -c 24 /dev/urandom | base64 > "$file"
        done
      '';
    };
  };
}
