"""Dependency ready → dependent started: what lies between the two moments, as both applications wrote them down."""

from __future__ import annotations

from typing import Any

import peers
from lab import MOUNT, TINY, Lab
from table import aim, median, spread, table

DELAYS = (1.13, 0.87, 1.46, 1.91)  # seconds until the dependency is ready, one a round
NETWORK = "--network=local-ai"


def measure(lab: Lab) -> dict[str, Any]:
    """Seconds, one of each way a round."""
    lab.tiny()
    lab.derive({"base": {}, "next": {"dependsOn": ["base"]}})
    pair = [peers.tiny("base"), peers.tiny("next", "base")]
    peers.install(lab, pair)
    lab.run("systemctl reset-failed; systemctl start podman-aistack-next.service")
    lab.good("base", "next")
    lab.run("systemctl stop podman-aistack-next.service podman-aistack-base.service")
    found: dict[str, list[float]] = {
        way: [] for way in ("aistack", "plan", "compose", "quadlet", "unit", "quadlet unit", "podman run")
    }
    for delay in DELAYS:
        lab.forget(delay)
        lab.run("systemctl reset-failed; systemctl start podman-aistack-next.service")
        found["aistack"].append(_gap(lab))
        lab.run("systemctl stop podman-aistack-next.service")
        lab.run("rm /run/bench/next.*; systemctl reset-failed")
        began, _ = lab.timed("systemctl start podman-aistack-next.service")
        found["unit"].append(lab.stamp("next", "started") - began)
        lab.run("systemctl stop podman-aistack-next.service podman-aistack-base.service")

        lab.forget(delay)
        _run(lab, "base", "")
        _run(lab, "next", "--env=POLL=base:8000")
        found["plan"].append(_gap(lab))
        lab.run("podman rm --force --time 0 next >&2; rm /run/bench/next.*")
        began = _run(lab, "next", "")
        found["podman run"].append(lab.stamp("next", "started") - began)
        lab.remove_containers()

        lab.forget(delay)
        lab.timed(peers.up(pair))
        found["compose"].append(_gap(lab))
        peers.down(lab)

        lab.forget(delay)
        lab.run("systemctl start next.service")
        found["quadlet"].append(_gap(lab))
        lab.run("systemctl stop next.service; rm /run/bench/next.*")
        began, _ = lab.timed("systemctl start next.service")
        found["quadlet unit"].append(lab.stamp("next", "started") - began)
        peers.stop(lab, pair)
    return found


def _gap(lab: Lab) -> float:
    return lab.stamp("next", "started") - lab.stamp("base", "ready")


def _run(lab: Lab, name: str, options: str) -> float:
    options = f"--detach --name={name} {NETWORK} --network-alias={name} --env=NAME={name} {MOUNT} {options}"
    return lab.timed(f"podman run {options} {TINY}")[0]


def report(found: dict[str, Any]) -> str:
    """The section."""
    bare = median(found["podman run"])
    ours = median(found["aistack"])
    waiting = ours - median(found["unit"])
    rows = []
    for way, label, start in (
        ("aistack", "aistack", found["unit"]),
        ("plan", "the plan's poll (2 s)", []),
        ("compose", "podman-compose, `service_healthy`", found["podman run"]),
        ("quadlet", "Quadlet, `Notify=healthy`", found["quadlet unit"]),
    ):
        gap = found[way]
        wait = median(gap) - median(start)
        rows.append(
            (label, spread(gap, "ms"), f"{1000 * wait:.0f} ms", f"{median(gap) / ours:.1f}", _times(wait, waiting))
        )
    worst = min(median(found[way]) - (bare if way != "plan" else 0) for way in ("plan", "compose", "quadlet"))
    head = ("way", "dependency ready → dependent started", "of it waiting", "x aistack", "waiting, x aistack")
    started = aim(
        "at most 15 ms + the process start",
        met=waiting <= 0.015,
        found=f"{1000 * waiting:.0f} ms + the unit's own start",
        why="An answer is seen up to 2% of the waiting late; then `await-ready` writes it down, and systemd acts.",
    )
    better = aim(
        "10 times better than each",
        met=worst >= 10 * max(waiting, 0.001),
        found=f"{_times(worst, waiting)} times, of the time that waiting costs",
    )
    own = f"{1000 * (median(found['unit']) - bare):.0f} ms"
    return f"""## Dependency ready → dependent started

Two containers of one small application, the second depends on the first, which answers {min(DELAYS)} to {max(DELAYS)} s
after its start, another time each round ({len(DELAYS)} rounds). Both moments are written down by the applications
themselves. *Waiting* is what is left without the start itself: the same start, asked for by hand while the dependency
is up (`podman run`: {spread(found["podman run"], "ms")}; aistack's unit: {spread(found["unit"], "ms")};
Quadlet's unit: {spread(found["quadlet unit"], "ms")}). The plan's dependent is up already, and polls. The peers check
once a second, as often as podman can.

{table(head, rows)}
{started}{better}
Beside a bare `podman run` ({1000 * bare:.0f} ms), the unit's start takes {own} more: `start-pre` (release, preflight
with a probe of every dependency).
"""


def _times(peer: float, ours: float) -> str:
    return f"{peer / max(ours, 0.001):.0f}"
