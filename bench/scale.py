"""From 9 to 100 services: evaluation, start, and one health sweep."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

from guest import paths
from lab import MOUNT, TINY, Lab
from table import aim, median, table

SIZES = (9, 100)
EVALUATIONS = 3
SWEEPS = 5


def measure(lab: Lab) -> dict[str, Any]:
    """Seconds by number of services; `evaluation` is empty where there is no Nix."""
    lab.tiny()
    found: dict[str, Any] = {
        "evaluation": _evaluation(),
        "start": {},
        "cpu": {},
        "sweep": {},
        "sweep cpu": {},
        "run": {},
    }
    for size in SIZES:
        names = [f"n{size}x{number}" for number in range(size)]
        lab.derive({name: {} for name in names})
        lab.forget()
        units = " ".join(f"podman-aistack-{name}.service" for name in names)
        before = lab.cpu()
        began, ended = lab.timed(f"systemctl start {units}", 300)
        found["start"][str(size)] = ended - began
        found["cpu"][str(size)] = lab.cpu() - before
        sweeps, cpu = [], []
        for _ in range(SWEEPS):
            before = lab.cpu()
            began, ended = lab.timed("systemctl start aistack-health-30.service")
            sweeps.append(ended - began)
            cpu.append(lab.cpu() - before)
        found["sweep"][str(size)], found["sweep cpu"][str(size)] = sweeps, cpu
        lab.run(f"systemctl stop {units}", 300)
        # The same containers by hand, started at the same time: what is not ours to answer for.
        lab.forget()
        options = f"--detach --rm --name=$name --env=NAME=$name --network=local-ai {MOUNT}"
        loop = f"for name in {' '.join(names)}; do podman run {options} {TINY} & "
        loop += "if ((++n % 8 == 0)); then wait; fi; done; wait"
        before = lab.cpu()
        lab.run(f"n=0; {{ {loop}; }} >&2", 300)
        found["run"][str(size)] = lab.cpu() - before
        lab.remove_containers()
    return found


def _evaluation() -> dict[str, list[float]]:
    """Seconds that rendering takes on this machine, for own containers beside the catalog."""
    if shutil.which("nix-instantiate") is None:
        return {}
    found: dict[str, list[float]] = {}
    for _ in range(EVALUATIONS):
        for size in SIZES:
            with tempfile.TemporaryDirectory() as folder:
                configuration = Path(folder) / "stack.nix"
                configuration.write_text(_configuration(size), encoding="utf-8")
                began = time.perf_counter()
                done = subprocess.run(
                    [paths.CHECKOUT / "nix/portable/render", configuration, Path(folder) / "out"],
                    capture_output=True,
                    text=True,
                    check=False,
                    timeout=120,
                )
                if done.returncode != 0:
                    print(f"evaluation is left out: {done.stderr.strip().splitlines()[-1]}")
                    return {}
                found.setdefault(str(size), []).append(time.perf_counter() - began)
    return found


def _configuration(size: int) -> str:
    """A stack of so many services: the catalog's four, and the rest own containers in a tree of dependencies."""
    services = ""
    for number in range(1, size - 3):
        needs = f'"own{number // 3}"' if number // 3 else '"postgres"'
        services += f"""
    own{number} = {{
      image = "registry.example.org/own:1";
      port = {9000 + number};
      dependsOn = [ {needs} ];
      health.kind = "http";
      pullTimeout = 60;
    }};"""
    return f"""{{
  services.aistack.enable = true;
  services.aistack.llama-cpp.model = "/var/lib/aistack/models/tiny.gguf";
  services.aistack.secrets.POSTGRES_PASSWORD.file = "/etc/aistack/secrets/postgres-password";
  services.aistack.services = {{{services}
  }};
}}
"""


def report(found: dict[str, Any]) -> str:
    """The section."""
    few, many = (str(size) for size in SIZES)
    factor = SIZES[1] / SIZES[0]
    rows, aims = [], ""
    values = {
        "evaluation": [median(found["evaluation"].get(size, [])) for size in (few, many)],
        "start of all, until ready": [found["start"][size] for size in (few, many)],
        "processor time of that start": [found["cpu"][size] for size in (few, many)],
        "the same containers by `podman run`, processor time": [found["run"][size] for size in (few, many)],
        "health sweep": [median(found["sweep"][size]) for size in (few, many)],
        "processor time of a sweep": [median(found["sweep cpu"][size]) for size in (few, many)],
    }
    grows = found["run"][many] / found["run"][few]
    why = f"`podman run` of the same containers, by hand and without aistack, grows {grows:.1f} times."
    for what, (small, large) in values.items():
        if not small:
            rows.append((what, "not measured: there is no Nix here", "", ""))
            continue
        rows.append((what, f"{small:.2f} s", f"{large:.2f} s", f"{large / small:.1f}"))
        if "podman run" not in what:
            aims += aim(
                f"{what}: linear or better",
                met=large / small <= factor * 1.05,
                found=f"{large / small:.1f} times",
                why=why if "that start" in what else "",
            )
    return f"""## From {few} to {many} services

All on the small application, all at once; linear would be {factor:.1f} times. The start is one round, evaluations and
sweeps are medians of {EVALUATIONS} and {SWEEPS}. Evaluation renders the catalog and own containers with
`nix/portable/render` on the host.

{table(("what", f"{few} services", f"{many} services", "times"), rows)}
{aims}"""
