"""What is a fault of the network and what is not, and what is done about each.

podman, ip, nft and systemctl are stand-ins that know what a repair of theirs brings back; the real ones work in the
scenarios. Files and locks are real.
"""

from __future__ import annotations

import fcntl
import json
from typing import TYPE_CHECKING, Any

import fakehost
import pytest
import test_firewall

from aistack.hooks import aardvark, firewall, main, network, network_repair, ports, probe, runtime
from aistack.hooks.errors import DONE, DOWN, INVALID, LOCK_HELD, HookError
from aistack.hooks.manifest import Manifest, load
from aistack.hooks.network import Fault, NotMended

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

APP, REDIS, GONE = "a1" * 32, "b2" * 32, "c3" * 32
ADDRESS = {"aistack-app": "10.89.100.6", "aistack-redis": "10.89.100.2", "theirs": "10.89.100.50"}
PUBLISH = [{"address": "127.0.0.1", "hostPort": 8000, "containerPort": 8000, "protocol": "tcp"}]
DEFINITION: dict[str, Any] = {
    "name": "local-ai",
    "id": "850e845f",
    "driver": "bridge",
    "network_interface": "aistack0",
    "subnets": [{"subnet": "10.89.100.0/24", "gateway": "10.89.100.1"}],
    "internal": False,
    "dns_enabled": True,
}


class Net:
    """A host whose network is well; whatever a test takes away, the stand-ins bring back as the real programs do."""

    def __init__(self, host: fakehost.FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let everything be there."""
        self.host = host
        self.root = host.root
        self.did: list[str] = []
        self.hopeless = False  # a reload that helps nobody
        self.lost = False  # nor does a restart
        self.containers = [self.container("aistack-app", APP, 11), self.container("aistack-redis", REDIS, 12)]
        self.units = {"podman-aistack-app.service": "active", "podman-aistack-redis.service": "active"}
        self.rules = test_firewall.NFTABLES
        self.serving: dict[str, list[str]] | OSError = {}
        self.broken_podman = ""
        self.has_address = True
        self.names = self.root / "aardvark-dns" / "local-ai"
        self.names.parent.mkdir()
        self.interfaces = self.root / "interfaces"
        self.processes = self.root / "proc"
        self.definition = self.root / "definitions" / "local-ai.json"
        driver = self.root / "driver"
        driver.write_text("nftables")
        monkeypatch.setattr(network, "INTERFACES", str(self.interfaces))
        monkeypatch.setattr(network, "PROCESSES", str(self.processes))
        monkeypatch.setattr(runtime, "NETWORKS", str(self.definition.parent))
        monkeypatch.setattr(network, "_STAYS", 0.0)
        monkeypatch.setattr(network, "_SETTLED", 0.0)
        monkeypatch.setattr(network, "_has_address", lambda _: self.has_address)
        monkeypatch.setattr(network_repair, "_NETWORKS_WITH_RULES", str(self.root / "rules-of"))
        monkeypatch.setattr(aardvark, "DIRECTORY", str(self.names.parent))
        monkeypatch.setattr(firewall, "_DRIVER_FILE", str(driver))
        monkeypatch.setattr(ports, "holder", lambda *_: None)
        monkeypatch.setattr(probe, "resolve", self._resolve)
        monkeypatch.setattr(runtime, "run", self.run)
        (self.root / "rules-of").mkdir()
        (self.root / "rules-of" / "850e845f").touch()
        self.put(self.processes / "sys/net/ipv4/ip_forward", "1")
        self.put(self.processes / "sys/net/ipv4/conf/aistack0/route_localnet", "1")
        self.define()
        self.plug()

    @staticmethod
    def put(path: Path, text: str) -> None:
        """Write a file, with its folders."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    @staticmethod
    def container(name: str, identifier: str, pid: int, **changes: Any) -> dict[str, Any]:  # noqa: ANN401  (JSON)
        """A container that runs on the network, as `podman ps` has it."""
        entry = {"Id": identifier, "Names": [name], "State": "running", "Networks": ["local-ai"], "Pid": pid}
        return {**entry, **changes}

    @property
    def manifest(self) -> Manifest:
        """The stack's."""
        return load()

    def running(self) -> list[dict[str, Any]]:
        """The containers that run on the network."""
        return [c for c in self.containers if c["State"] == "running" and "local-ai" in c["Networks"]]

    def define(self, **changes: Any) -> None:  # noqa: ANN401  (JSON)
        """Let podman know the network, with some settings changed."""
        self.put(self.definition, json.dumps({**DEFINITION, **changes}))

    def end(self, name: str, unit: str = "inactive") -> None:
        """Let a service be down, and its container gone."""
        self.containers = [c for c in self.containers if c["Names"] != [name]]
        self.units[f"podman-{name}.service"] = unit
        self.plug()

    def check(self) -> list[str]:
        """The kinds of fault there are."""
        return [fault.kind for fault in network.check(self.manifest)]

    def repair(self, *, restart: bool = False) -> list[Fault]:
        """Mend what there is."""
        return network.repair(self.manifest, network.check(self.manifest), restart=restart)

    def says(self, name: str, *addresses: str) -> None:
        """Let the name server answer so for a name."""
        assert isinstance(self.serving, dict)
        self.serving[name] = list(addresses)

    def plug(self, only: list[str] | None = None) -> None:
        """Set the network up for containers, all of them or these: what netavark does."""
        if not (self.interfaces / "aistack0" / "bridge").exists():
            self.put(self.interfaces / "aistack0/bridge/id", "")
            self.put(self.interfaces / "aistack0/flags", "0x1003")
        for number, container in enumerate(self.running(), 20):
            name = container["Names"][0]
            if only is not None and name not in only:
                continue
            self.put(self.interfaces / f"aistack0/brif/veth{number}/state", "3")
            self.put(self.interfaces / f"veth{number}/ifindex", str(number))
            self.put(self.interfaces / f"veth{number}/flags", "0x1003")
            self.put(self.processes / f"{container['Pid']}/root/sys/class/net/lo/iflink", "1")
            self.put(self.processes / f"{container['Pid']}/root/sys/class/net/eth0/iflink", str(number))
        named = self.running()
        lines = [f"{c['Id']} {ADDRESS[c['Names'][0]]}  {c['Names'][0]}" for c in named]
        if only is None:
            self.names.write_text("\n".join(["10.89.100.1", *lines]) + "\n")
        else:
            kept = self.names.read_text().splitlines() if self.names.exists() else ["10.89.100.1"]
            mine = [line for line, c in zip(lines, named, strict=True) if c["Names"][0] in only]
            others = [line for line in kept if line.split(" ")[0] not in {new.split(" ")[0] for new in mine}]
            self.names.write_text("\n".join([*others, *mine]) + "\n")
        self.serving = {c["Names"][0].removeprefix("aistack-"): [ADDRESS[c["Names"][0]]] for c in named}

    def _resolve(self, name: str, _: str) -> list[str]:
        if isinstance(self.serving, OSError):
            raise self.serving
        return self.serving.get(name, [])

    def run(self, command: list[str], _: float) -> tuple[int, str, str]:
        words = " ".join(command)
        if command[0] == "podman" and self.broken_podman:
            return 125, "", self.broken_podman
        if words.startswith("podman ps "):
            return 0, json.dumps(self.containers), ""
        if words.startswith("podman network inspect"):
            if not self.definition.exists():
                return 125, "", "Error: no such network"
            definition = json.loads(self.definition.read_text())
            inside = {c["Id"]: self._inspected(c["Names"][0]) for c in self.running()}
            return 0, json.dumps([{**definition, "containers": inside}]), ""
        if words.startswith("systemctl show "):
            units = command[command.index("--") + 1 :]
            return 0, "\n\n".join(f"Id={unit}\nActiveState={self.units[unit]}" for unit in units), ""
        if words.startswith(("nft --handle list", "nft list")):
            return (0, self.rules, "") if self.rules else (1, "", "Error: No such file or directory")
        self.did.append(words)
        return self._act(command, words)

    def _act(self, command: list[str], words: str) -> tuple[int, str, str]:
        """What changes something."""
        if words.startswith("podman network create"):
            self.define()
        elif words == "podman network rm local-ai":
            self.definition.unlink()
        elif words.startswith("podman network reload") and not self.hopeless:
            self.plug(None if command[3:] == ["--all"] else command[3:])
            self.rules = test_firewall.NFTABLES
        elif words.startswith("podman rm"):
            self.containers = [c for c in self.containers if c["Id"] not in command]
        elif words.startswith("nft delete table"):
            self.rules = ""
        elif words.startswith("nft delete rule"):
            self.rules = self.rules.replace(f"# handle {command[-1]}\n", "\n").replace("10.89.100.250", "")
        elif words.startswith("ip link set"):
            self.put(self.interfaces / "aistack0/flags", "0x1003")
        elif words.startswith("ip address replace"):
            self.has_address = True
        elif words.startswith("systemctl stop"):
            self.containers = [c for c in self.containers if f"podman-{c['Names'][0]}.service" not in command]
        elif words.startswith("systemctl start"):
            self.rules = self.rules if self.lost else test_firewall.NFTABLES
            self.containers = [self.container("aistack-app", APP, 11), self.container("aistack-redis", REDIS, 12)]
            self.plug()
        return 0, "", ""

    @staticmethod
    def _inspected(name: str) -> dict[str, Any]:
        return {"name": name, "interfaces": {"eth0": {"subnets": [{"ipnet": f"{ADDRESS[name]}/24"}]}}}


@pytest.fixture
def net(host: fakehost.FakeHost, monkeypatch: pytest.MonkeyPatch) -> Net:
    """A network that is well, with two services of the stack on it."""
    services = {"app": fakehost.service("app", publish=PUBLISH), "redis": fakehost.service("redis")}
    network_entry = {**fakehost.manifest(host.root, {})["network"], "gateway": "10.89.100.1"}
    host.declare({**services, "far": fakehost.external(1)}, network=network_entry)
    return Net(host, monkeypatch)


# --- what is no fault ------------------------------------------------------------------------------------------------


def test_a_network_that_is_well(net: Net) -> None:
    assert net.check() == []
    assert net.repair() == []
    assert net.did == []


def _theirs_joins(net: Net) -> None:
    net.containers.append(net.container("theirs", GONE, 13))
    net.plug()


def _theirs_publishes(net: Net) -> None:
    _theirs_joins(net)
    net.rules = net.rules.replace(
        "# handle 31\n", "# handle 31\n\t\ttcp dport 1 dnat ip to 10.89.100.50:80 # handle 99\n"
    )


def _candidate_carries_a_name(net: Net) -> None:
    ADDRESS["aistack-app-candidate"] = "10.89.100.51"
    net.containers.append(net.container("aistack-app-candidate", GONE, 13))
    net.plug()
    net.says("app", "10.89.100.6", "10.89.100.51")


def _another_comes_up(net: Net) -> None:
    net.containers.append(net.container("theirs", GONE, 0, State="created"))
    with net.names.open("a") as file:
        file.write(f"{GONE} 10.89.100.50  theirs\n")
    _leave_rule(net)


def _another_is_elsewhere(net: Net) -> None:
    net.containers.append(net.container("aistack-other", GONE, 13, Networks=["podman"]))


def _an_ipv6_subnet_beside_ours(net: Net) -> None:
    net.define(subnets=[{"subnet": "fd00::/64", "gateway": "fd00::1"}, *DEFINITION["subnets"]])


def _a_unit_that_restarts(net: Net) -> None:
    net.units["podman-aistack-app.service"] = "activating"
    net.containers[0]["State"] = "exited"
    net.plug()
    _drop_port(net)


def _an_unreadable_container(net: Net) -> None:
    net.containers[0]["Pid"] = 99


def _nothing_runs(net: Net) -> None:
    for name in ("aistack-app", "aistack-redis"):
        net.end(name)
    net.rules = ""
    net.serving = OSError("nobody there")
    net.interfaces.rename(net.root / "elsewhere")


def _nothing_is_published(net: Net) -> None:
    net.end("aistack-app")
    net.rules = net.rules.replace("dnat ip to 10.89.100.6:8000", "accept")
    net.put(net.processes / "sys/net/ipv4/conf/aistack0/route_localnet", "0")


@pytest.mark.parametrize(
    "change",
    [
        _theirs_joins,
        _theirs_publishes,
        _candidate_carries_a_name,
        _another_comes_up,
        _another_is_elsewhere,
        _an_ipv6_subnet_beside_ours,
        _a_unit_that_restarts,
        _an_unreadable_container,
        _nothing_runs,
        _nothing_is_published,
    ],
)
def test_what_is_no_fault(net: Net, change: Callable[[Net], None]) -> None:
    change(net)
    assert [fault.line() for fault in network.check(net.manifest)] == []


def test_what_is_gone_at_the_second_look_was_a_start_or_a_stop(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    net.serving = {}
    assert net.check() == ["name missing", "name missing"]

    # Another thing is wrong at the second look: that one has been seen once, too.
    def pass_by(_: float) -> None:
        net.plug()
        _leave_rule(net)

    monkeypatch.setattr("time.sleep", pass_by)
    assert net.check() == []


# --- what is one, and what is done about it --------------------------------------------------------------------------


def _remove_definition(net: Net) -> None:
    net.definition.unlink()


def _delete_bridge(net: Net) -> None:
    net.interfaces.rename(net.root / "elsewhere")


def _switch_bridge_off(net: Net) -> None:
    net.put(net.interfaces / "aistack0/flags", "0x1002")


def _take_address(net: Net) -> None:
    net.has_address = False


def _stop_forwarding(net: Net) -> None:
    net.put(net.processes / "sys/net/ipv4/ip_forward", "0")
    net.put(net.processes / "sys/net/ipv4/conf/aistack0/route_localnet", "0")


def _flush(net: Net) -> None:
    net.rules = ""


def _drop_port(net: Net) -> None:
    net.rules = "".join(line for line in net.rules.splitlines(keepends=True) if "dnat ip to" not in line)


def _leave_rule(net: Net) -> None:
    net.rules = net.rules.replace(
        "# handle 31\n", "# handle 31\n\t\ttcp dport 1 dnat ip to 10.89.100.250:8000 # handle 99\n"
    )


def _unplug(net: Net) -> None:
    net.put(net.processes / "11/root/sys/class/net/eth0/iflink", "77")


def _kill_name_server(net: Net) -> None:
    net.serving = ConnectionRefusedError(111, "Connection refused")


def _hang_name_server(net: Net) -> None:
    net.serving = TimeoutError()


def _damage_names(net: Net) -> None:
    net.names.write_bytes(b"\n\xff\n")


def _leave_name(net: Net) -> None:
    with net.names.open("a") as file:
        file.write(f"{GONE} 10.89.100.250  aistack-redis,redis\n")
    net.says("redis", "10.89.100.2", "10.89.100.250")


def _drop_name(net: Net) -> None:
    lines = net.names.read_text().splitlines(keepends=True)
    net.names.write_text("".join(line for line in lines if "redis" not in line))
    net.says("redis")


def _drop_name_on_file(net: Net) -> None:
    _drop_name(net)
    net.says("redis", "10.89.100.2")


def _swap_name(net: Net) -> None:
    net.says("redis", "10.89.100.77")


RELOAD = "podman network reload"
ALL = f"{RELOAD} aistack-app aistack-redis"


@pytest.mark.parametrize(
    ("fault", "kinds", "does"),
    [
        (_delete_bridge, ["bridge missing"], [ALL]),
        (
            _switch_bridge_off,
            ["bridge broken"],
            ["ip address replace 10.89.100.1/24 broadcast + dev aistack0", "ip link set dev aistack0 up"],
        ),
        (
            _take_address,
            ["bridge broken"],
            ["ip address replace 10.89.100.1/24 broadcast + dev aistack0", "ip link set dev aistack0 up"],
        ),
        (_stop_forwarding, ["forwarding off", "forwarding off"], []),
        (_flush, ["firewall rules lost"], [f"{RELOAD} --all"]),
        (_drop_port, ["firewall rules lost"], [f"{RELOAD} aistack-app"]),
        (
            _leave_rule,
            ["stale firewall rule"],
            ["nft delete rule inet netavark nv_850e845f_10_89_100_0_nm24_dnat handle 99"],
        ),
        (_unplug, ["container unplugged"], [f"{RELOAD} aistack-app"]),
        (_kill_name_server, ["name server dead"], [f"{RELOAD} aistack-app"]),
        (_hang_name_server, ["name server dead"], [f"{RELOAD} aistack-app"]),
        (_damage_names, ["names unreadable"], [ALL]),
        (_drop_name, ["name missing"], [f"{RELOAD} aistack-redis"]),
        (_drop_name_on_file, ["name missing"], [f"{RELOAD} aistack-redis"]),
        (_swap_name, ["stale name"], [f"{RELOAD} aistack-redis"]),
    ],
)
def test_a_fault_is_mended_without_a_restart(
    net: Net, fault: Callable[[Net], None], kinds: list[str], does: list[str]
) -> None:
    fault(net)
    assert net.check() == kinds
    mended = net.repair()
    assert [fault.kind for fault in mended] == kinds
    assert all(fault.mended for fault in mended)
    assert net.did == does
    assert net.check() == []


def test_a_name_that_was_left_behind_is_forgotten(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    _leave_name(net)
    assert net.check() == ["stale name"]
    forget = aardvark.forget

    def told(name: str, ids: set[str]) -> None:
        forget(name, ids)
        net.says("redis", "10.89.100.2")

    monkeypatch.setattr(aardvark, "forget", told)
    (fault,) = net.repair()
    detail = f"name server: stale name: has names of container {GONE[:12]} (10.89.100.250), which is gone"
    assert fault.mended_line() == f"{detail}: forgotten"
    assert net.did == []
    assert GONE not in net.names.read_text()


def test_a_name_that_a_stranger_carries_is_theirs_to_give_up(net: Net) -> None:
    _theirs_joins(net)
    net.says("redis", "10.89.100.2", "10.89.100.50")
    assert net.check() == ["name shared"]
    with pytest.raises(NotMended, match="take it off: podman network disconnect local-ai NAME") as caught:
        net.repair()
    assert caught.value.code == DOWN
    assert not caught.value.restart
    assert net.did == []


def test_the_definition_comes_back_as_it_was_while_containers_run(net: Net) -> None:
    network.up(net.manifest, "local-ai")
    _remove_definition(net)
    assert net.check() == ["network missing"]
    (fault,) = net.repair()
    assert fault.mended == "restored as it was"
    assert json.loads(net.definition.read_text()) == DEFINITION
    assert net.did == []


def test_without_a_copy_the_network_is_made_anew_under_its_containers(net: Net) -> None:
    _remove_definition(net)
    (fault,) = net.repair()
    assert fault.mended == "created, and its containers set up again without a restart"
    create = "podman network create --driver=bridge --subnet=10.89.100.0/24 --gateway=10.89.100.1"
    assert net.did == [
        "ip link delete aistack0",
        f"{create} --interface-name=aistack0 local-ai",
        "nft delete table inet netavark",
        f"{RELOAD} --all",
    ]


@pytest.mark.parametrize("other", [{"id": "another"}, {"dns_enabled": False}, {"subnets": []}])
def test_a_copy_of_another_network_is_not_restored(net: Net, other: dict[str, Any]) -> None:
    (net.root / "run").mkdir(exist_ok=True)
    (net.root / "run/network.json").write_text(json.dumps({**DEFINITION, **other}))
    _remove_definition(net)
    (fault,) = net.repair()
    assert fault.mended.startswith("created, ")


# --- other settings --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("driver", "macvlan", "driver is macvlan, declared is bridge"),
        ("network_interface", "podman1", "interface is podman1, declared is aistack0"),
        ("dns_enabled", False, "DNS is False, declared is True"),
        ("internal", True, "internal is True, declared is False"),
        ("subnets", [{"subnet": "10.1.0.0/24", "gateway": "10.1.0.1"}], "subnet is 10.1.0.0/24, declared is 10.89"),
        ("subnets", None, "subnet is None, declared is 10.89.100.0/24"),
        ("subnets", [{"subnet": "10.89.100.0/24", "gateway": "10.89.100.9"}], "gateway is 10.89.100.9, declared is"),
    ],
)
def test_other_settings_under_the_name_take_a_restart(net: Net, key: str, value: object, words: str) -> None:
    net.define(**{key: value})
    (fault,) = network.check(net.manifest)
    assert fault.kind == "other settings"
    assert words in fault.detail
    with pytest.raises(
        NotMended, match=r"takes a restart of aistack-app, aistack-redis; .*repair --restart$"
    ) as caught:
        net.repair()
    assert caught.value.restart
    assert net.did == []
    (fault,) = net.repair(restart=True)
    units = "podman-aistack-app.service, podman-aistack-redis.service"
    assert fault.mended == f"replaced, with a restart of {units}"
    assert net.did[:2] == [f"systemctl stop {units.replace(',', '')}", "podman network rm local-ai"]


def test_other_settings_are_replaced_at_once_when_nothing_runs(net: Net) -> None:
    _nothing_runs(net)
    net.define(dns_enabled=False)
    (fault,) = net.repair()
    assert fault.mended == "replaced"
    assert [words.split()[:3] for words in net.did] == [["podman", "network", "rm"], ["podman", "network", "create"]]


@pytest.mark.parametrize("state", ["running", "exited"])
def test_a_network_that_somebody_else_uses_is_not_taken_away(net: Net, state: str) -> None:
    _nothing_runs(net)
    net.containers = [net.container("theirs", GONE, 13, State=state)]
    net.define(dns_enabled=False)
    with pytest.raises(NotMended, match="it is used by theirs, which this stack does not own") as caught:
        net.repair(restart=True)
    assert not caught.value.restart
    assert net.did == []


def test_an_interface_of_somebody_else_is_not_touched(net: Net) -> None:
    (net.interfaces / "aistack0/bridge/id").unlink()
    (net.interfaces / "aistack0/bridge").rmdir()
    assert net.check() == ["interface taken"]
    with pytest.raises(NotMended, match="ip link delete aistack0"):
        net.repair(restart=True)
    assert not any(words.startswith("ip ") for words in net.did)


# --- leftovers -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("unit", ["inactive", "failed"])
@pytest.mark.parametrize(
    ("changes", "what"),
    [
        ({"State": "created"}, "created"),
        ({}, "running"),
        ({"State": "storage", "External": True}, "in podman's storage only"),
    ],
)
def test_a_container_that_holds_a_name_while_its_unit_is_down(
    net: Net, unit: str, changes: dict[str, Any], what: str
) -> None:
    net.end("aistack-app", unit)
    net.containers.append(net.container("aistack-app", GONE, 13, **changes))
    net.plug()
    (fault,) = [fault for fault in network.check(net.manifest) if fault.kind == network.GHOST]
    assert fault.detail == f"left over ({what}) while podman-aistack-app.service is {unit}"
    net.repair()
    # By its id: under its name the unit may have started another meanwhile.
    assert net.did[0] == f"podman rm --force --ignore --time 10 {GONE}"


REBOOTED = (
    "Error: current system boot ID differs from cached boot ID; an unhandled reboot has occurred. Please delete "
    'directories "/run/containers/storage" and "/run/libpod" and re-run Podman'
)


def test_only_directories_of_run_are_removed_after_a_reboot() -> None:
    assert network.stale_state(REBOOTED) == ["/run/containers/storage", "/run/libpod"]
    assert network.stale_state(REBOOTED.replace("/run/libpod", "/run/../etc")) == ["/run/containers/storage"]
    assert network.stale_state(REBOOTED.replace("/run/libpod", "/var/lib")) == ["/run/containers/storage"]
    assert network.stale_state('Error: cannot open "/run/libpod"') == []


def test_another_boots_state_is_removed_as_podman_asks(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    removed: list[str] = []

    def remove(path: str) -> None:
        removed.append(path)
        net.broken_podman = ""

    monkeypatch.setattr("shutil.rmtree", remove)
    net.broken_podman = REBOOTED
    (fault,) = net.repair()
    assert (fault.kind, fault.mended) == ("unhandled reboot", "removed what podman had kept of the other boot")
    assert removed == ["/run/containers/storage", "/run/libpod"]


def test_it_is_not_removed_while_a_container_runs(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.rmtree", lambda _: pytest.fail("a container runs"))
    net.put(net.processes / "4242/comm", "conmon\n")
    net.broken_podman = REBOOTED
    with pytest.raises(NotMended, match="a container runs: process 4242 watches it"):
        net.repair(restart=True)


def test_podman_that_fails_otherwise_is_no_fault_of_the_network(net: Net) -> None:
    net.broken_podman = "Error: database is locked"
    with pytest.raises(HookError, match="podman ps failed: Error: database is locked"):
        net.check()


@pytest.mark.parametrize("said", ["{", '{"a": 1}', "[1]", "[" * 100_000])
def test_what_podman_never_said_before_is_one_line(net: Net, monkeypatch: pytest.MonkeyPatch, said: str) -> None:
    monkeypatch.setattr(runtime, "run", lambda *_: (0, said, ""))
    with pytest.raises(HookError, match="cannot make sense of what `podman ps` says") as caught:
        net.check()
    assert len(str(caught.value)) < 300


# --- bounds ----------------------------------------------------------------------------------------------------------


def test_what_no_reload_mends_is_said_with_what_is_left(net: Net) -> None:
    net.hopeless = True
    _flush(net)
    _stop_forwarding(net)
    with pytest.raises(NotMended) as caught:
        net.repair()
    assert [fault.kind for fault in caught.value.done] == ["forwarding off", "forwarding off"]
    assert [fault.kind for fault in caught.value.left] == ["firewall rules lost"]
    assert caught.value.code == DOWN
    assert str(caught.value).endswith("; aistack network repair --restart")
    assert net.did.count(f"{RELOAD} --all") == 3


def test_what_cannot_be_mended_is_tried_once(net: Net) -> None:
    net.says("redis", "10.89.100.2", "10.89.100.50")
    _theirs_joins(net)
    net.says("redis", "10.89.100.2", "10.89.100.50")
    _stop_forwarding(net)
    with pytest.raises(NotMended) as caught:
        net.repair()
    assert str(caught.value).count("which this stack does not own") == 1
    assert [fault.kind for fault in caught.value.left] == ["name shared"]


def test_a_repair_by_hand_keeps_the_definition_too(net: Net) -> None:
    _flush(net)
    net.repair()
    assert json.loads((net.root / "run/network.json").read_text()) == DEFINITION


def test_a_podman_without_containers(net: Net) -> None:
    _nothing_runs(net)
    real = net.run
    nobody = (0, "null", "")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime, "run", lambda *command: nobody if command[0][1] == "ps" else real(*command))
        assert net.check() == []


def test_what_no_reload_mends_a_restart_may(net: Net) -> None:
    net.hopeless = True
    _drop_port(net)
    (fault,) = net.repair(restart=True)
    assert fault.mended == "mended by a restart of podman-aistack-app.service"
    assert "systemctl stop podman-aistack-app.service" in net.did


def test_what_no_restart_mends_is_not_to_be_restarted_again(net: Net) -> None:
    net.hopeless = net.lost = True
    _drop_port(net)
    with pytest.raises(NotMended) as caught:
        net.repair(restart=True)
    assert not caught.value.restart
    assert "--restart" not in str(caught.value)
    assert str(caught.value).endswith("; journalctl --since -5min --grep 'netavark|aardvark'")


def test_a_repair_that_runs_is_not_waited_for_for_ever(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "_LOCK_WAIT", 0.2)
    (net.root / "run").mkdir(exist_ok=True)
    _flush(net)
    with (net.root / "run/network.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(HookError, match=r"another repair of the network has not ended for 0\.2 s") as caught:
            net.repair()
    assert caught.value.code == LOCK_HELD
    assert net.did == []
    net.repair()


def test_what_another_repair_mended_meanwhile_is_not_mended_again(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    (net.root / "run").mkdir(exist_ok=True)
    _flush(net)
    faults = network.check(net.manifest)
    with (net.root / "run/network.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)

        def other(_: float) -> None:
            net.plug()
            net.rules = test_firewall.NFTABLES
            fcntl.flock(lock, fcntl.LOCK_UN)

        monkeypatch.setattr("time.sleep", other)
        assert network.repair(net.manifest, faults) == []
    assert net.did == []


# --- the unit --------------------------------------------------------------------------------------------------------


def test_the_unit_makes_the_network_and_says_nothing_of_it(net: Net) -> None:
    _nothing_runs(net)
    _remove_definition(net)
    net.host.capsys.readouterr()
    assert main.main(["network", "local-ai"]) == DONE
    assert net.host.capsys.readouterr().err == ""
    assert net.definition.exists()
    assert json.loads((net.root / "run/network.json").read_text()) == DEFINITION


def test_the_unit_says_what_it_mended_a_line_for_each(net: Net) -> None:
    _flush(net)
    _drop_name(net)
    assert main.main(["network", "local-ai"]) == DONE
    said = net.host.capsys.readouterr().err.splitlines()
    lost = "firewall (nftables): firewall rules lost: nothing lets 10.89.100.0/24 through any more"
    assert said == [
        f"{lost}: set up again without a restart",
        "name redis: name missing: is not known; its container has 10.89.100.2: set up again without a restart",
    ]


def test_the_unit_fails_with_what_it_cannot_mend(net: Net) -> None:
    net.hopeless = True
    _flush(net)
    assert main.main(["network", "local-ai"]) == DOWN
    said = net.host.capsys.readouterr().err
    assert said.startswith("aistack: firewall (nftables): firewall rules lost: ")
    assert said.count("\n") == 1


def test_the_unit_knows_its_network_by_name(net: Net) -> None:
    assert main.main(["network", "other"]) == INVALID
    assert "the network is called local-ai" in net.host.capsys.readouterr().err


# --- the command line ------------------------------------------------------------------------------------------------


@pytest.fixture
def root(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this be root, who alone may look."""
    monkeypatch.setattr("os.geteuid", lambda: 0)


@pytest.mark.usefixtures("root")
def test_the_command_of_a_network_that_is_well(net: Net) -> None:
    answer = net.host.run("network", "check")
    assert (answer.code, answer.out, answer.err) == (0, "network local-ai: ok\n", "")
    answer = net.host.run("network", "repair")
    assert (answer.code, answer.out, answer.err) == (0, "network local-ai: nothing to mend\n", "")
    assert net.host.run("network", "check", "--json").json["faults"] == []


@pytest.mark.usefixtures("root")
def test_the_command_names_each_fault_and_what_to_do(net: Net) -> None:
    _flush(net)
    line = "firewall (nftables): firewall rules lost: nothing lets 10.89.100.0/24 through any more"
    answer = net.host.run("network", "check")
    assert (answer.code, answer.out) == (8, f"{line}\n")
    assert answer.err == "aistack: 1 fault; next: aistack network repair\n"
    document = net.host.run("network", "check", "--json").json
    assert document["exit_code"] == 8
    (fault,) = document["faults"]
    assert (fault["kind"], fault["subject"]) == ("firewall rules lost", "firewall (nftables)")
    answer = net.host.run("network", "repair")
    assert (answer.code, answer.out, answer.err) == (0, f"{line}: set up again without a restart\n", "")


@pytest.mark.usefixtures("root")
def test_the_command_says_what_is_left(net: Net) -> None:
    net.hopeless = True
    _flush(net)
    answer = net.host.run("network", "repair")
    assert (answer.code, answer.out) == (8, "")
    assert answer.err.startswith("aistack: 1 fault left: firewall (nftables): firewall rules lost: ")
    assert answer.err.endswith("; aistack network repair --restart\n")
    assert answer.err.count("\n") == 1
    document = net.host.run("network", "repair", "--json").json
    assert (document["exit_code"], document["mended"], len(document["left"])) == (8, [], 1)
    assert document["restart_may_help"] is True


@pytest.mark.usefixtures("root")
def test_the_command_does_not_wait_for_another_repair_for_ever(net: Net, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "_LOCK_WAIT", 0.1)
    (net.root / "run").mkdir(exist_ok=True)
    _flush(net)
    with (net.root / "run/network.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        answer = net.host.run("network", "repair", "--json")
    assert answer.code == 4
    assert answer.json["error"]["code"] == "lock-held"


@pytest.mark.parametrize("verb", ["check", "repair"])
def test_the_command_is_roots(net: Net, monkeypatch: pytest.MonkeyPatch, verb: str) -> None:
    monkeypatch.setattr("os.geteuid", lambda: 1000)
    answer = net.host.run("network", verb)
    assert answer.code == 2
    assert answer.err.endswith(f"; sudo aistack network {verb}\n")
