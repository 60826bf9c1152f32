"""`python -m aistack.services.ralph_wiggum`."""

from __future__ import annotations

import sys

from aistack.services.common import main
from aistack.services.ralph_wiggum.app import make
from aistack.services.ralph_wiggum.settings import RalphSettings

sys.exit(main(RalphSettings, make))
