# python-dotenv is one of the four readers of the effective environment.
{
  nodes.machine =
    { lib, pkgs, ... }:
    {
      environment.systemPackages = [
        (lib.hiPrio (pkgs.python3.withPackages (packages: [ packages.python-dotenv ])))
      ];
    };
}
