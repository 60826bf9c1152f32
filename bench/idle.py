"""What aistack's helpers use while the reference stack runs and nothing happens."""

from __future__ import annotations

from typing import Any

from lab import Lab
from table import aim, table

WINDOW = 60  # seconds: two ticks of the reference stack's one timer
ROOT = "/sys/fs/cgroup"
UNITS = f"{ROOT}/system.slice/aistack-*.service/cgroup.procs"


def measure(lab: Lab) -> dict[str, Any]:
    """Seconds of processor time in WINDOW seconds: of the helpers' units, and of systemd itself."""
    lab.reference()
    timers = lab.run("systemctl list-timers --plain --no-legend --no-pager 'aistack*'").strip().splitlines()
    slice_, manager, began, services = _moment(lab)
    # Time that passes is what is measured here.
    lab.run(f"sleep {WINDOW}", WINDOW + 30)
    after = _moment(lab)
    found = {
        "timers": len(timers),
        "helpers": after[0] - slice_ - sum(after[3][name] - used for name, used in services.items()),
        "manager": after[1] - manager,
        "all": after[2] - began,
        "resident": len(lab.run(f"cat {UNITS} 2>/dev/null || test $? = 1").split()),
    }
    lab.run("systemctl stop aistack.target 'podman-aistack-*'")
    return found


def _moment(lab: Lab) -> tuple[float, float, float, dict[str, float]]:
    """Processor time so far: of all services together, of systemd, of everything, and of each service that runs.

    What the first grew by beyond the last is of units that came and went: aistack's helpers.
    """
    shown = lab.run(
        f"cd {ROOT}; grep -H usage_usec cpu.stat init.scope/cpu.stat system.slice/cpu.stat system.slice/*/cpu.stat"
    )
    used = {}
    for line in shown.splitlines():
        file, _, value = line.partition(":usage_usec ")
        used[file.removesuffix("cpu.stat").strip("/")] = int(value) / 1e6
    services = {name: value for name, value in used.items() if name.count("/") == 1}
    return used["system.slice"], used["init.scope"], used[""], services


def report(found: dict[str, Any]) -> str:
    """The section."""
    rows = [
        ("aistack's own units (health checks, end of probation, retries)", _share(found["helpers"])),
        ("systemd, all it does", _share(found["manager"])),
        ("the whole guest, containers included", _share(found["all"])),
    ]
    used = (found["helpers"] + found["manager"]) / WINDOW
    result = aim(
        "the helpers use less than 0.5% of one core, systemd's part included, and nothing is resident",
        met=used < 0.005 and not found["resident"],
        found=f"{100 * used:.2f}%, {found['resident']} processes",
    )
    return f"""## Idle

The reference stack, proven and healthy, for {WINDOW} s; {found["timers"]} timers are armed. Processes of aistack's
between two checks: {found["resident"]}.

{table(("what", "of one core"), rows)}
{result}"""


def _share(seconds: float) -> str:
    return f"{100 * seconds / WINDOW:.2f}%"
