# `nix fmt`: Nix and Python, with the settings of python/pyproject.toml.
{ pkgs }:
pkgs.nixfmt-tree.override {
  runtimeInputs = [ pkgs.ruff ];
  settings.formatter.ruff = {
    command = "ruff";
    options = [
      "format"
      "--config=python/pyproject.toml"
    ];
    includes = [
      "*.py"
      "python/aistack-hook"
    ];
  };
}
