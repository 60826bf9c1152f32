"""Cold start to all-ready: a chain of 4, and the reference stack."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import peers
from lab import Lab
from peers import Peer
from table import aim, median, spread, table

ROUNDS = 2
HOPS = 4
OWN = 1.0  # seconds from an application's start until it is ready, in the chain

VOLUMES = "/var/lib/aistack/volumes"
REFERENCE = [
    Peer(
        "postgres",
        "localhost/aistack-images/postgres:1",
        "pg_isready --quiet --host 127.0.0.1 --username mcp --dbname aidb",
        environment_file="/run/aistack/postgres/env",
        volumes=[f"{VOLUMES}/postgres:/var/lib/postgresql/data"],
    ),
    Peer(
        "redis",
        "localhost/aistack-images/redis:1",
        "redis-cli ping | grep -q PONG",
        volumes=[f"{VOLUMES}/redis:/data"],
        command=["--dir", "/data", "--port", "6379", "--appendonly", "yes"],
    ),
    Peer(
        "qdrant",
        "localhost/aistack-images/qdrant:1",
        peers.http(6333, "/readyz"),
        environment_file="/run/aistack/qdrant/env",
        volumes=[f"{VOLUMES}/qdrant:/qdrant/storage", f"{VOLUMES}/qdrant-snapshots:/qdrant/snapshots"],
    ),
    Peer(
        "llama-cpp",
        "localhost/aistack-images/llama-cpp:1",
        peers.connect(8080),  # it listens when its model is loaded
        environment={"HOME": "/tmp"},
        volumes=["/var/lib/aistack/models/tiny.gguf:/models/tiny.gguf:ro"],
        command=[
            *("--model", "/models/tiny.gguf", "--host", "0.0.0.0"),
            *("--port", "8080", "--ctx-size", "256", "--n-gpu-layers", "0"),
        ],
    ),
    Peer(
        "app",
        "localhost/aistack-images/app:1",
        peers.http(8000, "/ready"),
        needs=["postgres", "redis", "qdrant", "llama-cpp"],
        environment_file="/run/aistack/app/env",
    ),
]


def measure(lab: Lab) -> dict[str, Any]:
    """Seconds from the command to all-ready."""
    lab.tiny()
    names = [f"link{number}" for number in range(1, HOPS + 1)]
    before = dict(zip(names[1:], names, strict=False))
    lab.derive({name: {"dependsOn": [before[name]] if name in before else []} for name in names})
    chain = [peers.tiny(name, *([before[name]] if name in before else [])) for name in names]
    lab.forget(OWN)
    return {
        "chain": _all(lab, names, chain, lambda: lab.good(*names)),
        "reference": _all(lab, [peer.name for peer in REFERENCE], REFERENCE, lambda: lab.good("app")),
    }


def _all(lab: Lab, names: list[str], others: list[Peer], settle: Callable[[], None]) -> dict[str, list[float]]:
    units = " ".join(f"podman-aistack-{name}.service" for name in names)
    last = names[-1]
    found: dict[str, list[float]] = {"aistack": [], "compose": [], "quadlet": []}
    lab.run(f"systemctl start podman-aistack-{last}.service")
    settle()
    lab.run(f"systemctl stop {units}")
    peers.install(lab, others)
    for _ in range(ROUNDS):
        lab.run("systemctl reset-failed")
        found["aistack"].append(_took(lab.timed(f"systemctl start podman-aistack-{last}.service")))
        lab.run(f"systemctl stop {units}")
        found["compose"].append(_took(lab.timed(peers.up(others), 300)))
        peers.down(lab)
        found["quadlet"].append(_took(lab.timed(f"systemctl start {last}.service", 300)))
        peers.stop(lab, others)
    return found


def _took(moments: tuple[float, float]) -> float:
    return moments[1] - moments[0]


def report(found: dict[str, Any]) -> str:
    """The section."""
    text = f"""## Cold start to all-ready

From the command until all services answer, {ROUNDS} rounds; images and data are there. The chain is {HOPS} containers,
each ready {OWN:g} s after its start and dependent on the one before: {HOPS * OWN:g} s are the applications' own. The
peers check every second, with the cheapest command there is. Debian 13's podman-compose (1.3.0) has no `up --wait`, and
with `--detach` it starts dependents at once; so it is `up` without, and `podman wait --condition=healthy`. Quadlet is
`Notify=healthy` with `Requires=` and `After=`.

"""
    rows, aims = [], ""
    for what, label in (("chain", f"chain of {HOPS}"), ("reference", "reference stack")):
        times = found[what]
        ours = median(times["aistack"])
        better = min(median(times["compose"]), median(times["quadlet"]))
        for way, name in (
            ("aistack", "aistack"),
            ("compose", "podman-compose"),
            ("quadlet", "Quadlet, `Notify=healthy`"),
        ):
            rows.append((label, name, spread(times[way]), f"{median(times[way]) / ours:.2f}"))
        aims += aim(
            f"{label}: at most 0.6 times the better one",
            met=ours <= 0.6 * better,
            found=f"{ours / better:.2f}",
            why="Most of it is the services' own start, which is the same for all three.",
        )
    hop = (median(found["chain"]["aistack"]) - HOPS * OWN) / HOPS
    aims += aim(
        "at most 0.3 s per hop above the applications' own time",
        met=hop <= 0.3,
        found=f"{hop:.2f} s",
        why="A hop is `start-pre`, `podman run` and the application's interpreter; the first section has them apart.",
    )
    return f"{text}{table(('what', 'way', 'median (range)', 'x aistack'), rows)}\n{aims}"
