"""Rollback: from the verdict that a new image is bad until the old release is ready, as its application says."""

from __future__ import annotations

import json
from typing import Any

from lab import MOUNT, TINY, Lab
from table import aim, median, spread, table

ROUNDS = 3
REFERENCE = "localhost/bench/deployed:1"
FAILS = "raise SystemExit('broken on purpose')"


def measure(lab: Lab) -> dict[str, Any]:
    """Seconds; `start` is the unit's own start of the old release, until the application is ready."""
    lab.tiny()
    lab.call("build_image", "localhost/bench/fails:0", FAILS)
    found: dict[str, list[float]] = {"aistack": [], "aistack start": [], "podman": [], "podman start": []}
    _aistack(lab, found)
    _auto_update(lab, found)
    return found


def _bad(lab: Lab, number: str) -> str:
    """A bad image that is another one each time."""
    tag = f"localhost/bench/fails:{number}"
    lab.call("build_copy", tag, "localhost/bench/fails:0")
    return tag


def _aistack(lab: Lab, found: dict[str, list[float]]) -> None:
    unit = "podman-aistack-ours.service"
    lab.run(f"podman tag {TINY} {REFERENCE}")
    lab.derive({"ours": {"image": {"ref": REFERENCE}}})
    lab.run(f"systemctl start {unit}")
    lab.good("ours")
    for number in range(ROUNDS):
        lab.run(f"systemctl reset-failed; systemctl stop {unit}")
        lab.forget()
        began, _ = lab.timed(f"systemctl start {unit}")
        found["aistack start"].append(lab.stamp("ours", "ready") - began)
        lab.run(f"podman tag {_bad(lab, f'a{number}')} {REFERENCE}; systemctl reset-failed; systemctl stop {unit}")
        lab.forget()
        since = lab.call("cursor")
        # It is the third attempt that fails for good; then OnFailure= decides.
        lab.machine.execute(f"systemctl start {unit}")
        lab.call("wait_for_journal", since, "ours ROLLED BACK")
        ready = lab.stamp("ours", "ready")
        found["aistack"].append(ready - _given_up(lab, since, unit))
        lab.run(f"podman tag {TINY} {REFERENCE}")
    lab.run(f"systemctl stop {unit}")


def _auto_update(lab: Lab, found: dict[str, list[float]]) -> None:
    unit = "theirs.service"
    lab.run(f"podman tag {TINY} {REFERENCE}; mkdir -p /etc/containers/systemd")
    text = (
        f"[Container]\nImage={REFERENCE}\nContainerName=theirs\nAutoUpdate=local\nNotify=healthy\n"
        f"Network=local-ai\nEnvironment=NAME=theirs\nVolume={MOUNT.partition('=')[2]}\n"
        'HealthCmd=["bash", "-c", "exec 3<>/dev/tcp/127.0.0.1/8000"]\nHealthInterval=1s\nHealthRetries=60\n'
        "[Service]\nTimeoutStartSec=60\nTimeoutStopSec=5\n"
    )
    lab.run(f"cat > /etc/containers/systemd/theirs.container <<'EOF'\n{text}EOF")
    lab.run("systemctl daemon-reload")
    for number in range(ROUNDS):
        lab.run(f"systemctl stop {unit}")
        lab.forget()
        began, _ = lab.timed(f"systemctl start {unit}")
        found["podman start"].append(lab.stamp("theirs", "ready") - began)
        lab.run(f"podman tag {_bad(lab, f'p{number}')} {REFERENCE}")
        lab.forget()
        since = lab.call("cursor")
        lab.run("podman auto-update --rollback >&2")
        ready = lab.stamp("theirs", "ready")
        found["podman"].append(ready - _given_up(lab, since, unit))
    lab.run(f"systemctl stop {unit}; rm /etc/containers/systemd/theirs.container; systemctl daemon-reload")


def _given_up(lab: Lab, since: str, unit: str) -> float:
    """When systemd gave the start of a unit up, in seconds since 1970."""
    lab.run("journalctl --sync")
    shown = lab.run(f"journalctl --after-cursor '{since}' --output json --no-pager _PID=1 UNIT={unit}")
    rows = [json.loads(line) for line in shown.splitlines()]
    moments = [int(row["__REALTIME_TIMESTAMP"]) for row in rows if str(row["MESSAGE"]).startswith("Failed to start")]
    return moments[-1] / 1e6


def report(found: dict[str, Any]) -> str:
    """The section."""
    ours, own = median(found["aistack"]), median(found["aistack start"])
    rows = [
        (
            label,
            spread(found[way]),
            spread(found[f"{way} start"]),
            f"{median(found[way]) - median(found[f'{way} start']):.2f} s",
            f"{median(found[way]) / ours:.2f}",
        )
        for way, label in (("aistack", "aistack"), ("podman", "podman auto-update --rollback"))
    ]
    head = ("way", "verdict → old release ready", "the unit's own start", "above it", "x aistack")
    result = aim(
        "at most 1 s + the application's own start",
        met=ours - own <= 1.0,
        found=f"{ours - own:.2f} s + its start",
        why="The decision is a process of its own: it opens the journal of releases and asks the dependencies.",
    )
    return f"""## Rollback

A new image that ends at once, {ROUNDS} rounds. The verdict is systemd's line that the start failed (for aistack, the
third attempt's; for podman auto-update, the only one's). Ready is what the old release's application wrote down.

{table(head, rows)}
{result}"""
