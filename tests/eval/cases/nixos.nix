# The module on a machine of the NixOS test framework.
{
  testMachine,
  root,
  lines,
  ...
}:
let
  test = testMachine (root + "/examples/minimal.nix");
  inherit (test.nodes) machine;
in
{
  "a test machine evaluates with the stack's units" = {
    expr = lines "ExecStartPost" machine.systemd.units."podman-aistack-postgres.service".text;
    expected = [ "/usr/bin/python3 -I -S /usr/bin/aistack-hook await-ready postgres" ];
  };
  "and with its files" = {
    expr = machine.environment.etc."aistack/.env".text;
    expected = builtins.readFile ../golden/minimal.env;
  };
  "and its test script" = {
    expr = test.testScriptString;
    expected = "machine.wait_for_unit('aistack.target')";
  };
}
