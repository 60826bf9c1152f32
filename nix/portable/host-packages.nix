# A package set backed by the host: every package is `/usr`, so `"${pkgs.podman}/bin/podman"` reads
# `/usr/bin/podman`, and every text writer is `builtins.toFile`, so nothing is ever built. Against it
# the NixOS modules evaluate on any machine with Nix, and what they render runs on any systemd host.
#
# A text writer's `outPath` is a plain store file, also where Nixpkgs would make a directory: for
# `writeShellScriptBin "x" …` both `${x}` and `${x}/bin/x` name that one file. `render.py` relies on it.
{
  lib,
  # Names to offer beyond `defaultNames`.
  names ? [ ],
  # A real Nixpkgs, where there is one: all its names are offered too, none of its packages is used.
  like ? { },
  system ? "x86_64-linux",
  overlays ? [ ],
}:
let
  # What NixOS itself asks for while the units of a container host are evaluated, and what modules of
  # this project name. Missing names fail as they would in Nixpkgs: "attribute … missing".
  defaultNames = [
    "bash"
    "conmon"
    "coreutils"
    "crun"
    "curl"
    "findutils"
    "glibcLocales"
    "gnugrep"
    "gnused"
    "iproute2"
    "iptables"
    "kexec-tools"
    "netavark"
    "nftables"
    "nix"
    "podman"
    "procps"
    "python3"
    "sqlite"
    "systemd"
    "tzdata"
    "util-linux"
  ];

  platform = lib.systems.elaborate system;

  # The attributes every derivation-like value shares; `overrideAttrs` and friends change nothing,
  # because there is no build to change.
  packageLike =
    name: attrs:
    let
      self = {
        type = "derivation";
        inherit name system;
        pname = name;
        version = "0";
        outputName = "out";
        outputs = [ "out" ];
        out = self;
        bin = self;
        dev = self;
        lib = self;
        man = self;
        doc = self;
        override = _: self;
        overrideAttrs = _: self;
        passthru = { };
        meta.mainProgram = name;
        meta.priority = 5;
      }
      // attrs;
    in
    self;

  # Deliberately without string context: `/usr` is not in the store and needs no build.
  host =
    name:
    packageLike name {
      outPath = "/usr";
      drvPath = "/usr";
    };

  text =
    name: content:
    let
      path = builtins.toFile (lib.strings.sanitizeDerivationName name) content;
    in
    packageLike name {
      outPath = path;
      drvPath = path;
      text = content;
    };

  # `attrs` stay readable, so that a test can look at what would have been built.
  unbuildable =
    what: name: attrs:
    let
      refuse = throw "${what} \"${name}\" needs a build, which host-backed packages cannot do; use a text writer instead";
    in
    packageLike name (
      {
        outPath = refuse;
        drvPath = refuse;
      }
      // attrs
    );

  script = name: body: text name "#!/bin/bash\n${body}";

  formatNames = [
    "ini"
    "iniWithGlobalSection"
    "gitIni"
    "keyValue"
    "libconfig"
    "hocon"
    "toml"
    "elixirConf"
    "javaProperties"
    "php"
    "pythonVars"
    "xml"
  ]
  ++ lib.attrNames (like.formats or { });

  # NixOS reads the types of many formats while it collects its options; JSON alone can be written
  # without a program.
  format = generate: {
    type = lib.types.anything;
    lib.types.atom = lib.types.anything;
    inherit generate;
  };
  json = _: format (name: value: text name (builtins.toJSON value));

  base =
    final:
    lib.genAttrs (defaultNames ++ lib.attrNames like ++ names) host
    // {
      # `lib.types.pkgs` asks for this.
      _type = "pkgs";
      inherit lib system overlays;
      config = { };
      # With `isLinux` and all its relatives, as in Nixpkgs.
      stdenv = lib.filterAttrs (name: _: lib.hasPrefix "is" name) platform // {
        hostPlatform = platform;
        buildPlatform = platform;
        targetPlatform = platform;
        inherit (platform) system;
      };
      hostPlatform = platform;
      buildPlatform = platform;
      targetPlatform = platform;

      appendOverlays =
        more:
        import ./host-packages.nix {
          inherit
            lib
            names
            like
            system
            ;
          overlays = overlays ++ more;
        };
      extend = overlay: final.appendOverlays [ overlay ];
      # What NixOS takes from a package set that it is given.
      __splicedPackages = final;

      runtimeShell = "/bin/bash";
      runtimeShellPackage = host "bash";

      writeText = text;
      writeTextFile = args: text args.name args.text;
      writeTextDir = path: text (baseNameOf path);
      writeScript = text;
      writeScriptBin = text;
      writeShellScript = script;
      writeShellScriptBin = script;
      writeShellApplication =
        args:
        script args.name ''
          set -o errexit
          set -o nounset
          set -o pipefail

          ${args.text}'';
      formats =
        lib.genAttrs formatNames (kind: _: format (name: _: unbuildable "formats.${kind}" name { }))
        // {
          inherit json;
          yaml = json;
        };

      runCommand = unbuildable "runCommand";
      runCommandLocal = unbuildable "runCommandLocal";
      buildEnv = args: unbuildable "buildEnv" (args.name or "env") { };
      symlinkJoin = args: unbuildable "symlinkJoin" (args.name or "join") { };
    };
in
lib.fix (lib.foldl' (lib.flip lib.extends) base overlays)
