# `nix develop`: what `make lint` and `make test` use.
{ pkgs }:
pkgs.mkShell {
  packages = [
    (import ./formatter.nix { inherit pkgs; })
    (import ./checks/python.nix { inherit pkgs; })
    pkgs.deadnix
    pkgs.gnumake
    pkgs.mmdebstrap
    pkgs.nixfmt
    pkgs.podman
    pkgs.ruff
    pkgs.shellcheck
    pkgs.statix
  ];
}
