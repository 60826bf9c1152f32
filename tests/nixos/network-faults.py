"""The bridge, the firewall's rules, the kernel's settings, lost while the stack runs: mended, and nothing restarted."""

PORT = "curl --fail --silent --max-time 2 http://127.0.0.1:8000/ready"

machine.wait_for_unit("multi-user.target")
start_good_stack()
running = running_units()
network_is_well(running)

with subtest("a network that is well is left alone, and its unit says nothing"):
    assert machine.succeed("aistack network repair").strip() == "network local-ai: nothing to mend"
    since = cursor()
    machine.succeed("systemctl reload aistack-network")
    said = journal(since, "--unit aistack-network --identifier python3")
    assert not said.strip(), said

with subtest("somebody deleted the firewall's rules of all containers"):
    machine.succeed("nft delete table inet netavark")
    mend_network(running, "firewall rules lost")

with subtest("the firewall is loaded anew, which flushes everything: the unit follows, and says what it mended"):
    machine.succeed("systemctl start nftables")
    mend_network(running, "firewall rules lost")
    since = cursor()
    machine.succeed("systemctl reload nftables")
    wait_for_journal(since, "Reloaded aistack-network.service")
    said = journal(since, "--unit aistack-network --identifier python3")
    assert said.count("\n") == 1, said
    assert "firewall (nftables): firewall rules lost: nothing lets 10.89.100.0/24 through any more: " in said, said
    network_is_well(running)

with subtest("the firewall is restarted, which flushes everything as well: the unit follows"):
    since = cursor()
    machine.succeed("systemctl restart nftables")
    machine.wait_for_unit("aistack-network.service")
    said = journal(since, "--unit aistack-network --identifier python3")
    assert "firewall (nftables): firewall rules lost: nothing lets 10.89.100.0/24 through any more: " in said, said
    network_is_well(running)

with subtest("one published port's rule is lost"):
    machine.succeed("nft flush chain inet netavark NETAVARK-HOSTPORT-DNAT")
    machine.fail(PORT)
    mend_network(running, "firewall rules lost")

with subtest("a rule that a container left behind takes the port of the one that runs"):
    target = "tcp dport 8000 dnat ip to 10.89.100.250:8000"
    machine.succeed(f"nft insert rule inet netavark NETAVARK-HOSTPORT-DNAT ip daddr 127.0.0.1 {target}")
    machine.fail(PORT)
    code, out = machine.execute("aistack network check")
    line = "firewall (nftables): stale firewall rule: leads to 10.89.100.250:8000, which no container has published"
    assert (code, out) == (8, f"{line}\n"), out
    assert machine.succeed("aistack network repair") == f"{line}: removed\n"
    network_is_well(running)

with subtest("the bridge is deleted"):
    machine.succeed("ip link delete aistack0")
    mend_network(running, "bridge missing")

with subtest("the bridge is switched off"):
    machine.succeed("ip link set aistack0 down")
    mend_network(running, "bridge broken")

with subtest("the bridge has lost its address"):
    machine.succeed("ip -4 address flush dev aistack0")
    mend_network(running, "bridge broken")

with subtest("a container is unplugged from the bridge"):
    machine.succeed(
        "pid=$(podman container inspect --format '{{.State.Pid}}' aistack-redis); "
        "number=$(cat /proc/$pid/root/sys/class/net/eth0/iflink); "
        "ip link set dev $(basename $(dirname $(grep -lx $number /sys/class/net/*/ifindex))) nomaster"
    )
    mend_network(running, "container unplugged")

with subtest("the kernel's settings are loaded anew"):
    machine.succeed("sysctl net.ipv4.ip_forward=0 net.ipv4.conf.aistack0.route_localnet=0")
    machine.fail(PORT)
    assert mend_network(running, "forwarding off") == ["switched on", "switched on"]
