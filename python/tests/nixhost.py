"""Nix, where the host has it: whether anything can be evaluated, and how."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT = 600.0
"""Seconds for one evaluation; the slowest takes about 20 on two cores."""


def run(*command: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command to its end and return what it said; if a signal ended it, that too.

    Nix runs without its garbage collector, which can end in a segmentation fault, without a word, where a path is
    filtered (NixOS/nix#4178, #7644; seen with 2.8). That is twice as fast, too, and takes 3 GB at most instead of 1.
    """
    environment = {**os.environ, "GC_DONT_GC": "1"}
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=TIMEOUT, cwd=cwd, env=environment
    )
    if done.returncode < 0:
        done.stderr += f"{command[0]} was ended by signal {-done.returncode}\n"
    return done


@cache
def unavailable() -> str | None:
    """Why nothing can be evaluated here, or None."""
    if shutil.which("nix-instantiate") is None:
        return "evaluation was not run: there is no nix-instantiate"
    if run("nix-instantiate", "--find-file", "nixpkgs").returncode != 0:
        return "evaluation was not run: <nixpkgs> does not resolve"
    return None


def _evaluate(*arguments: str | Path) -> object:
    done = run("nix-instantiate", "--eval", "--strict", "--json", "--read-write-mode", *arguments)
    assert done.returncode == 0, done.stderr
    value: object = json.loads(done.stdout)
    return value


def evaluate(*arguments: str | Path) -> dict[str, Any]:
    """Return the attributes that an expression evaluates to; text that it writes is in the store then."""
    value = _evaluate(*arguments)
    assert isinstance(value, dict)
    return value


def evaluate_text(*arguments: str | Path) -> str:
    """Return the string that an expression evaluates to."""
    value = _evaluate(*arguments)
    assert isinstance(value, str)
    return value


@cache
def cannot_build() -> str | None:
    """Why nothing can be built with the host's own tools here, or None."""
    probe = (
        'derivation { name = "probe"; system = builtins.currentSystem; builder = "/bin/bash";'
        ' args = [ "-c" "echo > $out" ]; }'
    )
    done = run("nix-build", "--no-out-link", "--option", "substitute", "false", "--expr", probe)
    if done.returncode != 0:
        return "the bundle was evaluated but not built: Nix' sandbox hides the host's tools"
    return None
