# The NixOS module: one file a concern. This file only imports.
{
  imports = [
    ./stack.nix
    ./environment.nix
    ./secrets.nix
    ./network.nix
    ./containers.nix
    ./rollback.nix
    ./health.nix
    ./deploy.nix
    ./manifest.nix
    ./assertions
    ./catalog
  ];
}
