"""`python -m aistack.services.ralph_wiggum`."""

from __future__ import annotations

import sys

from aistack.services.common import main
from aistack.services.common.server import CONFIGURATION_ERROR
from aistack.services.ralph_wiggum.app import make
from aistack.services.ralph_wiggum.settings import RalphSettings
from aistack.services.ralph_wiggum.store import Unusable

try:
    CODE = main(RalphSettings, make)
except Unusable as error:
    print(f"ralph-wiggum: {error}", file=sys.stderr, flush=True)  # noqa: T201
    CODE = CONFIGURATION_ERROR
sys.exit(CODE)
