# The stack starts with the machine.
{
  nodes.machine =
    { lib, ... }:
    {
      systemd.targets.aistack.wantedBy = lib.mkOverride 40 [ "multi-user.target" ];
    };
}
