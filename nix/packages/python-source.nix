# What of python/ is installed: the package and the launcher of its hooks, without tests and caches.
{ lib }:
let
  root = ../../python;
in
lib.fileset.toSource {
  inherit root;
  fileset = lib.fileset.unions [
    (lib.fileset.fileFilter (file: file.hasExt "py" || file.hasExt "json" || file.name == "py.typed") (
      root + "/aistack"
    ))
    (root + "/aistack-hook")
    (root + "/pyproject.toml")
  ];
}
