"""The fork server's process: it imports aider once, and each run is a child forked from it.

`python -m aistack.services.aider_wrapper.fork_process DESCRIPTOR`, where the descriptor is a sequenced-packet socket to
the service. It is single-threaded whenever it forks. It says `ready` once, and then:

- `{"do": "run", "id": N}` with three descriptors (the order, the report, the output) starts a run; it answers
  `{"event": "started", "id": N, "pid": P}`;
- `{"do": "kill", "id": N, "signal": S}` signals the run's process group;
- `{"event": "ended", "id": N, "status": CODE}` says that the child is gone, and all of its process group with it; a
  negative status is the signal that ended it.

When the service is gone, so is its socket: then every run is killed, and this process ends.
"""

from __future__ import annotations

import ctypes
import gc
import io
import json
import os
import selectors
import signal
import socket
import sys
import threading
import time
import traceback
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

from aistack.services.aider_wrapper.order import Order
from aistack.services.aider_wrapper.report import Report

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
WARM_UP_ANSWER = (
    {"index": 0, "delta": {"role": "assistant", "content": "warm"}, "finish_reason": None},
    {"index": 0, "delta": {}, "finish_reason": "stop"},
)
FAILED = 70
"""Exit code of a child that failed in a way that nobody thought of (EX_SOFTWARE of sysexits.h)."""


def prctl(option: int, value: int) -> None:
    """Set an attribute of this process.

    Raises:
        OSError: the kernel does not let it.
    """
    if ctypes.CDLL(None, use_errno=True).prctl(option, value, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl")


class _Endpoint(BaseHTTPRequestHandler):
    """Answers one chat completion, as a model's endpoint does."""

    def do_POST(self) -> None:
        """Stream a short answer."""
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        base = {"id": "warm", "object": "chat.completion.chunk", "created": 1, "model": "warm"}
        usage = {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2}
        parts = [{**base, "choices": [choice]} for choice in WARM_UP_ANSWER]
        for part in (*parts, {**base, "choices": [], "usage": usage}):
            self.wfile.write(b"data: " + json.dumps(part).encode() + b"\n\n")
        self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Say nothing."""


def warm_up() -> None:
    """Import aider, and all that it only imports and builds with its first message.

    Raises:
        RuntimeError: a thread is left, so that forking would not be safe.
    """
    from litellm.litellm_core_utils.thread_pool_executor import executor

    from aistack.services.aider_wrapper import agent

    # It would log each call in threads of its own, for nobody.
    executor.submit = lambda *_, **__: None
    server = HTTPServer(("127.0.0.1", 0), _Endpoint)
    serving = threading.Thread(target=server.handle_request)
    serving.start()
    try:
        nobody = os.open(os.devnull, os.O_WRONLY)
        agent.warm_up(f"http://127.0.0.1:{server.server_port}/v1", Report(nobody))
        os.close(nobody)
    finally:
        serving.join()
        server.server_close()
    threads = len(list(Path("/proc/self/task").iterdir()))
    if threads != 1:
        raise RuntimeError(f"{threads} threads are running, where one is needed to fork")
    gc.collect()
    # Collections in children must not touch, and so copy, what they all share.
    gc.freeze()


class ForkServer:
    """Forks, kills and reaps."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._runs: dict[int, int] = {}
        """Process ids by run."""

    def serve(self) -> None:
        """Do as told until the service is gone."""
        wake, waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        with selectors.DefaultSelector() as selector:
            selector.register(self._connection, selectors.EVENT_READ)
            selector.register(wake, selectors.EVENT_READ)
            while True:
                for key, _ in selector.select():
                    if key.fd == wake:
                        os.read(wake, 4096)
                    elif not self._told():
                        self._kill_all()
                        return
                self._reap()

    def _told(self) -> bool:
        """Do one thing; False once the service is gone."""
        try:
            raw, descriptors, _, _ = socket.recv_fds(self._connection, 4096, 3)
        except ConnectionError:
            return False
        if not raw:
            return False
        told = json.loads(raw)
        if told["do"] == "run":
            self._run(told["id"], descriptors)
        elif told["id"] in self._runs:
            # Not reaped yet, so the group is still this one.
            with suppress(ProcessLookupError):
                os.killpg(self._runs[told["id"]], told["signal"])
        return True

    def _run(self, number: int, descriptors: list[int]) -> None:
        parent = os.getpid()
        pid = os.fork()
        if pid == 0:
            code = FAILED
            try:
                code = _child(parent, descriptors)
            except BaseException:  # noqa: BLE001 (whatever it is, the child ends here)
                traceback.print_exc()
            finally:
                os._exit(code)
        # Here too: a kill may be asked for before the child has done it itself.
        with suppress(ProcessLookupError, PermissionError):
            os.setpgid(pid, pid)
        for descriptor in descriptors:
            os.close(descriptor)
        self._runs[number] = pid
        self._say(event="started", id=number, pid=pid)

    def _reap(self) -> None:
        """Say which runs have ended, and take in their orphans."""
        for number, pid in list(self._runs.items()):
            if os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                continue
            # Dead and not reaped: nobody else can have its number, so whoever is left in the group is its own.
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            _, status = os.waitpid(pid, 0)
            del self._runs[number]
            self._say(event="ended", id=number, status=os.waitstatus_to_exitcode(status))
        while True:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                if found is None or found.si_pid in self._runs.values():
                    return
                os.waitpid(found.si_pid, 0)
            except ChildProcessError:
                return

    def _kill_all(self) -> None:
        for pid in self._runs.values():
            with suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)

    def _say(self, **message: object) -> None:
        with suppress(ConnectionError):
            self._connection.send(json.dumps(message).encode())


def _child(parent: int, descriptors: list[int]) -> int:
    """Be one run: with a process group, a folder, an environment and standard streams of its own."""
    taken, report, output = descriptors
    os.setpgid(0, 0)
    prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return FAILED
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.SIG_DFL)
    with os.fdopen(taken, "rb") as file:
        order = Order.decode(file.read())
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    # What is left open of the service's, aider's own children must not keep open.
    os.closerange(3, report)
    os.closerange(report + 1, 1024)
    os.set_inheritable(report, False)  # noqa: FBT003
    sys.stdout, sys.stderr = (
        io.TextIOWrapper(io.FileIO(number, "w", closefd=False), "utf-8", "backslashreplace", write_through=True)
        for number in (1, 2)
    )
    os.environ.clear()
    os.environ.update(order.environment)
    os.chdir(order.root)

    from aistack.services.aider_wrapper import agent

    return agent.run(order, Report(report))


def main() -> int:
    """Warm up, and serve."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    prctl(PR_SET_CHILD_SUBREAPER, 1)
    with socket.socket(fileno=int(sys.argv[1])) as connection:
        connection.set_inheritable(False)
        began, used = time.monotonic(), time.process_time()
        warm_up()
        ready = {"event": "ready", "seconds": time.monotonic() - began, "cpu_seconds": time.process_time() - used}
        connection.send(json.dumps(ready).encode())
        ForkServer(connection).serve()
    return 0


if __name__ == "__main__":
    sys.exit(main())
