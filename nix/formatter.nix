# `nix fmt`: Nix, and Python with the settings of ruff.toml.
{ pkgs }:
pkgs.nixfmt-tree.override {
  runtimeInputs = [ pkgs.ruff ];
  settings.formatter.ruff = {
    command = "ruff";
    options = [ "format" ];
    includes = [
      "*.py"
      "python/aistack-hook"
    ];
  };
}
