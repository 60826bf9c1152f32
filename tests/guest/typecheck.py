"""Type-check the VM tests' scripts as they run: the driver's names and the prelude before, the epilogue after them.

`python3 -m guest.typecheck MYPY CACHE`
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

from guest import paths
from guest.scenario import EPILOGUE, PRELUDE, discover

NAMES = """\
from collections.abc import Callable
from contextlib import AbstractContextManager
from guest.log import Log
from guest.machine import Machine
import unittest
machine: Machine
machines: list[Machine]
log: Log
t: unittest.TestCase
def subtest(name: str) -> AbstractContextManager[None]: ...
def start_all() -> None: ...
def retry(fn: Callable[[bool], bool], timeout: int = 900) -> None: ...
"""


def main() -> int:
    """Check every script; return mypy's exit code."""
    mypy, cache = sys.argv[1:]
    prelude, epilogue = ((paths.SCENARIOS / name).read_text() for name in (PRELUDE, EPILOGUE))
    offset = NAMES.count("\n") + prelude.count("\n")
    failed = 0
    with tempfile.TemporaryDirectory() as folder:
        for scenario in discover():
            file = Path(folder) / f"{scenario.name.replace('-', '_')}.py"
            file.write_text(NAMES + prelude + scenario.script.read_text() + epilogue)
            config = paths.CHECKOUT / "tests/guest/mypy.ini"
            done = subprocess.run(
                [
                    *(mypy, f"--config-file={config}", f"--cache-dir={cache}", "--no-error-summary"),
                    *("--disable-error-code=empty-body", file),
                ],
                check=False,
                capture_output=True,
                text=True,
            )
            for line in done.stdout.splitlines():
                _, number, rest = [*line.split(":", 2), "", ""][:3]
                shown = int(number) - offset if number.isdigit() else number
                print(f"{scenario.script}:{shown}:{rest}")
            failed = failed or done.returncode
    return failed


if __name__ == "__main__":
    sys.exit(main())
