# What must not pass evaluation. Every message names the option and what to do about it.
{
  imports = [
    ./dependencies.nix
    ./deploy.nix
    ./environment.nix
    ./health.nix
    ./images.nix
    ./ports.nix
    ./ralph.nix
    ./secrets.nix
    ./stack.nix
  ];
}
