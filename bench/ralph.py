"""What Ralph's loop costs and what faults cost it; bench/ralph_loop.py is what runs in Ralph's image."""

from __future__ import annotations

import json
from typing import Any

import lab
from guest import images, paths
from table import aim, median, spread, table

TIME_LIMIT = 600.0  # seconds, with a guest of its own: the other measurements' has no such image
PYTHON = "/opt/aistack/bin/python3"
OVERHEAD, RESUME = 0.020, 1.0  # seconds
LIMIT = 20  # iterations that the predecessor gave a task


def measure(place: lab.Lab) -> dict[str, Any]:
    """Seconds of each round, tasks in a second, and what faults cost."""
    del place
    with lab.opened(TIME_LIMIT, "bench-ralph", images.RALPH) as own:
        own.run("install -d /root/ralph; install -d -o 1000 -g 1000 /root/ralph-data")
        for source in (lab.HERE / "ralph_loop.py", paths.CHECKOUT / "python" / "tests" / "scripted_backend.py"):
            own.machine.copy_from_host(str(source), f"/root/ralph/{source.name}")
        # The data is on the disk, as a volume's is: each transaction waits for it.
        command = (
            "podman run --rm --network=none --volume=/root/ralph:/ralph:ro --volume=/root/ralph-data:/data "
            f"--env=HOME=/tmp --workdir=/tmp --entrypoint={PYTHON} {images.reference('ralph-wiggum')} "
            "/ralph/ralph_loop.py /data/bench"
        )
        found: dict[str, Any] = json.loads(own.run(command, timeout=int(TIME_LIMIT)))
        return found


def report(found: dict[str, Any]) -> str:
    """The section."""
    faults = found["faults"]
    wasted = faults["counted"] - faults["needed"]
    spent = min(LIMIT, faults["faults"])
    rows = [
        ("between two calls of the backend", spread(found["overhead"], "ms")),
        ("tasks taken in a second, one client", f"{found['submitted']['1']:.0f}"),
        ("tasks taken in a second, eight clients", f"{found['submitted']['8']:.0f}"),
        ("killed in a call, started again → it asks the backend again", spread(found["resume"])),
        ("of it the import of FastAPI, uvicorn and httpx alone", spread(found["bare"])),
    ]
    judged = median(found["overhead"])
    resumed = median(found["resume"])
    aims = aim(
        f"at most {OVERHEAD * 1000:.0f} ms an iteration outside the backend, everything on the disk",
        met=judged <= OVERHEAD,
        found=f"{judged * 1000:.1f} ms",
        why="Half of it are the four git processes of a checkpoint.",
    )
    aims += aim(
        f"at most {RESUME:g} s from the start after a SIGKILL to the next call",
        met=resumed <= RESUME,
        found=f"{resumed:.2f} s",
        why="Most of it is Python that imports; the tasks are found and resolved in the rest.",
    )
    aims += aim("no iteration is wasted on faults of the infrastructure", met=wasted == 0, found=str(wasted))
    became = "completed" if faults["completed"] else "not completed"
    return f"""## Ralph's loop

In Ralph's container, over a stand-in for aider-wrapper that answers as soon as it has written a line:
{len(found["overhead"])} iterations of one task, each with a checkpoint and every transaction on the disk.

{table(("what", "median (range)"), rows)}
A task that needs {faults["needed"]} iterations, with {faults["faults"]} faults injected on the way (503, broken
connections, answers that are none, no model): Ralph counted {faults["counted"]} iterations, and it was {became}.
By the predecessor's rule, where every failure is an iteration and a used-up limit is "completed", the same faults
spend {spent} of the {LIMIT} that its tasks had.

{aims}"""
