# Every file of this folder is one service of the catalog; adding a service is adding a file.
{ lib, ... }:
let
  files = lib.filterAttrs (
    name: type: type == "regular" && lib.hasSuffix ".nix" name && name != "default.nix"
  ) (builtins.readDir ./.);
in
{
  imports = map (name: ./. + "/${name}") (lib.attrNames files);
}
