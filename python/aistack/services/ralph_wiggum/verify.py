"""Verify commands: run in the workspace, bounded, in a process group of their own, the end of their output kept.

They run with the rights of Ralph's own process, without its environment: whoever may submit a task may run commands in
Ralph's container. docs/ralph.md says who that should be.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import tempfile
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

KEPT = 4096  # bytes of a command's output, from its end
_DRAIN = 2.0  # seconds for the rest of the output once the whole group is gone
_QUIET = {"PYTHONDONTWRITEBYTECODE": "1"}  # a cache in the workspace would look like progress


async def run_all(commands: Sequence[str], workspace: Path, *, seconds: float) -> list[dict[str, Any]]:
    """Run each command, and say what became of it; the rest is not run after one that fails.

    `seconds` bounds each. If this is cancelled, the command's group is killed before it returns.
    """
    found: list[dict[str, Any]] = []
    for command in commands:
        found.append(await _run(command, workspace, seconds))
        if not found[-1]["ok"]:
            break
    return found


async def _run(command: str, workspace: Path, seconds: float) -> dict[str, Any]:
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="verify-") as home, contextlib.ExitStack() as closing:
        # Not asyncio's own pipe: its wait() ends when that is closed, which a process in the background can put off.
        reading_end, writing_end = os.pipe()
        output = _Tail()
        transport, _ = await asyncio.get_running_loop().connect_read_pipe(
            lambda: output, closing.enter_context(os.fdopen(reading_end, "rb", 0))
        )
        closing.callback(transport.close)
        try:
            process = await asyncio.create_subprocess_exec(
                "/bin/sh",
                "-c",
                command,
                cwd=workspace,
                env={
                    "PATH": os.environ.get("PATH", os.defpath),
                    "HOME": home,
                    "TMPDIR": home,
                    "LANG": "C.UTF-8",
                    "CI": "true",
                    **_QUIET,
                },
                stdin=asyncio.subprocess.DEVNULL,
                stdout=writing_end,
                stderr=writing_end,
                start_new_session=True,
            )
        finally:
            os.close(writing_end)
        code: int | None = None
        try:
            async with asyncio.timeout(seconds):
                code = await process.wait()
        except TimeoutError:
            pass
        finally:
            # Whatever it left in the background would go on in the workspace.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_DRAIN):
                    await output.ended.wait()
        kept = output.kept
    if code is None:
        kept += f"\n[stopped after {seconds:g} s]".encode()
    return {
        "command": command,
        "ok": code == 0,
        "exit_code": code,
        "seconds": round(time.monotonic() - began, 3),
        "output": kept.decode(errors="replace").replace("\x00", "\ufffd"),
    }


class _Tail(asyncio.Protocol):
    """Keeps the end of what comes through a pipe."""

    def __init__(self) -> None:
        self.kept = b""
        self.ended = asyncio.Event()

    def data_received(self, data: bytes) -> None:
        """Keep it, and forget what is too long ago."""
        self.kept = (self.kept + data)[-KEPT:]

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  (asyncio's signature)
        """All that could write has ended."""
        self.ended.set()
