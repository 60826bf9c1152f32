# A stand-in for the flake input `nixpkgs` where only `lib/` and `nixos/` of Nixpkgs are at hand: its
# package set is host-backed, and what builds becomes a real derivation that runs the host's tools. So
# every output of the flake can be instantiated, and some can even be built, without Nixpkgs' packages.
{ nixpkgs }:
let
  lib = import (nixpkgs + "/lib");

  # The packages that the flake's outputs name beyond those that NixOS asks for.
  names = [
    "deadnix"
    "gitMinimal"
    "gnumake"
    "jq"
    "llama-cpp"
    "mmdebstrap"
    "nixfmt"
    "psmisc"
    "qdrant"
    "redis"
    "ruff"
    "shellcheck"
    "statix"
  ];
  pythonNames = [
    "aider-chat"
    "click"
    "fastapi"
    "httpx"
    "hypothesis"
    "jsonschema"
    "mypy"
    "opentelemetry-exporter-otlp-proto-http"
    "opentelemetry-sdk"
    "prometheus-client"
    "psycopg"
    "pydantic"
    "pydantic-settings"
    "pytest"
    "python-dotenv"
    "redis"
    "requests"
    "rich"
    "setuptools"
    "types-jsonschema"
    "types-requests"
    "uvicorn"
  ];

  # A derivation of the given attributes; what a builder cannot be told as text is told as JSON.
  build =
    system: name: attrs: script:
    let
      told =
        lib.mapAttrs
          (
            _: value:
            if lib.isAttrs value && !(value ? outPath) || lib.isList value && lib.any lib.isAttrs value then
              builtins.toJSON value
            else
              value
          )
          (
            removeAttrs attrs [
              "meta"
              "passthru"
            ]
          );
      self =
        derivation (
          told
          // {
            inherit name system;
            builder = "/bin/bash";
            args = [
              "-euc"
              "export PATH=${
                lib.concatMapStrings (tool: "${tool}/bin:") (attrs.nativeBuildInputs or [ ])
              }/usr/bin:/bin\n${script}"
            ];
          }
        )
        // (attrs.passthru or { })
        // {
          inherit attrs;
          meta = attrs.meta or { };
          override = _: self;
          overrideAttrs = more: build system name (attrs // more) script;
        };
    in
    self;

  builders =
    final: prev:
    let
      make = build final.system;
      host = name: prev.${name} // { inherit name; };
      python = prev.python3 // {
        sitePackages = "lib/python3/site-packages";
        pkgs = final.python3Packages;
        # Every package must exist; the host's Python stands for all of them.
        withPackages =
          choose: builtins.seq (lib.deepSeq (map (p: p.name) (choose final.python3Packages)) null) python;
      };
    in
    {
      pkgs = final;
      path = nixpkgs;
      callPackage = lib.callPackageWith final;

      python3 = python;
      python312 = python;
      python3Packages = lib.genAttrs pythonNames (name: (host "bash") // { inherit name; }) // {
        inherit python;
        toPythonModule = package: package;
        buildPythonApplication = args: make "${args.pname}-${args.version}" args "cp -r $src $out";
      };

      postgresql_17 = host "bash" // {
        name = "postgresql";
        withPackages =
          choose:
          lib.head (choose {
            pgvector = host "bash";
          });
      };

      runCommand = make;
      linkFarm =
        name: entries:
        make name { inherit entries; } (
          "mkdir $out\n"
          + lib.concatStrings (lib.mapAttrsToList (entry: path: "ln -s ${path} $out/${entry}\n") entries)
        );
      mkShell = args: make "shell" args "mkdir $out";
      nixfmt-tree = host "nixfmt" // {
        override = args: make "nixfmt-tree" args "mkdir $out";
      };

      dockerTools = {
        binSh = host "bash";
        usrBinEnv = host "bash";
        streamLayeredImage =
          args:
          make "stream-${baseNameOf args.name}" (
            removeAttrs args [ "name" ] // { repository = args.name; }
          ) "echo 'exit 1' > $out";
      };

      testers.runNixOSTest =
        test:
        let
          inherit
            ((import (nixpkgs + "/nixos/lib") { inherit lib; }).evalTest {
              imports = [ test ];
              hostPkgs = final;
              node.pkgs = final;
            })
            config
            ;
        in
        make "vm-test-run-${config.name}" {
          testScript = config.testScriptString;
          # All that is named here is evaluated when the test is instantiated.
          units = lib.concatLists (
            lib.mapAttrsToList (
              _: node:
              lib.mapAttrsToList (_: unit: toString unit.text) (
                lib.filterAttrs (name: _: lib.hasInfix "aistack" name) node.systemd.units
              )
            ) config.nodes
          );
          passthru = {
            inherit (config) nodes;
            testScript = config.testScriptString;
          };
        } "exit 1";
    };

  legacyPackages =
    lib.genAttrs
      [
        "x86_64-linux"
        "aarch64-linux"
      ]
      (
        system:
        import ../../nix/portable/host-packages.nix {
          inherit lib names system;
          overlays = [ builders ];
        }
      );
in
{
  inherit lib legacyPackages;
  outPath = toString nixpkgs;
}
