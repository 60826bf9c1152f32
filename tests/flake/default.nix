# The flake's own `outputs`, called with a stand-in for its input.
#
#   nix-instantiate --eval --strict --json --read-write-mode tests/flake -A seen
#   nix-instantiate --eval --strict --json --read-write-mode tests/flake -A machines --arg scenarios '[ "deploy" ]'
{
  nixpkgs ? <nixpkgs>,
  scenarios ? [ ],
}:
let
  lib = import (nixpkgs + "/lib");
  input = import ./nixpkgs.nix { inherit nixpkgs; };
  root = toString ../..;

  flake = import ../../flake.nix;
  self =
    flake.outputs {
      inherit self;
      nixpkgs = input;
    }
    // {
      outPath = root;
    };

  system = "x86_64-linux";
  packages = self.packages.${system};
  checks = self.checks.${system};

  ownUnits =
    config:
    lib.mapAttrs (_: unit: { inherit (unit) text wantedBy; }) (
      lib.filterAttrs (name: _: lib.hasInfix "aistack" name) config.systemd.units
    );

  # A machine of someone who has neither overlay nor packages of ours.
  machineOf =
    modules:
    (import (nixpkgs + "/nixos/lib/eval-config.nix") {
      inherit lib;
      system = null;
      modules = modules ++ [
        {
          _module.args.pkgs = lib.mkForce input.legacyPackages.${system};
          nixpkgs.hostPlatform = system;
          system.stateVersion = lib.mkDefault "25.05";
        }
      ];
    }).config;
  machine = machineOf [
    self.nixosModules.default
    ../../examples/reference.nix
  ];
  ralph = machineOf [
    self.nixosModules.default
    ../../examples/minimal.nix
    { services.aistack.services.ralph-wiggum.enable = true; }
  ];

  # What `nix flake init` writes, with our outputs as its input.
  template = self.templates.default.path;
  fromTemplate =
    ((import (template + "/flake.nix")).outputs {
      nixpkgs.lib.nixosSystem = { modules }: machineOf modules;
      aistack = self;
    }).nixosConfigurations.machine;

  image = stream: {
    inherit (stream.attrs) repository tag config;
    contents = map (content: content.name) stream.attrs.contents;
  };
in
{
  inherit self;

  # What tests read, as JSON.
  seen = {
    outputs = lib.mapAttrs (_: lib.attrNames) (removeAttrs self [ "outPath" ]);
    inputs = lib.attrNames flake.inputs;
    derivations = {
      packages = lib.mapAttrs (_: package: package.drvPath) packages;
      images = lib.mapAttrs (_: stream: stream.drvPath) packages.images.images;
      checks = lib.mapAttrs (
        name: check: if lib.hasPrefix "vm-" name then null else check.drvPath
      ) checks;
      devShell = self.devShells.${system}.default.drvPath;
      formatter = self.formatter.${system}.drvPath;
    };
    otherSystem = lib.mapAttrs (_: package: package.drvPath) self.packages.aarch64-linux;
    package = {
      inherit (packages.default.attrs) pname version pyproject;
      inherit (packages.default) meta;
      dependencies = map (dependency: dependency.name) packages.default.attrs.dependencies;
    };
    images = lib.mapAttrs (_: image) packages.images.images;
    app = removeAttrs self.apps.${system}.demo [ "program" ];
    template = {
      inherit (self.templates.default) description;
      nixpkgs = (import (template + "/flake.nix")).inputs.nixpkgs.url;
      units = lib.attrNames (ownUnits fromTemplate);
      # Its assertions hold, or there would be nothing to render.
      rendered =
        lib.attrNames
          (import ../../nix/portable {
            inherit nixpkgs;
            configuration = template + "/configuration.nix";
          }).tree.units;
    };
    ownNixpkgs = flake.inputs.nixpkgs.url;
    machine = {
      units = ownUnits machine;
      hook = machine.services.aistack.hook;
      package = machine.services.aistack.package.drvPath;
    };
    # Read here, so the images it names need not be built.
    ralph =
      lib.mapAttrs (_: service: service.image)
        (builtins.fromJSON (
          builtins.unsafeDiscardStringContext ralph.environment.etc."aistack/stack.json".text
        )).services;
    demo =
      let
        inherit (self.nixosConfigurations.demo) config;
      in
      {
        units = ownUnits config;
        inherit (config.virtualisation) forwardPorts;
        # Read here, so the images it names need not be built.
        manifest = builtins.fromJSON (
          builtins.unsafeDiscardStringContext config.environment.etc."aistack/stack.json".text
        );
      };
  };

  # A few scenarios at a time: each is a whole machine, and all of them together take six gigabytes.
  machines = lib.genAttrs scenarios (
    name:
    let
      test = checks."vm-${name}";
    in
    {
      inherit (test) name testScript drvPath;
      nodes = lib.mapAttrs (_: ownUnits) test.nodes;
    }
  );

  # What can be built with the host's tools alone.
  inherit (packages) bundle;
}
