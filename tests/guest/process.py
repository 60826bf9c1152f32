"""The only place that runs commands on the host."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from guest.errors import CommandFailed, GuestError

DEFAULT_TIMEOUT = 60.0
"""Seconds a host command may take unless its caller says otherwise."""


@dataclass(frozen=True)
class Result:
    """How a command ended. `timed_out` means that it was killed; its exit code is then 124."""

    code: int
    out: str
    err: str = ""
    timed_out: bool = False


def run(
    command: Sequence[str | Path],
    *,
    timeout: float = DEFAULT_TIMEOUT,
    stdin: bytes | IO[bytes] | None = None,
    env: Mapping[str, str] | None = None,
    stderr: IO[bytes] | int = subprocess.PIPE,
    cwd: Path | None = None,
) -> Result:
    """Run `command` in a process group of its own; kill the whole group after `timeout` seconds."""
    feed = stdin if isinstance(stdin, bytes) else None
    source: IO[bytes] | int = subprocess.DEVNULL
    if feed is not None:
        source = subprocess.PIPE
    elif stdin is not None and not isinstance(stdin, bytes):
        source = stdin
    process = subprocess.Popen(
        [str(part) for part in command],
        stdin=source,
        stdout=subprocess.PIPE,
        stderr=stderr,
        env={**os.environ, **env} if env is not None else None,
        cwd=cwd,
        process_group=0,
    )
    timed_out = False
    try:
        out, err = process.communicate(feed, timeout=timeout)
    except subprocess.TimeoutExpired:
        timed_out = True
        kill_group(process.pid)
        out, err = process.communicate()
    except BaseException:
        kill_group(process.pid)
        process.wait()
        raise
    return Result(
        code=124 if timed_out else process.returncode,
        out=out.decode(errors="replace"),
        err=(err or b"").decode(errors="replace"),
        timed_out=timed_out,
    )


NO_NETWORK = re.compile(
    "Temporary failure|Could not resolve|Could not connect|Failed to fetch|Network is unreachable"
    "|NewConnectionError|Name or service not known|Connection timed out|Max retries exceeded"
)


def fetch(what: str, command: Sequence[str | Path], *, timeout: float, log: Path) -> None:
    """Run a command that downloads `what`; where it failed for want of a network, say so plainly."""
    try:
        check(command, timeout=timeout, log=log, env={"LC_ALL": "C.UTF-8"})
    except CommandFailed as error:
        for line in log.read_text(errors="replace").splitlines():
            if NO_NETWORK.search(line):
                raise GuestError(
                    f"{what} cannot be downloaded: is there a network?",
                    why=line.strip(),
                    next_step=f"check the network, its name servers and http_proxy; the rest is in {log}",
                ) from error
        raise


def kill_group(leader: int) -> None:
    """Kill a process group, which may be gone already."""
    try:
        os.killpg(leader, signal.SIGKILL)
    except ProcessLookupError:
        return


def check(
    command: Sequence[str | Path],
    *,
    timeout: float = DEFAULT_TIMEOUT,
    stdin: bytes | IO[bytes] | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    log: Path | None = None,
) -> str:
    """Run `command` and return what it printed; raise CommandFailed with its last lines if it fails.

    With `log`, standard error goes to the end of that file.
    """
    if log is None:
        result = run(command, timeout=timeout, stdin=stdin, env=env, cwd=cwd)
        tail = result.err or result.out
    else:
        with log.open("ab") as file:
            result = run(command, timeout=timeout, stdin=stdin, env=env, cwd=cwd, stderr=file)
        tail = log.read_text(errors="replace")
    if result.code != 0:
        shown = shlex.join(str(part) for part in command)
        how = f"no end after {timeout:.0f} s" if result.timed_out else f"exit code {result.code}"
        last = "\n".join(tail.strip().splitlines()[-15:])
        raise CommandFailed(
            f"a command failed: {shown[:300]}",
            why=f"{how}\n{last}",
            next_step=f"read {log}" if log else "run it by hand",
        )
    return result.out
