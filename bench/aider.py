"""What a call of aider costs beyond the model's time; bench/aider_call.py is what runs in aider-wrapper's image."""

from __future__ import annotations

import json
from typing import Any

import lab
from guest import images, paths
from table import aim, median, spread, table

TIME_LIMIT = 900.0  # seconds, with a guest of its own: the other measurements' has no such image
ROUNDS = 7
SECONDS, SHARE = 1.0, 0.1
PYTHON = "/opt/aistack/bin/python3"


def measure(place: lab.Lab) -> dict[str, Any]:
    """Seconds on the clock and of processor time of each call, a list for each way."""
    del place
    with lab.opened(TIME_LIMIT, "bench-aider", images.RALPH) as own:
        own.run("mkdir /root/aider")
        for source in (lab.HERE / "aider_call.py", paths.IMAGES / "scripted-endpoint" / "scripted_endpoint.py"):
            own.machine.copy_from_host(str(source), f"/root/aider/{source.name}")
        image = images.reference("aider-wrapper")
        command = (
            "podman run --rm --network=none --volume=/root/aider:/aider:ro --env=HOME=/tmp --workdir=/tmp "
            f"--entrypoint={PYTHON} {image} /aider/aider_call.py {ROUNDS}"
        )
        found: dict[str, Any] = json.loads(own.run(command, timeout=int(TIME_LIMIT)))
        return found


def report(found: dict[str, Any]) -> str:
    """The section."""
    names = {
        "plain": "`aider --message …`, started for each",
        "forked": "aider-wrapper, forked from one that imported it",
    }
    rows = [
        (
            name,
            spread([call["wall"] for call in found[way]]),
            spread([call["cpu"] for call in found[way]]),
            f"{middle(found['plain'], 'wall') / middle(found[way], 'wall'):.1f}",
        )
        for way, name in names.items()
    ]
    seconds = middle(found["forked"], "wall")
    share = middle(found["forked"], "cpu") / middle(found["plain"], "cpu")
    busy = middle(found["plain"], "wall") / middle(found["plain"], "cpu")
    why = f"The machine was busy: a plain start took {busy:.1f} times its processor time." if busy > 1.5 else ""
    text = f"a call through aider-wrapper takes at most {SECONDS:g} s"
    aims = aim(text, met=seconds <= SECONDS, found=f"{seconds:.2f} s", why=why)
    aims += aim(f"at most {SHARE:.0%} of a plain start's processor time", met=share <= SHARE, found=f"{share:.1%}")
    return f"""## A call of aider

Beyond the model's time: a scripted endpoint answers at once. Each call edits two files of a small repository and
commits them, {len(found["forked"])} rounds in aider-wrapper's container, without a network. Through aider-wrapper it
also keeps a checkpoint, so that a call that does not count can be undone, and writes down what became of it. Importing
aider once took the service {found["ready"]:.1f} s, {found["ready_cpu"]:.1f} s of them processor time.

{table(("way", "on the clock", "processor time", "times as fast"), rows)}
{aims}"""


def middle(calls: list[dict[str, float]], what: str) -> float:
    """The median of one number of all calls."""
    return median([call[what] for call in calls])
