"""What health checks cost: processor time and memory, at the same interval as podman's own timers."""

from __future__ import annotations

from typing import Any

from lab import Lab
from table import aim, median, table

COUNT = 5
INTERVAL = 5  # seconds
WINDOW = 30  # seconds
REDIS = "localhost/aistack-images/redis:1"
COMMAND = "redis-cli ping"


def measure(lab: Lab) -> dict[str, Any]:
    """Seconds of processor time of the whole guest in windows of WINDOW seconds, and the peak of one check's memory."""
    names = [f"cache{number}" for number in range(COUNT)]
    probe = {"kind": "redis", "port": 6379, "path": None, "intervalSeconds": INTERVAL}
    entry = {"image": {"ref": REDIS}, "port": 6379, "user": "999:999", "stackEnvironment": False, "probe": probe}
    lab.call("derive", dict.fromkeys(names, entry), "--tmpfs=/data:mode=1777")
    lab.call("give_health_timer", INTERVAL)
    units = " ".join(f"podman-aistack-{name}.service" for name in names)
    lab.run(f"systemctl start {units}")
    lab.good(*names)
    found: dict[str, Any] = {"idle": [_window(lab)]}
    lab.run(f"systemctl start aistack-health-{INTERVAL}.timer")
    found["aistack"] = [_window(lab)]
    found["aistack memory"] = _memory(lab, f"/usr/bin/python3 -I -S /usr/lib/aistack/aistack-hook health {INTERVAL}")
    found["aistack resident"] = _resident(lab, "aistack-hook")
    lab.run(f"systemctl stop aistack-health-{INTERVAL}.timer")
    lab.run(f"systemctl stop {units}")
    options = f"--health-cmd='{COMMAND}' --health-interval={INTERVAL}s --network=local-ai --tmpfs=/data:mode=1777"
    for name in names:
        lab.run(f"podman run --detach --name={name} {options} {REDIS} >&2")
    lab.run(f"podman wait --condition=healthy {' '.join(names)} >&2")
    found["podman"] = [_window(lab)]
    found["podman memory"] = _memory(lab, f"podman healthcheck run {names[0]}")
    lab.remove_containers()
    return found


def _window(lab: Lab) -> float:
    before = lab.cpu()
    # Time that passes is what is measured here.
    lab.run(f"sleep {WINDOW}")
    return lab.cpu() - before


def _memory(lab: Lab, command: str) -> float:
    """MiB that the largest process of a command has at its peak."""
    script = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True); "
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)"
    )
    lab.run("mkdir -p /root")
    return float(
        lab.run(f'AISTACK_MANIFEST=/var/lib/derived/stack.json python3 -I -c "{script}" {command}').split()[-1]
    )


def _resident(lab: Lab, name: str) -> int:
    """How many processes of that name are there between two checks."""
    return int(lab.run(f"pgrep --full --count '^/usr/bin/python3.*{name}' || test $? = 1"))


def report(found: dict[str, Any]) -> str:
    """The section."""
    idle = median(found["idle"])
    ours, theirs = (max(0.0, median(found[way]) - idle) for way in ("aistack", "podman"))
    checks = COUNT * WINDOW / INTERVAL
    rows = [
        (
            label,
            f"{100 * cost / WINDOW:.2f}%",
            f"{1000 * cost / checks:.1f} ms",
            f"{cost / max(ours, 1e-6):.1f}",
            f"{found[f'{way} memory']:.0f} MiB x {processes}",
        )
        for way, label, cost, processes in (
            ("aistack", "aistack, one process for all", ours, "1"),
            ("podman", "podman's health timers", theirs, f"{COUNT} at a time at most"),
        )
    ]
    share = f"{100 * idle / WINDOW:.2f}%"
    result = aim(
        "at most a tenth of podman's processor time",
        met=ours <= 0.1 * theirs,
        found=f"1/{theirs / max(ours, 1e-6):.1f}",
        why="An interpreter and a unit are started for each round of checks; the more services of one interval, the "
        "smaller their part.",
    )
    head = ("way", "of one core", "per check", "x aistack", "memory of a check's largest process")
    return f"""## Health checks at the same interval

{COUNT} Redis containers, each checked every {INTERVAL} s, over {WINDOW} s. Processor time is the whole guest's (the
checks, systemd, conmon, podman, the containers' answers) without what the same containers use unchecked, {share}
of a core. Aistack asks in Redis's protocol from outside; podman runs `{COMMAND}` inside. Between two checks nothing of
either is in memory ({found["aistack resident"]} processes of aistack's were seen).

{table(head, rows)}
{result}"""
