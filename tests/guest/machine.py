"""A guest with the interface of the NixOS test driver's `machine`, so one script serves both.

Method names, arguments and results follow nixpkgs' nixos/lib/test-driver; its documentation is the
reference: https://nixos.org/manual/nixos/stable/#ssec-machine-objects
"""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from guest.deadline import Deadline, wait_until
from guest.errors import CommandFailed, GuestError, WaitTimedOut
from guest.guest import Guest
from guest.log import Log
from guest.process import run

JOURNAL_LINES = 40
"""Lines of the guest's journal that a failure shows."""


class Machine:
    """Drives one guest. Times are in seconds; every wait is bounded by the scenario's own time."""

    def __init__(self, guest: Guest, log: Log, deadline: Deadline, name: str = "machine") -> None:
        self.name = name
        self._guest = guest
        self._log = log
        self._deadline = deadline

    # Life

    @property
    def booted(self) -> bool:
        """Whether the guest is on."""
        return self._guest.running

    def is_up(self) -> bool:
        """Return whether the guest is on."""
        return self.booted

    def start(self, allow_reboot: bool = False) -> None:
        """Boot the guest; does nothing if it is on."""
        del allow_reboot
        if not self.booted:
            self._has_time()
            with self.nested("starting the guest"):
                self._guest.start()

    def shutdown(self) -> None:
        """Power the guest off in an orderly way."""
        if self.booted:
            with self.nested("shutting the guest down"):
                self._run(["systemctl", "--no-block", "poweroff"], 10)
                self.wait_for_shutdown()

    def wait_for_shutdown(self) -> None:
        """Wait until the guest has powered itself off."""
        self._guest.wait_off(self._deadline.bound(120))

    def crash(self) -> None:
        """Pull the plug: kill every process of the guest at once."""
        with self.nested("pulling the plug"):
            self._guest.kill()

    def reboot(self) -> None:
        """Power off in an orderly way and boot again."""
        self.shutdown()
        self.start()

    # Commands

    def execute(
        self,
        command: str,
        check_return: bool = True,
        check_output: bool = True,
        timeout: int | None = 900,
    ) -> tuple[int, str]:
        """Run a bash command; return its exit code and standard output.

        124 when it did not end in time. Its standard error goes to the log. Without
        `check_output` nothing is waited for: (-2, "") as in the NixOS driver; without
        `check_return` the exit code is -1.
        """
        shell = ["bash", "-c", f"set -euo pipefail; {command}"]
        if not check_output:
            subprocess.Popen(
                self._guest.enter(shell),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            return (-2, "")
        code, out = self._run(shell, self._deadline.bound(timeout))
        return (code if check_return else -1, out)

    def _run(self, command: list[str], timeout: float) -> tuple[int, str]:
        self._has_time()
        with tempfile.TemporaryFile() as errors:
            result = run(self._guest.enter(command), timeout=timeout, stderr=errors)
            errors.seek(0)
            text = errors.read().decode(errors="replace")
        if text.strip():
            self._log.line(text)
        return result.code, result.out

    def _has_time(self) -> None:
        if self._deadline.left <= 0:
            raise WaitTimedOut(f"no time left: the scenario has {self._deadline.seconds:.0f} s")

    def succeed(self, *commands: str, timeout: int | None = None) -> str:
        """Run bash commands that have to work; return all they printed."""
        output = ""
        for command in commands:
            with self.nested(f"must succeed: {command}"):
                code, out = self.execute(command, timeout=timeout)
                if code != 0:
                    self._log.line(out)
                    raise self._failed(f"command `{command}` failed (exit code {code})", out)
                output += out
        return output

    def fail(self, *commands: str, timeout: int | None = None) -> str:
        """Run bash commands that have to fail; return all they printed."""
        output = ""
        for command in commands:
            with self.nested(f"must fail: {command}"):
                code, out = self.execute(command, timeout=timeout)
                if code == 0:
                    raise self._failed(f"command `{command}` unexpectedly succeeded", out)
                output += out
        return output

    def wait_until_succeeds(self, command: str, timeout: int = 900) -> str:
        """Repeat a bash command until it works; return what it printed then."""
        return self._repeat(command, timeout, "success", lambda code: code == 0)

    def wait_until_fails(self, command: str, timeout: int = 900) -> str:
        """Repeat a bash command until it fails; return what it printed then."""
        return self._repeat(command, timeout, "failure", lambda code: code != 0)

    def _repeat(self, command: str, timeout: float, wanted: str, good: Callable[[int], bool]) -> str:
        out = ""
        code = 0

        def attempt(last: bool) -> bool:
            nonlocal code, out
            del last
            if self._deadline.left <= 0:
                return False
            code, out = self.execute(command, timeout=int(timeout) + 1)
            return good(code)

        with self.nested(f"waiting for {wanted}: {command}"):
            if not wait_until(attempt, self._deadline.bound(timeout)):
                raise self._failed(
                    f"command `{command}` did not end in {wanted} within {timeout:.0f} s (last exit code {code})",
                    out,
                )
        return out

    def _failed(self, what: str, output: str) -> CommandFailed:
        journal = self.journal_tail()
        self._log.line(f"the journal's end:\n{journal}")
        printed = "\n".join(output.strip().splitlines()[-20:])
        return CommandFailed(what, why=f"it printed:\n{printed}" if printed else "it printed nothing")

    def journal_tail(self, lines: int = JOURNAL_LINES) -> str:
        """Return the end of the guest's journal, whether the guest is on or not."""
        shown = ["--no-pager", "--output=short-precise", f"--lines={lines}"]
        if self.booted:
            return run(self._guest.enter(["journalctl", *shown]), timeout=20).out
        files = self._guest.upper / "var/log/journal"
        return run(["journalctl", f"--directory={files}", *shown], timeout=20).out

    # systemd

    def systemctl(self, q: str, user: str | None = None) -> tuple[int, str]:
        """Run `systemctl q`; return its exit code and standard output."""
        if user is not None:
            raise GuestError("the guest runs no user managers", next_step="drop user=…")
        return self.execute(f"systemctl {q}")

    def get_unit_info(self, unit: str, user: str | None = None) -> dict[str, str]:
        """Return all properties of a unit."""
        code, out = self.systemctl(f"--no-pager show {shlex.quote(unit)}", user)
        if code != 0:
            raise self._failed(f"cannot read the properties of {unit}", out)
        pairs = (line.partition("=") for line in out.splitlines() if "=" in line)
        return {key: value for key, _, value in pairs}

    def get_unit_property(self, unit: str, property: str, user: str | None = None) -> str:
        """Return one property of a unit."""
        info = self.get_unit_info(unit, user)
        if property not in info:
            raise GuestError(f"unit {unit} has no property {property}")
        return info[property]

    def wait_for_unit(self, unit: str, user: str | None = None, timeout: int = 900) -> None:
        """Wait until a unit is active; fail at once when it has failed or can never become so."""

        def active(last: bool) -> bool:
            del last
            if self._deadline.left <= 0:
                return False
            info = self.get_unit_info(unit, user)
            state = info["ActiveState"]
            if state == "failed":
                raise self._failed(f'unit "{unit}" reached state "failed"', self._status(unit))
            if state == "inactive" and "jobs" in (jobs := self._jobs()) and not jobs["jobs"]:
                # No job is left that could start it; look again, as it may just have ended.
                state = self.get_unit_property(unit, "ActiveState", user)
                if state == "inactive":
                    raise self._failed(
                        f'unit "{unit}" is inactive and there are no pending jobs',
                        self._status(unit),
                    )
            return state == "active"

        with self.nested(f"waiting for unit {unit}"):
            if not wait_until(active, self._deadline.bound(timeout)):
                raise self._failed(f'unit "{unit}" was not active within {timeout} s', self._status(unit))

    def _jobs(self) -> dict[str, list[str]]:
        code, out = self.systemctl("list-jobs --full --no-legend --plain")
        if code != 0:
            return {}
        return {"jobs": [line for line in out.splitlines() if line and "No jobs" not in line]}

    def _status(self, unit: str) -> str:
        return self.systemctl(f"status --no-pager --lines=20 {shlex.quote(unit)}")[1]

    def require_unit_state(self, unit: str, require_state: str = "active") -> None:
        """Fail unless the unit is in the given state now."""
        state = self.get_unit_property(unit, "ActiveState")
        if state != require_state:
            raise self._failed(f'expected unit "{unit}" to be {require_state}, it is {state}', self._status(unit))

    def start_job(self, jobname: str, user: str | None = None) -> tuple[int, str]:
        """Run `systemctl start`."""
        return self.systemctl(f"start {jobname}", user)

    def stop_job(self, jobname: str, user: str | None = None) -> tuple[int, str]:
        """Run `systemctl stop`."""
        return self.systemctl(f"stop {jobname}", user)

    # Ports and files

    def wait_for_open_port(self, port: int, addr: str = "localhost", timeout: int = 900) -> None:
        """Wait until something takes TCP connections on a port of the guest."""
        self._repeat(_connect(port, addr), timeout, "success", lambda code: code == 0)

    def wait_for_closed_port(self, port: int, addr: str = "localhost", timeout: int = 900) -> None:
        """Wait until nothing takes TCP connections on a port of the guest."""
        self._repeat(_connect(port, addr), timeout, "failure", lambda code: code != 0)

    def wait_for_file(self, filename: str, timeout: int = 900) -> None:
        """Wait until a file is there."""
        self.wait_until_succeeds(f"test -e {shlex.quote(filename)}", timeout)

    def copy_from_host(self, source: str, target: str) -> None:
        """Copy a file or a folder of the host into the guest; `target` is its whole new path."""
        path = Path(source)
        parent, name = os.path.split(target.rstrip("/"))
        self.nested_line(f"copying {source} to {target}")
        with subprocess.Popen(
            ["tar", "-C", path.parent, "-c", f"--transform=flags=r;s|^{path.name}|{name}|", path.name],
            stdout=subprocess.PIPE,
        ) as tar:
            unpack = f"mkdir -p {shlex.quote(parent or '/')} && tar -C {shlex.quote(parent or '/')} -x --no-same-owner"
            result = run(
                self._guest.enter(["bash", "-euc", unpack]),
                stdin=tar.stdout,
                timeout=self._deadline.bound(120),
            )
        if result.code != 0 or tar.returncode != 0:
            raise CommandFailed(f"cannot copy {source} to {target} in the guest", why=result.err)

    def copy_from_host_via_shell(self, source: str, target: str) -> None:
        """Copy a file of the host into the guest."""
        self.copy_from_host(source, target)

    # The log

    def log(self, msg: str) -> None:
        """Write a line to the scenario's log."""
        self._log.line(msg)

    def nested_line(self, msg: str) -> None:
        """Write a line with the machine's name to the scenario's log."""
        self._log.line(f"{self.name}: {msg}")

    def nested(self, msg: str) -> AbstractContextManager[None]:
        """Write a line, and what happens inside below it."""
        return self._log.nested(f"{self.name}: {msg}")


@contextmanager
def subtest(log: Log, name: str) -> Iterator[None]:
    """Name a part of a scenario; its name is what a failure shows."""
    with log.nested(f"subtest: {name}"):
        try:
            yield
        except Exception as error:
            log.line(f"FAILED in subtest: {name}")
            error.add_note(f"in subtest: {name}")
            raise


def _connect(port: int, addr: str) -> str:
    return f"exec 3<>/dev/tcp/{shlex.quote(addr)}/{port}"
