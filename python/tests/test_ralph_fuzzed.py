"""Schemathesis asks Ralph whatever its OpenAPI document allows, and much that it does not: it finds nothing.

Ralph is a process of its own; its backend is away, so that nothing is begun: commands are made up too. AISTACK_EXAMPLES
sets how many requests are made up for each route.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import ralphs

if TYPE_CHECKING:
    from pathlib import Path

pytest.importorskip("schemathesis", reason="schemathesis is not installed")

EXAMPLES = int(os.environ.get("AISTACK_EXAMPLES", "8"))
# What it has to check with: all but those of cases that follow from each other.
LEFT_OUT = "use_after_free,ensure_resource_availability,object_level_authorization"
# For POST /tasks its coverage finds no body that fits, makes up `0`, and takes that for valid; fuzzing does find some.
# A change of the settings is refused, however valid it is, unless it names what it goes by, and above the ceiling.
CONFIGURATION = """
[[operations]]
include-path = "/settings"
checks.positive_data_acceptance.enabled = false

[[operations]]
include-path = "/tasks"
include-method = "POST"
phases.coverage.enabled = false
"""


def test_schemathesis_finds_nothing(tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("the-key")
    with ralphs.running(tmp_path, RALPH_WIGGUM_API_KEY_FILE=str(key)) as ralph:
        ralph.backend.ready = False
        ralph.backend.down = True
        (tmp_path / "schemathesis.toml").write_text(CONFIGURATION)
        command = [
            *(sys.executable, "-m", "schemathesis.cli", "run", f"{ralph.service.url}/openapi.json"),
            *("--header", "X-API-Key: the-key", "--phases", "examples,coverage,fuzzing", "--seed", "1"),
            *(
                "--max-examples",
                str(EXAMPLES),
                "--exclude-checks",
                LEFT_OUT,
                "--exclude-path",
                "/ready",
                "--request-timeout",
                "60",
            ),
            *("--suppress-health-check", "all", "--generation-database", "none", "--no-color", "--workers", "1"),
        ]
        found = subprocess.run(
            command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=ralphs.BOUND * 4
        )
        assert found.returncode == 0, found.stdout[-6000:] + found.stderr[-2000:]
        assert ralph.raw("GET", "/health").status_code == 200
