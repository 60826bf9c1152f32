# A rendered stack with its installer, for hosts without Nix:
#
#   nix build .#bundle && sudo result/install --start
#
# Another configuration: `aistack-bundle.override { configuration = ./stack.nix; }`.
{
  lib,
  pkgs,
  python3,
  runCommand,
  configuration ? ../../examples/reference.nix,
}:
let
  reference = ../../examples/reference.nix;

  rendered = import ../portable {
    inherit lib configuration;
    inherit (pkgs.stdenv.hostPlatform) system;
    nixpkgs = pkgs.path;
    like = pkgs;
  };

  sources = lib.sourceByRegex ../.. [
    "examples(/.*)?"
    "nix"
    "nix/(lib|modules|portable)(/.*)?"
  ];

  # Only a file has a hash; a configuration written in place has none.
  source =
    if configuration == reference then
      "${sources}/examples/reference.nix"
    else if lib.isPath configuration then
      "${configuration}"
    else
      null;

  installer = lib.sourceByRegex ../../bundle [ "(un)?install" ];
  python = import ./python-source.nix { inherit lib; };
in
runCommand "aistack-bundle"
  {
    nativeBuildInputs = [ python3 ];
    # With the string context of every script that the units name.
    tree = builtins.toJSON rendered.tree;
    passAsFile = [ "tree" ];
    passthru = { inherit rendered; };
    meta = {
      description = "The stack as plain files for any systemd host with podman, and their installer";
      license = lib.licenses.mit;
      platforms = lib.platforms.linux;
    };
  }
  ''
    mkdir $out
    cp ${installer}/* $out/
    cp -r ${python} $out/python
    python3 -I ${sources}/nix/portable/render.py --tree "$treePath" --out $out/reference \
      --root ${sources} ${lib.optionalString (source != null) "--configuration ${source}"}
  ''
