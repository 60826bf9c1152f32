# Renders a configuration of `services.aistack` to a tree of plain files, with no build at all: the
# complete NixOS module list is evaluated against host-backed packages, and what belongs to aistack is
# picked out of the result. `render.py` turns the tree into files.
#
#   nix-instantiate --eval --strict --json --read-write-mode nix/portable --argstr configuration FILE -A tree
{
  nixpkgs ? <nixpkgs>,
  lib ? import (nixpkgs + "/lib"),
  # A NixOS module, or the absolute path of one.
  configuration ? ../../examples/reference.nix,
  # Package names to offer beyond those of host-packages.nix.
  names ? [ ],
  # A real Nixpkgs, where there is one, for its packages' names.
  like ? { },
  system ? "x86_64-linux",
}:
let
  pkgs = import ./host-packages.nix {
    inherit lib like system;
    names = names ++ [ "aistack" ];
  };

  evaluated = import (nixpkgs + "/nixos/lib/eval-config.nix") {
    inherit lib;
    system = null;
    modules = [
      ../modules
      ./profile.nix
      { _module.args.pkgs = lib.mkForce pkgs; }
      configuration
    ];
  };
  inherit (evaluated) config options;

  isOwn =
    name:
    name == "aistack.target"
    || lib.any (prefix: lib.hasPrefix prefix name) [
      "aistack-"
      "podman-aistack-"
    ];

  # A null text and a disabled unit both mean: nothing to render.
  units = lib.filterAttrs (
    name: unit: isOwn name && unit.enable && unit.text != null
  ) config.systemd.units;

  etc = lib.filterAttrs (
    name: file: lib.hasPrefix "aistack/" name && file.enable
  ) config.environment.etc;

  # What NixOS itself defines is about a machine this configuration does not describe (boot loader, file
  # systems, packages only a build can offer); its module of containers is the exception.
  definedHere =
    definition:
    let
      file = toString definition.file;
    in
    !(lib.hasPrefix "${toString nixpkgs}/" file)
    || lib.hasSuffix "/modules/virtualisation/oci-containers.nix" file;
  ownDefinitions =
    option: lib.concatMap (d: d.value) (lib.filter definedHere option.definitionsWithLocations);

  failures = map (a: a.message) (lib.filter (a: !a.assertion) (ownDefinitions options.assertions));
  message = lib.concatMapStrings (text: "\n- ${lib.removeSuffix "\n" text}") failures;
in
{
  inherit config options pkgs;

  tree =
    if failures != [ ] then
      throw "the configuration cannot be rendered:${message}"
    else
      {
        inherit (builtins) storeDir;
        # What a unit's text depends on outside this project.
        nixpkgs = {
          version = lib.trivial.release;
          files = lib.genAttrs [
            "nixos/lib/systemd-lib.nix"
            "nixos/modules/virtualisation/oci-containers.nix"
          ] (file: builtins.hashFile "sha256" (nixpkgs + "/${file}"));
        };
        units = lib.mapAttrs (_: unit: {
          inherit (unit)
            text
            aliases
            wantedBy
            requiredBy
            upheldBy
            ;
        }) units;
        etc = lib.mapAttrs' (
          name: file:
          lib.nameValuePair file.target (
            {
              # NixOS' default "symlink" means an ordinary world-readable file.
              mode = if file.mode == "symlink" then "0644" else file.mode;
            }
            // (if file.text != null then { inherit (file) text; } else { source = "${file.source}"; })
          )
        ) etc;
        tmpfiles = ownDefinitions options.systemd.tmpfiles.rules;
      };
}
