# Every option of the module as a page, as in docs/options.md:
#
#   nix build .#options && less result/options.md
{
  lib,
  pkgs,
  runCommand,
}:
let
  reference = import ../portable/options.nix {
    inherit lib;
    inherit (pkgs.stdenv.hostPlatform) system;
    nixpkgs = pkgs.path;
    like = pkgs;
  };
in
runCommand "aistack-options"
  {
    inherit (reference) markdown;
    passAsFile = [ "markdown" ];
    meta = {
      description = "Reference of all options of the module";
      license = lib.licenses.mit;
    };
  }
  ''
    mkdir $out
    cp "$markdownPath" $out/options.md
  ''
