# One VM test for every <scenario>.py of this folder, which is its test script, between _prelude.py and _epilogue.py;
# a <scenario>.nix beside it is a module of the test, where it needs more than the reference stack on one machine.
{ lib, pkgs }:
let
  files = lib.attrNames (builtins.readDir ./.);
  withSuffix =
    suffix:
    map (lib.removeSuffix suffix) (
      lib.filter (file: lib.hasSuffix suffix file && !lib.hasPrefix "_" file) files
    );
  # `# nixos: skip REASON`: a scenario about what NixOS does not have.
  # `# stack of examples/NAME.nix`: what it is about, if it is not the reference stack.
  stackOf =
    name:
    let
      found = builtins.match "(.*\n)?# stack of examples/([a-z]+)[.]nix\n.*" (script name);
    in
    if found == null then "reference" else lib.last found;
  applies = name: builtins.match ".*\n# nixos: skip [^\n]+\n.*" (script name) == null;
  script = name: builtins.readFile (./. + "/${name}.py");
  scripts = withSuffix ".py";
  modules = lib.subtractLists [ "default" "node" ] (withSuffix ".nix");
  alone = lib.subtractLists scripts modules;

  test =
    name:
    pkgs.testers.runNixOSTest {
      imports = lib.optional (lib.elem name modules) (./. + "/${name}.nix");
      name = "aistack-${name}";
      nodes.machine.imports = [
        ./node.nix
        (../../examples + "/${stackOf name}.nix")
      ];
      testScript = builtins.readFile ./_prelude.py + script name + builtins.readFile ./_epilogue.py;
    };
in
lib.throwIf (alone != [ ]) "tests/nixos has modules without a test script: ${
  toString (map (name: "${name}.nix") alone)
}" (lib.genAttrs (lib.filter applies scripts) test)
