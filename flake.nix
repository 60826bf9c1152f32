{
  description = "A local AI stack of podman containers under systemd: ordered starts, preflight checks, releases and rollback";

  inputs.nixpkgs.url = "github:NixOS/nixpkgs/nixos-26.05";

  outputs =
    { self, nixpkgs }:
    let
      inherit (nixpkgs) lib;
      systems = [
        "x86_64-linux"
        "aarch64-linux"
      ];
      forEachSystem =
        f: lib.genAttrs systems (system: f (nixpkgs.legacyPackages.${system}.extend self.overlays.default));
      demo = pkgs: import ./nix/demo-vm.nix { inherit lib nixpkgs pkgs; };
    in
    {
      nixosModules.default.imports = [ ./nix/nixos-module.nix ];
      nixosModules.demo.imports = [ ./nix/demo.nix ];

      overlays.default = import ./nix/packages;

      packages = forEachSystem (pkgs: {
        default = pkgs.aistack;
        images = pkgs.aistack-images;
        bundle = pkgs.aistack-bundle;
        options = pkgs.aistack-options;
      });

      apps = forEachSystem (pkgs: {
        demo = {
          type = "app";
          program = lib.getExe (demo pkgs).config.system.build.vm;
          meta.description = "A virtual machine that runs the reference stack; log in as root";
        };
      });

      nixosConfigurations.demo = demo (nixpkgs.legacyPackages.x86_64-linux.extend self.overlays.default);

      checks = forEachSystem (pkgs: import ./nix/checks { inherit lib nixpkgs pkgs; });
      devShells = forEachSystem (pkgs: {
        default = import ./nix/dev-shell.nix { inherit pkgs; };
      });
      formatter = forEachSystem (pkgs: import ./nix/formatter.nix { inherit pkgs; });

      templates.default = {
        path = ./templates/default;
        description = "A NixOS configuration with a local AI stack";
      };
    };
}
