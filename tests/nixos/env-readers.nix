# Readers of the .env that the machine of every scenario does not have.
{
  nodes.machine =
    { lib, pkgs, ... }:
    {
      environment.systemPackages = [
        pkgs.dash
        (lib.hiPrio (pkgs.python3.withPackages (packages: [ packages.python-dotenv ])))
      ];
    };
}
