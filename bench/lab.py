"""What the measurements share: a guest with the reference stack, and the helpers of the scenarios."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from guest import images, installed, paths, root, scenario, stack
from guest.deadline import Deadline
from guest.guest import Guest
from guest.log import Log
from guest.machine import Machine

HERE = Path(__file__).parent
TINY = "localhost/bench/tiny:1"
STAMPS = "/run/bench"  # in the guest; /stamps in a container
MOUNT = f"--volume={STAMPS}:/stamps"
DERIVED = "AISTACK_MANIFEST=/var/lib/derived/stack.json"  # for the command line, once services are derived
ALL_CPU = "/sys/fs/cgroup/cpu.stat"  # of the whole guest: every process, systemd and the containers among them


class Lab:
    """One guest. Names of tests/nixos/_prelude.py are found in `helpers`."""

    def __init__(self, machine: Machine, helpers: dict[str, Any]) -> None:
        self.machine = machine
        self._helpers = helpers

    def call(self, name: str, *arguments: Any, **named: Any) -> Any:
        """Call a helper of the scenarios."""
        return self._helpers[name](*arguments, **named)

    def run(self, command: str, timeout: int = 120) -> str:
        """Run a command in the guest that has to work; returns what it printed."""
        return self.machine.succeed(command, timeout=timeout)

    def program(self, name: str, *arguments: str, timeout: int = 300) -> Any:
        """Run one of the programs beside this file in the guest; returns the JSON it printed."""
        self.machine.copy_from_host(str(HERE / name), f"/root/{name}")
        return json.loads(self.run(f"python3 -I /root/{name} {' '.join(arguments)}", timeout))

    def forget(self, delay: float = 0.0) -> None:
        """Remove all stamps; from now on the tiny application is ready `delay` seconds after its start."""
        self.run(f"install -d -m 1777 {STAMPS}; rm -f {STAMPS}/*; echo {delay} > {STAMPS}/delay")

    def tiny(self) -> None:
        """Have the tiny application's image."""
        self.forget()
        if self.machine.execute(f"podman image exists {TINY}")[0] != 0:
            source = (HERE / "tiny.py").read_text(encoding="utf-8")
            self.call("build_image", TINY, source)

    def stamp(self, name: str, what: str, timeout: int = 60) -> float:
        """When the tiny application `name` did `what`: seconds since 1970. Waits until it has."""
        return int(self.machine.wait_until_succeeds(f"cat {STAMPS}/{name}.{what}", timeout=timeout)) / 1e9

    def derive(self, services: dict[str, dict[str, Any]]) -> None:
        """Services of ours that run the tiny application; `services` says what differs in their manifest entries."""
        whole = {}
        for name, differs in services.items():
            environment = {"NAME": name, **differs.pop("environment", {})}
            whole[name] = {"image": {"ref": TINY}, "environment": environment, "stackEnvironment": False, **differs}
        self.call("derive", whole, MOUNT)

    def reference(self) -> None:
        """Start the reference stack alone, as rendered, and wait until its releases are good."""
        self.run("rm -rf /run/systemd/system/aistack.target.wants /run/systemd/system/podman-aistack-*.service")
        self.call("reset_manifest")
        self.run("systemctl reset-failed; systemctl start aistack.target podman-aistack-app.service")
        for service in self._helpers["SERVICES"]:
            self.call("wait_until_good", service)

    def timed(self, command: str, timeout: int = 120) -> tuple[float, float]:
        """Run a command that has to work; returns when it began and when it ended, in seconds since 1970."""
        out = self.run(f"began=$EPOCHREALTIME; {{ {command}; }} >&2; echo $began $EPOCHREALTIME", timeout)
        began, ended = out.split()
        return float(began), float(ended)

    def good(self, *services: str) -> None:
        """Wait until the releases that run have earned their good: the usual start is one of a proven release."""
        for service in services:
            wanted = f'any(.releases[]; .service == "{service}" and .current and .state == "good")'
            command = f"{DERIVED} aistack releases --json | jq --exit-status '{wanted}' >/dev/null"
            self.machine.wait_until_succeeds(command, timeout=60)

    def cpu(self, file: str = ALL_CPU) -> float:
        """Seconds of processor time that a cgroup has used, from its cpu.stat."""
        return int(self.run(f"sed -n 's/^usage_usec //p' {file}")) / 1e6

    def remove_containers(self) -> None:
        """Remove all containers at once."""
        self.run("podman rm --all --force --time 0 >&2")


@contextmanager
def opened(time_limit: float, name: str = "bench", which: str = images.REFERENCE) -> Iterator[Lab]:
    """A guest in which a stack is installed and not started; removed at the end. One of each name at a time."""
    guest = Guest(f"{name}-{os.getpid()}")
    log = Log(paths.cache() / "logs" / f"{name}.log")
    machine = Machine(guest, log, Deadline(time_limit))
    root.ensure()
    images.ensure(which)
    with root.entry().in_use() as lower, images.entry(which).in_use() as storage:
        try:
            guest.create(lower, storage)
            units = installed.place(guest, stack.rendered(which))
            machine.start()
            machine.wait_for_unit("basic.target")
            installed.enable(machine, units)
            helpers = scenario.names(machine, log)
            prelude = paths.SCENARIOS / scenario.PRELUDE
            exec(compile(prelude.read_text(encoding="utf-8"), str(prelude), "exec"), helpers)
            yield Lab(machine, helpers)
        finally:
            log.line(scenario.JOURNAL_FOLLOWS)
            log.line(machine.journal_tail(100_000) if guest.folder.is_dir() else "(none)")
            guest.destroy()
            log.close()
