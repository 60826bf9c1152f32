"""The service's side of the fork server (fork_process.py): starts it, starts it again if it dies, and runs orders."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import sys
import time
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from aistack.services.aider_wrapper import order as orders

if TYPE_CHECKING:
    import signal
    from collections.abc import Callable

    from aistack.services.aider_wrapper.order import Order

log = logging.getLogger(__name__)

OUTPUT_KEPT = 64 * 1024
"""Bytes of the end of what aider prints."""
DRAIN_SECONDS = 2.0
"""How long a child's pipes are read after it has ended: a process that left its group may hold them open."""
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 30.0
"""Seconds before a fork server that died is started again."""

ENVIRONMENT = {
    # Else litellm asks the network what models cost.
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    # Their threads would not survive a fork, and nothing here computes.
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONDONTWRITEBYTECODE": "1",
}


class Unavailable(Exception):
    """The fork server is not there."""


class Run:
    """One run of aider."""

    def __init__(self, number: int, say: Callable[..., None]) -> None:
        self.number = number
        self._say = say
        self.output = bytearray()
        self.events: list[dict[str, Any]] = []
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        """The child's exit code, negative for a signal; an Unavailable if the fork server is gone."""
        self.pipes: list[asyncio.Future[None]] = []
        self._half = b""

    def kill(self, number: signal.Signals) -> None:
        """Signal aider and all that it started."""
        if not self.ended.done():
            self._say(do="kill", id=self.number, signal=int(number))

    async def wait(self) -> None:
        """Wait until it has ended, however, and all that it wrote is here."""
        await asyncio.wait([self.ended])
        await asyncio.wait(self.pipes, timeout=DRAIN_SECONDS)

    def printed(self, data: bytes) -> None:
        """Take in what the child printed."""
        self.output += data
        if len(self.output) > 2 * OUTPUT_KEPT:
            del self.output[:-OUTPUT_KEPT]

    def reported(self, data: bytes) -> None:
        """Take in what the child reported."""
        *lines, self._half = (self._half + data).split(b"\n")
        self.events.extend(json.loads(line) for line in lines)

    def text(self) -> str:
        """Return the end of what the child printed."""
        return self.output[-OUTPUT_KEPT:].decode(errors="replace").strip()

    @property
    def unanswered(self) -> bool:
        """Whether the model was not asked yet, or has not said a word since it was."""
        return not self.events or self.events[-1]["event"] == orders.ASKED

    def tokens(self) -> int | None:
        """Return what the endpoint counted; None if it did not say, or an answer is not complete."""
        asked = [event for event in self.events if event["event"] == orders.ASKED]
        answered: list[int | None] = [event["tokens"] for event in self.events if event["event"] == orders.ANSWERED]
        counted = [tokens for tokens in answered if tokens is not None]
        return sum(counted) if len(counted) == len(asked) else None


class _Reader(asyncio.Protocol):
    """Passes on what a pipe brings."""

    def __init__(self, take: Callable[[bytes], None], closed: asyncio.Future[None]) -> None:
        self._take = take
        self._closed = closed

    def data_received(self, data: bytes) -> None:
        self._take(data)

    def connection_lost(self, exc: Exception | None) -> None:
        del exc
        if not self._closed.done():
            self._closed.set_result(None)


class Forks:
    """The fork server, kept alive."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._environment = {**environment, **ENVIRONMENT}
        if "PYTHONPATH" in os.environ:
            self._environment["PYTHONPATH"] = os.environ["PYTHONPATH"]
        self._ready = asyncio.Event()
        self._connection: socket.socket | None = None
        self._process: asyncio.subprocess.Process | None = None
        self._runs: dict[int, Run] = {}
        self._number = 0
        self._keeping: asyncio.Task[None] | None = None
        self.starts = 0
        """How often it was started."""
        self.trouble = "aider is being imported"
        """Why it is not ready."""

    @property
    def ready(self) -> bool:
        """Whether a run can start now."""
        return self._ready.is_set()

    @property
    def pid(self) -> int | None:
        """The process id of the fork server."""
        return None if self._process is None else self._process.pid

    def start(self) -> None:
        """Start it in the background."""
        self._keeping = asyncio.create_task(self._keep())

    async def stop(self) -> None:
        """End it, and with it every run."""
        if self._keeping is not None:
            self._keeping.cancel()
            await asyncio.gather(self._keeping, return_exceptions=True)

    async def wait_ready(self) -> None:
        """Return when a run can start."""
        await self._ready.wait()

    async def run(self, order: Order) -> Run:
        """Start a run. One that the fork server does not live to start has ended with `Unavailable`."""
        self._number += 1
        run = Run(self._number, self._say)
        told = os.memfd_create("order", os.MFD_CLOEXEC)
        theirs = [told]
        try:
            with os.fdopen(os.dup(told), "wb") as file:
                file.write(order.encode())
            os.lseek(told, 0, os.SEEK_SET)
            theirs.append(await self._pipe(run, run.reported))
            theirs.append(await self._pipe(run, run.printed))
            self._runs[run.number] = run
            self._say(theirs, do="run", id=run.number)
            if self._connection is None:
                self._lose()
        finally:
            for descriptor in theirs:
                os.close(descriptor)
        return run

    @staticmethod
    async def _pipe(run: Run, take: Callable[[bytes], None]) -> int:
        """Have the run's pipe read; return its other end."""
        ours, theirs = os.pipe2(os.O_CLOEXEC)
        closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        await asyncio.get_running_loop().connect_read_pipe(
            lambda: _Reader(take, closed), os.fdopen(ours, "rb", buffering=0)
        )
        run.pipes.append(closed)
        return theirs

    def _say(self, descriptors: list[int] | None = None, **message: object) -> None:
        if self._connection is not None:
            # Whoever is gone is seen to be gone where its messages are read.
            with suppress(ConnectionError):
                socket.send_fds(self._connection, [json.dumps(message).encode()], descriptors or [])

    async def _keep(self) -> None:
        """Have one running, until it is cancelled."""
        pause = FIRST_PAUSE
        while True:
            began = time.monotonic()
            await self._serve_once()
            if time.monotonic() - began > LONGEST_PAUSE:
                pause = FIRST_PAUSE
            log.error("the fork server has ended", extra={"event": "forks.ended", "reason": self.trouble})
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _serve_once(self) -> None:
        """Start one, and take in its messages until it ends."""
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        ours.setblocking(False)  # noqa: FBT003
        module = "aistack.services.aider_wrapper.fork_process"
        with ours:
            with theirs:
                process = await asyncio.create_subprocess_exec(
                    *(sys.executable, "-m", module, str(theirs.fileno())),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=asyncio.subprocess.DEVNULL,
                    stderr=asyncio.subprocess.PIPE,
                    env=self._environment,
                    pass_fds=[theirs.fileno()],
                    start_new_session=True,
                )
            self.starts += 1
            self._process = process
            assert process.stderr is not None  # noqa: S101 (it is a pipe)
            complaints = asyncio.create_task(_last_line(process.stderr))
            try:
                self._connection = ours
                await self._listen(ours)
            finally:
                self._ready.clear()
                self._connection = None
                # Its socket is closed: it kills what it runs, and ends.
                ours.close()
                await _end(process)
                self.trouble = f"aider's fork server ended: {await complaints}"
                self._lose()

    async def _listen(self, connection: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while raw := await loop.sock_recv(connection, 4096):
            message = json.loads(raw)
            if message["event"] == "ready":
                log.info("aider is imported", extra=message | {"event": "forks.ready"})
                self._ready.set()
            elif message["event"] == "ended":
                run = self._runs.pop(message["id"])
                run.ended.set_result(message["status"])

    def _lose(self) -> None:
        """Fail what was running."""
        for run in self._runs.values():
            run.ended.set_exception(Unavailable(self.trouble))
            # Whoever asked may have left already.
            run.ended.exception()
        self._runs.clear()


async def _last_line(stream: asyncio.StreamReader) -> str:
    """Read to the end; return the last line."""
    last = b"it said nothing"
    while True:
        try:
            line = await stream.readline()
        except ValueError:
            # A line longer than the reader's limit.
            continue
        if not line:
            return last.decode(errors="replace").strip()[:500]
        last = line.strip() or last


async def _end(process: asyncio.subprocess.Process) -> None:
    """Wait for the fork server's end, and enforce it."""
    try:
        async with asyncio.timeout(1):
            await process.wait()
    except TimeoutError:
        with suppress(ProcessLookupError):
            process.kill()
        await process.wait()
