# What asks the services has to be able to import the package.
{
  nodes.machine =
    { pkgs, ... }:
    let
      python = pkgs.python3.withPackages (packages: [ (packages.toPythonModule pkgs.aistack) ]);
    in
    {
      environment.systemPackages = [
        (pkgs.writeShellScriptBin "contracts-python3" ''
          exec ${python}/bin/python3 "$@"
        '')
      ];
    };
}
