# Two ways to evaluate the module: `full` inside the complete NixOS module list (a second each), and `light` against bare
# options (milliseconds), for what does not need to know how NixOS renders a unit.
{ nixpkgs, lib }:
let
  root = ../..;
  pkgs = import (root + "/nix/portable/host-packages.nix") {
    inherit lib;
    names = [ "aistack" ];
  };
  module = root + "/nix/modules";

  machine = {
    _module.args.pkgs = lib.mkForce pkgs;
    nixpkgs.hostPlatform = "x86_64-linux";
    system.stateVersion = "25.05";
    # NixOS would ask the package set for parts that only a build can offer.
    boot.kernel.enable = false;
    environment.stub-ld.enable = false;
    networking.useDHCP = false;
  };

  # The least that a stack needs: a secret for the database.
  base = {
    services.aistack = {
      enable = true;
      secrets.POSTGRES_PASSWORD.file = "/run/secrets/postgres-password";
    };
  };

  # Options of NixOS that the module writes to, with nothing behind them.
  bare =
    let
      anything = lib.mkOption {
        type = lib.types.anything;
        default = { };
      };
      list = lib.mkOption {
        type = lib.types.listOf lib.types.anything;
        default = [ ];
      };
      each =
        options:
        lib.mkOption {
          type = lib.types.attrsOf (
            lib.types.submodule {
              freeformType = lib.types.attrsOf lib.types.anything;
              inherit options;
            }
          );
          default = { };
        };
    in
    {
      options = {
        # As in NixOS: a message is looked at only if its assertion fails.
        assertions = lib.mkOption {
          type = lib.types.listOf lib.types.unspecified;
          default = [ ];
        };
        warnings = list;
        environment = {
          systemPackages = list;
          etc = anything;
        };
        networking.firewall.interfaces = anything;
        systemd = {
          tmpfiles.rules = list;
          targets = anything;
          paths = anything;
          timers = anything;
          services = each {
            after = list;
            wants = list;
          };
        };
        virtualisation = {
          podman = {
            package = lib.mkOption { default = pkgs.podman; };
            autoPrune = {
              enable = lib.mkEnableOption "pruning";
              flags = list;
            };
          };
          oci-containers = {
            containers = anything;
            backend = lib.mkOption {
              type = lib.types.enum [
                "podman"
                "docker"
              ];
              default = "podman";
            };
          };
        };
      };
    };

  failures = config: map (a: a.message) (lib.filter (a: !a.assertion) config.assertions);
in
rec {
  inherit lib pkgs root;
  aistack = import (root + "/nix/lib") { inherit lib; };

  evaluate =
    modules:
    lib.evalModules {
      modules = [
        bare
        module
        { _module.args = { inherit pkgs; }; }
      ]
      ++ modules;
    };

  # The configuration of a minimal stack with these settings of services.aistack on top.
  light =
    settings:
    (evaluate [
      base
      { services.aistack = settings; }
    ]).config;

  # The same from a module that sets everything itself.
  lightModule = configuration: (evaluate [ configuration ]).config;

  nixos =
    configuration:
    import (nixpkgs + "/nixos/lib/eval-config.nix") {
      inherit lib;
      system = null;
      modules = [
        module
        machine
        configuration
      ];
    };
  full = configuration: (nixos configuration).config;

  reference = full (root + "/examples/reference.nix");

  # A machine of the NixOS test framework with this configuration.
  testMachine =
    configuration:
    ((import (nixpkgs + "/nixos/lib") { inherit lib; }).runTest {
      name = "evaluation";
      hostPkgs = pkgs;
      node.pkgs = null;
      defaults.imports = [
        module
        machine
      ];
      nodes.machine = configuration;
      testScript = "machine.wait_for_unit('aistack.target')";
    }).config;

  # What is refused about a minimal stack with these settings.
  messages = settings: failures (light settings);
  inherit failures;

  # A service that needs nothing else, to be changed by each case.
  plain = {
    image = "registry.example.org/plain:1.0";
  };

  examples = lib.mapAttrs' (
    file: _: lib.nameValuePair (lib.removeSuffix ".nix" file) (root + "/examples/${file}")
  ) (lib.filterAttrs (file: _: lib.hasSuffix ".nix" file) (builtins.readDir (root + "/examples")));

  exampleConfigs = lib.mapAttrs (_: lightModule) examples;

  rendered = lib.mapAttrs (_: config: {
    manifest = config.environment.etc."aistack/stack.json".text;
    env = config.environment.etc."aistack/.env".text;
  }) exampleConfigs;

  # The lines of a unit's section that set a key, in order.
  lines =
    key: text:
    map (lib.removePrefix "${key}=") (lib.filter (lib.hasPrefix "${key}=") (lib.splitString "\n" text));

  # The one value of a key, split at blanks.
  words = key: text: lib.concatMap (lib.splitString " ") (lines key text);
}
