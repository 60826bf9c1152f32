"""A hook's process beside a bare interpreter's; bench/hook_process.py is what runs in the guest."""

from __future__ import annotations

import statistics
from typing import Any

from lab import Lab
from table import aim, median, table

BARE = "python3 -I -c pass"
AIM = 2.5  # times a bare interpreter, for a hook that probes and reports
WHY = {
    "await-ready postgres (SCRAM login)": "A SCRAM login is 4096 rounds of SHA-256, by design, and loads OpenSSL.",
    "start-pre app (4 dependencies, one podman call)": (
        "It opens the journal of releases (SQLite), probes four services, a login to PostgreSQL among them, writes the "
        "container's environment with fsync, and asks podman once which images there are. Podman's own start is most "
        "of that call, whatever it is asked, and only podman can say what its storage holds: without asking, an image "
        "that is gone would count as a bad release."
    ),
}


def measure(lab: Lab) -> dict[str, Any]:
    """Milliseconds of each process, a list for each."""
    # Proven: a start in probation also arms its timer, which is no part of what is measured here.
    lab.reference()
    found: dict[str, Any] = lab.program("hook_process.py")["milliseconds"]
    lab.run("systemctl stop aistack.target 'podman-aistack-*'")
    return found


def report(found: dict[str, Any]) -> str:
    """The section."""
    bare = median(found[BARE])
    rows, aims = [], ""
    for name, values in found.items():
        low, middle, high = statistics.quantiles(values, n=4)
        rows.append((f"`{name}`", f"{middle:.1f} ms", f"{low:.1f} - {high:.1f} ms", f"{middle / bare:.2f}"))
        if name.startswith(("await-ready", "start-pre", "health")):
            times = middle / bare
            aims += aim(
                f"`{name}`: at most {AIM} times bare", met=times <= AIM, found=f"{times:.2f}", why=WHY.get(name, "")
            )
    return f"""## A hook's process

Wall time from fork to exit, median of {len(found[BARE])} rounds; half of the runs lie in the range.

{table(("process", "median", "middle half", "x bare"), rows)}
{aims}"""
