"""Where things are: in the checkout and in the cache."""

from __future__ import annotations

import os
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[2]
IMAGES = CHECKOUT / "images"
SCENARIOS = CHECKOUT / "tests" / "nixos"


def cache() -> Path:
    """Return the cache folder: roots, image storage and guests. All of it can be made again."""
    return Path(os.environ.get("AISTACK_CACHE", "/var/cache/aistack"))


def guests() -> Path:
    """Return the folder of the guests' own files.

    It is inside the cache because a guest's image layers are hard links into it.
    """
    return cache() / "guests"


def logs() -> Path:
    """Return the folder of the logs, one file a scenario or build."""
    return cache() / "logs"
