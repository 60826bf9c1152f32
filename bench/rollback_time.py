"""Rollback: from the verdict that a new image is bad until the old release is ready, as its application says."""

from __future__ import annotations

import json
from typing import Any

from guest.errors import GuestError
from lab import DERIVED, MOUNT, TINY, Lab
from table import aim, median, spread, table

ROUNDS = 3
REFERENCE = "localhost/bench/deployed:1"
ROLLED_BACK = 7  # exit code
FAILS = "raise SystemExit('broken on purpose')"


def measure(lab: Lab) -> dict[str, Any]:
    """Seconds; `start` is the unit's own start of the old release until it is ready, `gap` from its stop until then."""
    lab.tiny()
    lab.call("build_image", "localhost/bench/fails:0", FAILS)
    kinds = ("aistack", "aistack start", "deploy", "deploy gap", "podman", "podman start", "podman gap")
    found: dict[str, list[float]] = {kind: [] for kind in kinds}
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
    for number in range(ROUNDS):
        tag = _bad(lab, f"d{number}")
        lab.forget()
        since = lab.call("cursor")
        # What it is about would be found before: the isolated test is left out.
        code, said = lab.machine.execute(f"{DERIVED} aistack deploy ours --image {tag} --no-test --yes 2>&1")
        if code != ROLLED_BACK:
            raise GuestError("the deployment was not rolled back", why=said)
        ready = lab.stamp("ours", "ready")
        found["deploy"].append(ready - _given_up(lab, since, unit))
        found["deploy gap"].append(ready - _stopped(lab, since, unit))
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
        found["podman gap"].append(ready - _stopped(lab, since, unit))
    lab.run(f"systemctl stop {unit}; rm /etc/containers/systemd/theirs.container; systemctl daemon-reload")


def _given_up(lab: Lab, since: str, unit: str) -> float:
    """When systemd gave the start of a unit up, in seconds since 1970."""
    return _said(lab, since, unit, "Failed to start")[-1]


def _stopped(lab: Lab, since: str, unit: str) -> float:
    """When systemd began to stop the old release, in seconds since 1970."""
    return _said(lab, since, unit, "Stopping ")[0]


def _said(lab: Lab, since: str, unit: str, words: str) -> list[float]:
    """When systemd said something of a unit, in seconds since 1970."""
    lab.run("journalctl --sync")
    shown = lab.run(f"journalctl --after-cursor '{since}' --output json --no-pager _PID=1 UNIT={unit}")
    rows = [json.loads(line) for line in shown.splitlines()]
    return [int(row["__REALTIME_TIMESTAMP"]) / 1e6 for row in rows if str(row["MESSAGE"]).startswith(words)]


def report(found: dict[str, Any]) -> str:
    """The section."""
    deployed, own = median(found["deploy"]), median(found["aistack start"])
    rows = [
        (
            label,
            spread(found[way]),
            spread(found[f"{start} start"]),
            f"{median(found[way]) - median(found[f'{start} start']):.2f} s",
            f"{median(found[way]) / deployed:.2f}",
            spread(found[f"{way} gap"]) if f"{way} gap" in found else "-",
        )
        for way, start, label in (
            ("deploy", "aistack", "aistack deploy"),
            ("aistack", "aistack", "aistack, a unit that was restarted by hand"),
            ("podman", "podman", "podman auto-update --rollback"),
        )
    ]
    head = (
        "way",
        "verdict → old release ready",
        "the unit's own start",
        "above it",
        "x aistack deploy",
        "stop of the old release → it is ready again",
    )
    result = aim(
        "at most 1 s + the application's own start",
        met=deployed - own <= 1.0,
        found=f"{deployed - own:.2f} s + its start",
        why="The decision is a process of its own: it opens the journal of releases and asks the dependencies.",
    )
    return f"""## Rollback

A new image that ends at once, {ROUNDS} rounds. The verdict is systemd's line that the start failed (for a unit that was
restarted by hand, the third attempt's; a deployment gives up at the first end, podman auto-update has one attempt).
Ready is what the old release's application wrote down. `aistack deploy` is called with `--no-test`: its isolated test
would stop such an image before anything was stopped.

{table(head, rows)}
{result}"""
