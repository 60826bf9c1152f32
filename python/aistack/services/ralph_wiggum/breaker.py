"""The circuit breaker: an agent that fails the same way, or changes nothing, three times in a row is stopped.

Two errors are the same if they are so once everything is taken out that differs from run to run: times, addresses,
identifiers, temporary paths. Numbers stay, since 5 failed tests and then 3 is progress.
"""

from __future__ import annotations

import dataclasses
import hashlib
import re

LIMIT = 3  # in a row

_NORMAL = (
    (re.compile(r"\x1b\[[0-9;?]*[A-Za-z]"), ""),
    (re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d)?([.,]\d+)?(Z|[+-]\d\d:?\d\d)?"), "<time>"),
    (re.compile(r"\b\d\d:\d\d:\d\d([.,]\d+)?\b"), "<time>"),
    (re.compile(r"\b\d+([.,]\d+)?\s?(ns|us|µs|ms|s|sec|secs|seconds|minutes)\b"), "<duration>"),
    (re.compile(r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b", re.IGNORECASE), "<id>"),
    (re.compile(r"\b0x[0-9a-f]+\b", re.IGNORECASE), "<address>"),
    (re.compile(r"\b(?=[0-9a-f]*\d)(?=[0-9a-f]*[a-f])[0-9a-f]{12,}\b", re.IGNORECASE), "<id>"),
    (re.compile(r"/(?:tmp|var/tmp)/[^\s:'\"]+"), "<temporary>"),
    (re.compile(r"\b(pid|process)[ =:]*\d+\b", re.IGNORECASE), r"\1 <id>"),
    (re.compile(r"\s+"), " "),
)
_LONGEST = 4000  # characters of an error, from its end


def normalised(text: str) -> str:
    """An error without what differs from run to run."""
    text = text[-_LONGEST:]
    for pattern, instead in _NORMAL:
        text = pattern.sub(instead, text)
    return text.strip()


def fingerprint(outcome: str, text: str) -> str:
    """What makes two failures the same: 16 hexadecimal digits."""
    return hashlib.sha256(f"{outcome}\0{normalised(text)}".encode()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Streak:
    """What an agent has done in a row, up to its last iteration that counted."""

    fingerprint: str | None = None
    same_error: int = 0
    no_progress: int = 0

    def after(self, found: str | None, *, progressed: bool | None) -> Streak:
        """The streak after one more iteration: its failure's fingerprint, and whether the workspace moved on.

        `progressed` is None for a task that need not change anything: there standing still says nothing.
        """
        same = 0 if found is None else self.same_error + 1 if found == self.fingerprint else 1
        still = 0 if progressed is not False else self.no_progress + 1
        return Streak(fingerprint=found, same_error=same, no_progress=still)

    def open_because(self) -> str | None:
        """Why the circuit is open, or None."""
        if self.same_error >= LIMIT:
            return f"the same error {self.same_error} times in a row"
        if self.no_progress >= LIMIT:
            return f"no progress in {self.no_progress} iterations in a row"
        return None
