{
  description = "A machine with a local AI stack";

  inputs = {
    nixpkgs.url = "github:NixOS/nixpkgs/nixos-26.05";
    aistack.url = "github:aistack/aistack";
    aistack.inputs.nixpkgs.follows = "nixpkgs";
  };

  outputs =
    { nixpkgs, aistack, ... }:
    {
      nixosConfigurations.machine = nixpkgs.lib.nixosSystem {
        modules = [
          aistack.nixosModules.default
          ./configuration.nix
        ];
      };
    };
}
