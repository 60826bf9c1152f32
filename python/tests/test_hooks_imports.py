"""The hot path: what a hook loads, and how long its process takes."""

from __future__ import annotations

import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import fakehost
import hookhost
import pytest
import scripted

if TYPE_CHECKING:
    from collections.abc import Callable

NAME_SERVER = scripted.own_address()
HOOK = Path(__file__).parents[1] / "aistack-hook"

# Each of these costs more than a hook does, or pulls in one that does.
HEAVY = {
    "ast",
    "asyncio",
    "concurrent.futures",
    "dataclasses",
    "email",
    "http.client",
    "importlib.metadata",
    "inspect",
    "logging",
    "pathlib",
    "random",
    "shutil",
    "ssl",
    "tempfile",
    "typing",
    "unittest",
    "urllib.parse",
    "urllib.request",
    "uuid",
}
# Only some ways through a hook need these; a wait for a proven release, the most frequent of all, needs none.
NOT_TO_WAIT = {"datetime", "hashlib", "sqlite3", "subprocess", "threading"}

# Runs the launcher as a unit does, and then says which modules that took.
_SPY = """
import os
import sys
sys.argv = sys.argv[1:]
leave = os._exit
def tell(code):
    sys.stdout.write(f"{code} {' '.join(sorted(sys.modules))}")
    sys.stdout.flush()
    leave(code)
os._exit = tell
exec(compile(open(sys.argv[0]).read(), sys.argv[0], "exec"), {"__name__": "__main__", "__file__": sys.argv[0]})
"""


@pytest.fixture
def modules(host: fakehost.FakeHost) -> Callable[[str], tuple[int, set[str]]]:
    """Run a hook in a process of its own; return its exit code and the modules it loaded."""

    def call(verb: str) -> tuple[int, set[str]]:
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", _SPY, HOOK, verb, "app"],
            env={
                "PATH": os.environ["PATH"],
                "AISTACK_MANIFEST": str(host.manifest_path),
                "FAKE_HOST": str(host.root),
            },
            capture_output=True,
            text=True,
            check=False,
            timeout=30,
        )
        code, *loaded = done.stdout.split()
        return int(code), set(loaded)

    return call


def a_working_stack(host: fakehost.FakeHost, port: int) -> None:
    """Declare a service that needs two others, all of which answer at `port`; it runs its first good release."""
    elsewhere = {"one": fakehost.external(port, "http"), "two": fakehost.external(port, "http")}
    app = fakehost.service("app", dependsOn=["one", "two"], probe=fakehost.probe("exec", None, command=["true"]))
    host.declare({"app": app, **elsewhere})
    host.release("app", 1, "good")
    (host.root / "images").write_text(f"registry.example/app:1\t{fakehost.image(1)}\n")


@pytest.mark.parametrize("verb", ["start-pre", "await-ready", "rollback", "bless", "retry"])
def test_a_hook_loads_the_standard_library_alone(
    host: fakehost.FakeHost, modules: Callable[[str], tuple[int, set[str]]], verb: str
) -> None:
    with scripted.Tcp(scripted.says(b"HTTP/1.1 200 OK\r\n\r\n")) as server:
        a_working_stack(host, server.port)
        host.unit("app", "failed" if verb in {"rollback", "retry"} else "active")
        host.verdict("app", phase="ready", release=1, at=0, checks=[])
        code, loaded = modules(verb)
    assert code == 0
    ours = {name for name in loaded if name.partition(".")[0] == "aistack"}
    assert ours >= {"aistack.hooks.main", "aistack.hooks.manifest"}
    assert {name for name in ours if not name.startswith("aistack.hooks")} == {"aistack"}
    foreign = {name for name in loaded - ours if name.partition(".")[0] not in sys.stdlib_module_names | {"__main__"}}
    assert foreign == set()
    assert loaded & HEAVY == set()


def test_waiting_for_a_proven_release_loads_next_to_nothing(
    host: fakehost.FakeHost, modules: Callable[[str], tuple[int, set[str]]]
) -> None:
    with hookhost.name_server(NAME_SERVER, scripted.zone(app="127.0.0.1")), web() as server:
        wait_for_app(host, server.port)
        code, loaded = modules("await-ready")
    assert code == 0
    assert json.loads((host.root / "run/app/verdict.json").read_text())["phase"] == "ready"
    assert loaded & NOT_TO_WAIT == set()


def web() -> scripted.Tcp:
    """Return a web server that is ready."""
    return scripted.Tcp(scripted.says(b"HTTP/1.1 200 OK\r\n\r\n"))


def wait_for_app(host: fakehost.FakeHost, port: int) -> None:
    """Declare a container that answers at this port of the loopback, as start-pre leaves it: its release is proven."""
    document = {"app": fakehost.service("app", probe=fakehost.probe("http", port))}
    network = {**fakehost.manifest(host.root, {})["network"], "gateway": NAME_SERVER}
    host.declare(document, network=network)
    host.verdict("app", phase="starting", release=1, proven=True, at=0, checks=[])


def test_what_a_wait_costs(host: fakehost.FakeHost, capsys: pytest.CaptureFixture[str]) -> None:
    environment = {"PATH": os.environ["PATH"], "AISTACK_MANIFEST": str(host.manifest_path)}

    def spent(*command: str | Path) -> tuple[float, float]:
        """Milliseconds of processor time, and from the start to the end."""
        before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        subprocess.run([sys.executable, "-I", *command], env=environment, check=True, timeout=30)
        after, ended = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        busy = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        return 1000 * busy, 1000 * (ended - began)

    with hookhost.name_server(NAME_SERVER, scripted.zone(app="127.0.0.1")), web() as server:
        wait_for_app(host, server.port)
        # In turn, so that a busy machine is as unfair to one as to the other.
        pairs = [(spent("-S", HOOK, "await-ready", "app"), spent("-c", "pass")) for _ in range(20)]
    with capsys.disabled():
        for number, what in enumerate(("processor time", "elapsed time")):
            hook = statistics.median(ours[number] for ours, _ in pairs)
            bare = statistics.median(theirs[number] for _, theirs in pairs)
            line = f"{what} of await-ready, service ready: {hook:.1f} ms; of bare python -I: {bare:.1f} ms"
            sys.stdout.write(f"\n{line}; ratio {hook / bare:.2f} (aim 2.5, medians of 20)")
        sys.stdout.write("\n")
