{
  # Your machine's own: `nixos-generate-config --show-hardware-config > hardware-configuration.nix`
  imports = [ ./hardware-configuration.nix ];

  services.aistack = {
    enable = true;

    # A file that only root can read, made by hand, by sops-nix or by agenix; never in this folder.
    secrets.POSTGRES_PASSWORD.file = "/etc/aistack/secrets/postgres-password";

    # A GGUF file of your own.
    llama-cpp.model = "/var/lib/aistack/models/model.gguf";

    # A container of your own, started once the database answers.
    services.app = {
      image = "registry.example.org/app:1.0.0";
      port = 8000;
      publish = [ 8000 ];
      dependsOn = [ "postgres" ];
      secrets = [ "POSTGRES_PASSWORD" ];
      health = {
        kind = "http";
        path = "/ready";
      };
    };
  };

  system.stateVersion = "26.05";
}
