"""`aistack doctor`: every check, on a host where all is well and on one where one thing is not."""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import sqlite3
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fakehost
import pytest

from aistack.cli import doctor
from aistack.doctor import host as hosts
from aistack.doctor import installed, serving, system
from aistack.hooks import network

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

DEAD = network.Fault(network.NAME_SERVER_DEAD, "network local-ai", "it is gone")
UNIT = "podman-aistack-app.service"
TIMER = "aistack-health-5.timer"
IMAGE = fakehost.image(1)
LIVE = "localhost/aistack/app:live"
KEPT = f"localhost/aistack/app:{IMAGE[:12]}"

_SYSTEMCTL = r"""
case $1 in
--version) cat "$FAKE_HOST/systemd"; exit ;;
list-units) [ ! -f "$FAKE_HOST/failed" ] || cat "$FAKE_HOST/failed"; exit ;;
esac
verb=$1
"""
_PODMAN = r"""#!/bin/sh
case "$*" in
--version) cat "$FAKE_HOST/podman" ;;
info*) if [ -f "$FAKE_HOST/hangs" ]; then exec sleep 60; fi; cat "$FAKE_HOST/info" ;;
"image list"*) cat "$FAKE_HOST/images" ;;
"container inspect"*.Image*) cat "$FAKE_HOST/runs" ;;
"container inspect"*) cat "$FAKE_HOST/containers" ;;
exec*) [ ! -f "$FAKE_HOST/not-ready" ] ;;
esac
"""


def state(host: fakehost.FakeHost, unit: str, active: str = "active", **properties: str) -> None:
    """Let systemd say this of a unit."""
    by_others = dict.fromkeys(("aistack-network.service", *hosts.ON_DEMAND), "")
    wanted = {"aistack.target": "multi-user.target", **by_others}.get(unit, "aistack.target")
    fields = {"Id": unit, "LoadState": "loaded", "ActiveState": active, "SubState": "x", "Result": "success"}
    fields |= {"NeedDaemonReload": "no", "WantedBy": wanted, **properties}
    text = "".join(f"{key}={value}\n" for key, value in fields.items())
    (host.root / "units" / unit).write_text(text, encoding="utf-8")


@pytest.fixture
def listener() -> Iterator[int]:
    """A port of this host that this process holds."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.fixture
def well(host: fakehost.FakeHost, monkeypatch: pytest.MonkeyPatch, listener: int) -> fakehost.FakeHost:
    """A host on which everything is as it should be."""
    programs = host.root / "fake-programs"
    script = (programs / "systemctl").read_text(encoding="utf-8")
    (programs / "systemctl").write_text(script.replace("verb=$1\n", _SYSTEMCTL), encoding="utf-8")
    (programs / "podman").write_text(_PODMAN, encoding="utf-8")
    for name in ("netavark", "aardvark-dns"):
        (programs / name).touch()
    secret = host.root / "secret"
    secret.write_text("hunter2", encoding="utf-8")
    secret.chmod(0o400)
    app = fakehost.service(
        "app",
        probe=fakehost.probe("exec", None, command=["check"]),
        secrets=["KEY"],
        publish=[{"address": "127.0.0.1", "hostPort": listener, "containerPort": 80, "protocol": "tcp"}],
    )
    host.declare({"app": app}, secrets={"KEY": {"file": str(secret), "as": "env"}})
    (host.root / ".env").write_text("# Generated\nREDIS_HOST=redis\n", encoding="utf-8")
    for unit in ("aistack.target", "aistack-network.service", "aistack-secrets.path", TIMER, UNIT):
        state(host, unit)
    for unit in hosts.RECOVERY:
        state(host, unit, "inactive")
    release = host.release("app", 1, "good")
    host.verdict("app", phase="ready", release=release.id, readyAt=time.time())
    (host.root / "images").write_text(f"{LIVE}\t{IMAGE}\n{KEPT}\t{IMAGE}\n", encoding="utf-8")
    (host.root / "containers").write_text('aistack-app\t["REDIS_HOST=redis","KEY=hunter2"]\n', encoding="utf-8")
    (host.root / "runs").write_text(f"aistack-app\t{IMAGE}\n", encoding="utf-8")
    (host.root / "systemd").write_text("systemd 257 (257.9)\n", encoding="utf-8")
    (host.root / "podman").write_text("podman version 5.4.2\n", encoding="utf-8")
    backend = {"path": str(programs / "netavark"), "version": "netavark 1.14.0"}
    backend["dns"] = {"path": str(programs / "aardvark-dns"), "version": "aardvark-dns 1.14.0"}  # type: ignore[assignment]
    info(host, networkBackend="netavark", networkBackendInfo=backend, cgroupVersion="v2")
    sums(host, monkeypatch)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    monkeypatch.setattr(network, "check", lambda _: [])
    monkeypatch.setattr("aistack.hooks.ports.holder", lambda *_: Holder("aistack-app"))
    monkeypatch.setattr(serving, "PAUSE", 0.01)
    monkeypatch.setattr(system, "LITTLE_ROOM", 0)
    monkeypatch.setattr(system, "NO_ROOM", 0)
    return host


class Holder:
    """Who holds a port."""

    def __init__(self, container: str) -> None:
        self.container = container

    def __str__(self) -> str:
        return f"container {self.container}" if self.container else "nginx (pid 7)"


def info(host: fakehost.FakeHost, **changes: Any) -> None:  # noqa: ANN401  (any JSON value)
    """Let `podman info` say something else."""
    path = host.root / "info"
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {"host": {}}
    document = {
        "host": {**before["host"], **changes},
        "store": {"graphRoot": str(host.root), "graphDriverName": "overlay"},
    }
    path.write_text(json.dumps(document), encoding="utf-8")


def sums(host: fakehost.FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    """Record two installed files."""
    lines = ["# Installed by: /bin/true /some/bundle"]
    for name in ("one", "two"):
        (host.root / name).write_text(name, encoding="utf-8")
        lines.append(f"{hashlib.sha256(name.encode()).hexdigest()}  {host.root / name}")
    (host.root / "SHA256SUMS").write_text("\n".join(lines) + "\n", encoding="utf-8")
    monkeypatch.setattr(installed, "SUMS", str(host.root / "SHA256SUMS"))


def found(answer: fakehost.Answer) -> list[tuple[str, str, str, str]]:
    """What is not ok, as mark, area, words and fix."""
    return [
        (one["mark"], one["area"], one["what"], one["fix"]) for one in answer.json["findings"] if one["mark"] != "ok"
    ]


def test_where_all_is_well_every_area_is_ok(well: fakehost.FakeHost) -> None:
    answer = well.run("doctor", "--json")
    assert found(answer) == []
    assert answer.code == answer.json["exit_code"] == 0
    assert {one["area"] for one in answer.json["findings"]} == set(doctor.CHECKS)
    assert all(one["fix"] is None for one in answer.json["findings"])
    shown = well.run("doctor")
    assert shown.code == 0
    assert all(line.startswith("ok ") for line in shown.out.splitlines())
    assert re.search(r"\d+ ok, 0 to look at, 0 broken", shown.err)
    assert "hunter2" not in answer.out + shown.out


def future(host: fakehost.FakeHost) -> None:
    """Date the release ahead."""
    with sqlite3.connect(host.journal_path) as journal:
        journal.execute("UPDATE release SET created = 4102444800")
    journal.close()


def forget(host: fakehost.FakeHost) -> None:
    """Take the releases out of the journal."""
    with sqlite3.connect(host.journal_path) as journal:
        journal.execute("DELETE FROM current")
    journal.close()


def roll_back(host: fakehost.FakeHost) -> None:
    """Let another release be declared, and be bad."""
    host.release("app", 2, "bad", reason="it ended")
    host.verdict("app", phase="ready", release=1, readyAt=time.time())


def images(host: fakehost.FakeHost, text: str) -> None:
    """Let podman have these images."""
    (host.root / "images").write_text(text, encoding="utf-8")


def empty_secret(host: fakehost.FakeHost) -> None:
    """Leave a secret's file without its value."""
    (host.root / "secret").unlink()
    (host.root / "secret").touch(0o600)


RELEASE = f"release 1 (registry.example/app:1, image {IMAGE[:12]})"
AGAIN = "/bin/true /some/bundle"

BROKEN: dict[str, tuple[Callable[[fakehost.FakeHost], object], list[tuple[str, str, str, str]]]] = {
    "systemd is too old": (
        lambda h: (h.root / "systemd").write_text("systemd 252\n"),
        [("fail", "versions", "systemd 252 is too old: 254 is needed", "apt-get install systemd")],
    ),
    "podman is too old": (
        lambda h: (h.root / "podman").write_text("podman version 4.3.1\n"),
        [("fail", "versions", "podman 4.3.1 is too old: 5 is needed", "apt-get install podman")],
    ),
    "podman says nothing": (
        lambda h: (h.root / "podman").write_text(""),
        [("warn", "versions", "podman does not say its version", "podman --version")],
    ),
    "aardvark-dns is missing": (
        lambda h: (h.root / "fake-programs/aardvark-dns").unlink(),
        [
            (
                "fail",
                "versions",
                "aardvark-dns is missing: containers cannot find each other by name",
                "apt-get install aardvark-dns",
            )
        ],
    ),
    "another network backend": (
        lambda h: info(h, networkBackend="cni"),
        [("fail", "versions", "podman makes networks with cni, not netavark", "apt-get install netavark")],
    ),
    "old control groups": (
        lambda h: info(h, cgroupVersion="v1"),
        [
            (
                "warn",
                "versions",
                "control groups are v1, not v2: limits of memory and processors may not hold",
                "grubby --update-kernel=ALL --args=systemd.unified_cgroup_hierarchy=1",
            )
        ],
    ),
    "an installed file is edited": (
        lambda h: (h.root / "one").write_text("edited"),
        [("fail", "files", "{root}/one was edited since it was installed", AGAIN)],
    ),
    "an installed file is missing": (
        lambda h: (h.root / "two").unlink(),
        [("fail", "files", "{root}/two is missing", AGAIN)],
    ),
    "the .env is edited": (
        lambda h: (h.root / ".env").write_text("REDIS_HOST=mars\n"),
        [
            (
                "fail",
                "files",
                "{root}/.env is not what the manifest declares: REDIS_HOST is mars, declared redis",
                "render it again (nixos-rebuild switch, or bundle/install)",
            )
        ],
    ),
    "a unit is not installed": (
        lambda h: state(h, TIMER, "inactive", LoadState="not-found"),
        [("fail", "units", f"{TIMER} is not-found", f"systemctl cat {TIMER}; bundle/install")],
    ),
    "a unit was changed on disk": (
        lambda h: state(h, UNIT, NeedDaemonReload="yes"),
        [("warn", "units", f"{UNIT} was changed on disk, and systemd uses the old one", "systemctl daemon-reload")],
    ),
    "a unit is disabled": (
        lambda h: state(h, UNIT, WantedBy="podman-aistack-other.service"),
        [("fail", "units", f"{UNIT} is not enabled: it is not started at boot", f"systemctl enable {UNIT}")],
    ),
    "the stack is disabled": (
        lambda h: state(h, "aistack.target", WantedBy=""),
        [
            (
                "fail",
                "units",
                "aistack.target is not enabled: it is not started at boot",
                "systemctl enable aistack.target",
            )
        ],
    ),
    "a timer is not armed": (
        lambda h: state(h, TIMER, "inactive"),
        [("fail", "units", f"{TIMER} is not armed (inactive)", f"systemctl restart {TIMER}")],
    ),
    "changed secrets are not noticed": (
        lambda h: state(h, "aistack-secrets.path", "inactive"),
        [
            (
                "fail",
                "units",
                "aistack-secrets.path is not armed (inactive)",
                "systemctl restart aistack-secrets.path",
            )
        ],
    ),
    "what ends a deployment that was cut off is not installed": (
        lambda h: state(h, "aistack-recover-late.timer", "inactive", LoadState="not-found"),
        [
            (
                "fail",
                "units",
                "aistack-recover-late.timer is not-found",
                "systemctl cat aistack-recover-late.timer; bundle/install",
            )
        ],
    ),
    "what ends a deployment that was cut off is not started at boot": (
        lambda h: state(h, "aistack-recover.service", "inactive", WantedBy=""),
        [
            (
                "fail",
                "units",
                "aistack-recover.service is not enabled: it is not started at boot",
                "systemctl enable aistack-recover.service",
            )
        ],
    ),
    "what ends a deployment that was cut off failed": (
        lambda h: (h.root / "failed").write_text("aistack-recover.service loaded failed failed End of deployments\n"),
        [
            (
                "fail",
                "units",
                "aistack-recover.service failed",
                "journalctl -u aistack-recover.service -n 20; systemctl reset-failed aistack-recover.service",
            )
        ],
    ),
    "a rollback failed": (
        lambda h: (h.root / "failed").write_text("aistack-rollback@app.service loaded failed failed Last good\n"),
        [
            (
                "fail",
                "units",
                "aistack-rollback@app.service failed",
                "journalctl -u aistack-rollback@app.service -n 20; systemctl reset-failed aistack-rollback@app.service",
            )
        ],
    ),
    "a secret is missing": (
        lambda h: (h.root / "secret").unlink(),
        [
            (
                "fail",
                "secrets",
                "secret KEY: {root}/secret does not exist; create it (mode 0400)",
                "install -m 0400 /dev/stdin {root}/secret",
            )
        ],
    ),
    "a secret is empty": (
        empty_secret,
        [("fail", "secrets", "secret KEY: {root}/secret is empty", "install -m 0400 /dev/stdin {root}/secret")],
    ),
    "a secret is everybody's": (
        lambda h: (h.root / "secret").chmod(0o444),
        [("fail", "secrets", "secret KEY: everybody may use {root}/secret (mode 0444)", "chmod 0400 {root}/secret")],
    ),
    "a service is up and does not answer": (
        lambda h: (h.root / "not-ready").touch(),
        [
            (
                "fail",
                "services",
                "app is up and does not answer: not ready yet: check returned 1:",
                f"systemctl restart {UNIT}",
            )
        ],
    ),
    "the journal is gone": (
        lambda h: h.journal_path.unlink(),
        [
            (
                "fail",
                "releases",
                "{root}/state/releases.db is gone, and with it the history: there is nothing to roll back to",
                f"systemctl restart {UNIT}",
            )
        ],
    ),
    "the journal is empty": (
        lambda h: h.journal_path.write_bytes(b""),
        [
            (
                "fail",
                "releases",
                (
                    "{root}/state/releases.db is damaged (it is empty: what history it had is gone); running services "
                    "are not touched. Keep a copy and let the next start begin a new one: mv {root}/state/releases.db "
                    "{root}/state/releases.db.damaged"
                ),
                f"systemctl restart {UNIT}",
            )
        ],
    ),
    "the journal does not know what runs": (
        forget,
        [
            (
                "fail",
                "releases",
                "{root}/state/releases.db does not know what runs of app: the history is gone",
                f"systemctl restart {UNIT}",
            )
        ],
    ),
    "a release is from the future": (
        future,
        [("warn", "clock", f"{RELEASE} of app was made in the future (2100-01-01)", "timedatectl")],
    ),
    "another release runs than the declared one": (
        roll_back,
        [
            (
                "warn",
                "releases",
                (
                    f"app: {RELEASE} runs, not the declared release 2 (registry.example/app:2, image "
                    f"{fakehost.image(2)[:12]}) (bad: it ended)"
                ),
                "aistack releases app --log 2",
            )
        ],
    ),
    "the live tag is missing": (
        lambda h: images(h, f"{KEPT}\t{IMAGE}\n"),
        [("warn", "images", f"app: the tag {LIVE} is missing", f"podman tag {IMAGE[:12]} {LIVE}")],
    ),
    "the live tag is another image's": (
        lambda h: images(h, f"{KEPT}\t{IMAGE}\n{LIVE}\t{fakehost.image(3)}\n"),
        [
            (
                "warn",
                "images",
                f"app: the tag {LIVE} is image {fakehost.image(3)[:12]}, not that of {RELEASE}",
                f"podman tag {IMAGE[:12]} {LIVE}",
            )
        ],
    ),
    "a release's tag is missing": (
        lambda h: images(h, f"{LIVE}\t{IMAGE}\n"),
        [
            (
                "warn",
                "images",
                f"app: the tag {KEPT}, which keeps the image of {RELEASE}, is missing",
                f"podman tag {IMAGE[:12]} {KEPT}",
            )
        ],
    ),
    "the image is gone": (
        lambda h: images(h, ""),
        [
            (
                "fail",
                "images",
                f"app: the image of {RELEASE} is gone, and the next start needs it",
                "podman pull registry.example/app:1",
            )
        ],
    ),
    "a container runs another image": (
        lambda h: (h.root / "runs").write_text(f"aistack-app\t{fakehost.image(3)}\n"),
        [
            (
                "fail",
                "containers",
                f"app runs image {fakehost.image(3)[:12]}, and not that of {RELEASE}",
                f"systemctl restart {UNIT}",
            )
        ],
    ),
    "a container is gone": (
        lambda h: (h.root / "runs").write_text(""),
        [
            (
                "fail",
                "containers",
                f"{UNIT} is active, and podman knows no container aistack-app",
                f"systemctl restart {UNIT}",
            )
        ],
    ),
    "a container has another environment": (
        lambda h: (h.root / "containers").write_text('aistack-app\t["REDIS_HOST=mars"]\n'),
        [("warn", "environment", "app runs with REDIS_HOST=mars, not the declared redis", f"systemctl restart {UNIT}")],
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_what_is_broken_is_one_line_with_its_fix(well: fakehost.FakeHost, name: str) -> None:
    break_it, expected = BROKEN[name]
    break_it(well)
    wanted = [tuple(part.replace("{root}", str(well.root)) for part in one) for one in expected]
    answer = well.run("doctor", "--json")
    seen = [
        (mark, area, re.sub(r"(\d{4}-\d\d-\d\d) \d\d:\d\d\)", r"\1)", what), fix)
        for mark, area, what, fix in found(answer)
    ]
    assert seen == wanted
    assert answer.code == (8 if wanted[0][0] == "fail" else 0)
    shown = " ".join(well.run("doctor").out.split())
    for _, _, what, fix in found(answer):
        assert f"{what} fix: {fix}" in shown
    assert "hunter2" not in answer.out + shown


def test_faults_of_the_network(well: fakehost.FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    faults = [network.Fault(network.MISSING, "network local-ai", "podman does not know it"), DEAD]
    monkeypatch.setattr(network, "check", lambda _: faults)
    repair = "aistack network repair"
    assert found(well.run("doctor", "--json")) == [
        ("fail", "network", "network local-ai: network missing: podman does not know it", repair),
        ("fail", "network", "network local-ai: name server dead: it is gone", repair),
    ]


@pytest.mark.parametrize(
    ("who", "words"),
    [
        (Holder("aistack-other"), "{} of app is held by container aistack-other"),
        (Holder(""), "{} of app is held by nginx (pid 7)"),
        (None, "nobody listens at {} of app"),
    ],
)
def test_who_holds_a_published_port(
    well: fakehost.FakeHost, monkeypatch: pytest.MonkeyPatch, listener: int, who: Holder | None, words: str
) -> None:
    monkeypatch.setattr("aistack.hooks.ports.holder", lambda *_: who)
    fix = f"systemctl restart {UNIT}" if who is None else f"ss -lpn 'sport = :{listener}'"
    expected = ("fail", "ports", words.format(f"127.0.0.1:{listener}/tcp"), fix)
    assert found(well.run("doctor", "--json")) == [expected]


@pytest.mark.parametrize(("little", "no", "mark"), [(10**9, 0, "warn"), (10**9, 10**9, "fail")])
def test_little_room(well: fakehost.FakeHost, monkeypatch: pytest.MonkeyPatch, little: int, no: int, mark: str) -> None:
    monkeypatch.setattr(system, "LITTLE_ROOM", little)
    monkeypatch.setattr(system, "NO_ROOM", no)
    seen = found(well.run("doctor", "--json"))
    assert [(one[0], one[1]) for one in seen] == [(mark, "disk")] * 2
    assert all(re.search(r": \d+ MiB are free$", one[2]) for one in seen)
    assert seen[1][3] == "podman image prune --force"


@pytest.mark.parametrize(("bad", "expected"), [(2, 0), (3, 8)])
def test_one_late_answer_is_no_fault(well: fakehost.FakeHost, bad: int, expected: int) -> None:
    # As many bad answers as the probe allows, and then good ones.
    programs = well.root / "fake-programs/podman"
    text = programs.read_text(encoding="utf-8")
    answers = 'exec*) echo >> "$FAKE_HOST/asked"; [ "$(wc -l < "$FAKE_HOST/asked")" -gt ' + str(bad) + " ] ;;"
    programs.write_text(re.sub(r"^exec\*\).*$", answers, text, flags=re.MULTILINE), encoding="utf-8")
    assert well.run("doctor").code == expected


def test_services_that_do_not_serve(well: fakehost.FakeHost) -> None:
    state(well, UNIT, "failed", Result="start-limit-hit")
    well.verdict("app", phase="not-ready", reason="it said no", release=1)
    fix = f"systemctl reset-failed {UNIT}; systemctl start {UNIT}"
    words = "app is failed: it said no (it hit its start limit)"
    assert ("fail", "services", words, fix) in found(well.run("doctor", "--json"))
    state(well, UNIT, "inactive")
    assert ("fail", "services", "app is stopped", f"systemctl start {UNIT}") in found(well.run("doctor", "--json"))


def test_a_stopped_stack_is_said_to_be_stopped_and_no_more(
    well: fakehost.FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    for unit in ("aistack.target", "aistack-network.service", TIMER, UNIT):
        state(well, unit, "inactive")
    missing = network.Fault(network.MISSING, "network local-ai", "podman does not know it")
    monkeypatch.setattr(network, "check", lambda _: [missing])
    answer = well.run("doctor", "--json")
    assert found(answer) == [("warn", "units", "the stack is stopped", "systemctl start aistack.target")]
    assert answer.code == 0


def test_an_external_service_is_asked(well: fakehost.FakeHost, server: fakehost.Server) -> None:
    document = well.document
    well.declare({**document["services"], "far": fakehost.external(server.port)}, secrets=document["secrets"])
    assert found(well.run("doctor", "--json")) == []
    server.close()
    server.close = lambda: None  # type: ignore[method-assign]
    (one,) = found(well.run("doctor", "--json"))
    assert one[:2] == ("fail", "services")
    assert f"far at 127.0.0.1:{server.port}: refused" in one[2]


def test_whoever_is_not_root_is_told_so(well: fakehost.FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    answer = well.run("doctor", "--json")
    assert answer.code == 0
    (one,) = found(answer)
    assert one[:2] == ("warn", "rights")
    assert "secrets" in one[2]
    assert one[3] == "sudo aistack doctor"
    assert {one["area"] for one in answer.json["findings"]} == {"files", "units", "rights"}


@pytest.mark.parametrize("program", ["podman", "systemctl"])
@pytest.mark.parametrize("text", ["#!/bin/sh\nexit 1\n", "#!/bin/sh\necho '{[\"\\377'\n", None])
def test_a_program_that_is_no_use_is_said_and_the_rest_is_checked(
    well: fakehost.FakeHost, monkeypatch: pytest.MonkeyPatch, program: str, text: str | None
) -> None:
    path = well.root / "fake-programs" / program
    if text is None:
        path.unlink()
        monkeypatch.setenv("PATH", str(path.parent))
    else:
        path.write_text(text, encoding="utf-8")
    answer = well.run("doctor", "--json")
    assert answer.code == 8
    assert "Traceback" not in answer.err
    marks = {(one["area"], one["mark"]) for one in answer.json["findings"]}
    assert {("secrets", "ok"), ("files", "ok")} <= marks


def test_a_podman_that_hangs_is_waited_for_once(well: fakehost.FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    (well.root / "hangs").touch()
    monkeypatch.setattr(hosts, "ASK_TIMEOUT", 0.5)
    began = time.monotonic()
    answer = well.run("doctor", "--json")
    assert time.monotonic() - began < 20
    words = "could not be checked: `podman info --format json` took more than 0.5 s"
    fix = "podman info; systemctl is-system-running"
    assert found(answer) == [("fail", area, words, fix) for area in ("versions", "disk")]


@pytest.mark.parametrize("area", doctor.CHECKS)
def test_a_check_that_breaks_or_hangs_does_not_take_the_others_along(
    well: fakehost.FakeHost, monkeypatch: pytest.MonkeyPatch, area: str
) -> None:
    def breaks(_: hosts.Host) -> list[hosts.Finding]:
        raise RecursionError("quite unexpected\x1b")

    monkeypatch.setitem(doctor.CHECKS, area, breaks)
    answer = well.run("doctor", "--json")
    assert [(one[0], one[1]) for one in found(answer)] == [("fail", area)]
    assert found(answer)[0][2] == "could not be checked: unexpected RecursionError: quite unexpected\\x1b"
    assert "Traceback" not in answer.err

    ended = threading.Event()

    def hangs(_: hosts.Host) -> list[hosts.Finding]:
        ended.wait(30)
        return []

    monkeypatch.setitem(doctor.CHECKS, area, hangs)
    monkeypatch.setattr(doctor, "LIMIT", 2)
    began = time.monotonic()
    words = "could not be checked: no answer within 2 s"
    assert [(one[1], one[2]) for one in found(well.run("doctor", "--json"))] == [(area, words)]
    assert time.monotonic() - began < 25
    ended.set()


@pytest.mark.parametrize("content", ["{", '{"schemaVersion": 1}', '{"schemaVersion": 99}'])
def test_an_invalid_manifest_is_one_line_and_code_2(well: fakehost.FakeHost, content: str) -> None:
    well.manifest_path.write_text(content, encoding="utf-8")
    answer = well.run("doctor")
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.count("\n") == 1


def test_it_changes_nothing(well: fakehost.FakeHost) -> None:
    before = {
        path: path.read_bytes() for path in Path(well.root).rglob("*") if path.is_file() and "calls" not in path.name
    }
    well.run("doctor")
    assert {path: path.read_bytes() for path in before} == before
    verbs = {call.split()[1] for call in well.calls() if call.startswith("systemctl ")}
    assert verbs <= {"show", "list-units", "--version"}
