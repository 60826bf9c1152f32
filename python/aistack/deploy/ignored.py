"""What an ignore file keeps out of a build, as containerignore(5) has it: such a file never gets into the image.

`.containerignore` or, where there is none, `.dockerignore`, of the directory or of the Containerfile by its name.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

_NAMES = (".containerignore", ".dockerignore")


class Ignored:
    """The ignore file of a Containerfile; `name` is empty where there is none, or it cannot be read."""

    def __init__(self, containerfile: Path) -> None:
        """Read it."""
        self.name = ""
        self._patterns: list[tuple[re.Pattern[str], bool]] = []
        folder = containerfile.parent
        for name in [*(f"{containerfile.name}{own}" for own in _NAMES), *_NAMES]:
            if (folder / name).is_file():
                self._read(folder / name)
                return

    def _read(self, path: Path) -> None:
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            return
        self.name = path.name
        for line in lines:
            pattern = line.strip()
            if not pattern or pattern.startswith("#"):
                continue
            kept = pattern.startswith("!")
            self._patterns.append((_compiled(pattern.removeprefix("!").strip().strip("/")), kept))

    def __contains__(self, path: str) -> bool:
        """Whether a file of the directory, by its relative path, is left out: the last pattern that fits decides."""
        parts = path.split("/")
        ways = ["/".join(parts[: number + 1]) for number in range(len(parts))]
        left_out = False
        for pattern, kept in self._patterns:
            if any(pattern.fullmatch(way) for way in ways):
                left_out = not kept
        return left_out


def _compiled(pattern: str) -> re.Pattern[str]:
    """The pattern as a regular expression: as a shell's, and `**` stands for any directories."""
    text = ""
    for piece in re.findall(r"\*\*/?|\*|\?|\[[^]]+\]|\\.|.", pattern.removeprefix("./")):
        if piece == "**/":
            text += "(?:.*/)?"
        elif piece == "**":
            text += ".*"
        elif piece == "*":
            text += "[^/]*"
        elif piece == "?":
            text += "[^/]"
        elif piece.startswith("[") and len(piece) > 1:
            text += piece
        else:
            text += re.escape(piece.removeprefix("\\") or piece)
    try:
        return re.compile(text)
    except re.error:
        return re.compile(re.escape(pattern))
