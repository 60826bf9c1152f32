"""Sections of docs/benchmarks.md that are not made in the same run as the others: they stay until they are renewed."""

from __future__ import annotations

CAMPAIGN = "Fault campaign"


def get(text: str, title: str) -> str:
    """Return a section with its heading; empty if there is none."""
    _, section, _ = _split(text, title)
    return section


def put(text: str, title: str, section: str) -> str:
    """Return `text` with that section in its place, or at the end if it had none; an empty one changes nothing."""
    if not section:
        return text
    before, _, after = _split(text, title)
    return "\n\n".join(part.strip() for part in (before, section, after) if part.strip()) + "\n"


def _split(text: str, title: str) -> tuple[str, str, str]:
    heading = f"## {title}\n"
    at = 0 if text.startswith(heading) else text.find(f"\n{heading}") + 1
    if at == 0 and not text.startswith(heading):
        return text, "", ""
    end = text.find("\n## ", at)
    cut = len(text) if end < 0 else end + 1
    return text[:at], text[at:cut], text[cut:]
