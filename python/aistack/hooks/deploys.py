"""The journal of deployments: what was tried, how far it got, how it ended.

In the same database as the releases, so that a step and what it does to a release are one transaction. An attempt
without an end whose process is gone was cut off; `aistack.hooks.recover` decides what becomes of it.
"""

from __future__ import annotations

import json
import time

from aistack.hooks.errors import HookError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from aistack.hooks.releases import Release, Store

# Phases, in the order in which a deployment walks through them. Up to SWITCH nothing live was touched.
PLAN, LOCK, VALIDATE, BUILD, TEST = "plan", "lock", "validate", "build", "test"
SWITCH, VERIFY, PROBATION, BLESS = "switch", "verify", "probation", "bless"
REVERT, REPORT = "revert", "report"
PHASES = (PLAN, LOCK, VALIDATE, BUILD, TEST, SWITCH, VERIFY, PROBATION, BLESS, REVERT, REPORT)
LIVE = frozenset({SWITCH, VERIFY, PROBATION, BLESS, REVERT})

# Outcomes.
DEPLOYED = "deployed"
REFUSED = "refused"  # not valid, or not to be built: nothing was touched
TEST_FAILED = "test-failed"  # nothing was touched
ROLLED_BACK = "rolled-back"
DOWN = "down"
INTERRUPTED = "interrupted"  # and left as it was, or reverted
OUTCOMES = (DEPLOYED, REFUSED, TEST_FAILED, ROLLED_BACK, DOWN, INTERRUPTED)

# In the place of a service's name, which has no blanks: the test of all that a NixOS generation changes.
INCOMING = "the incoming generation"

_RETAINED = 2000  # attempts; `aistack metrics` counts over these

SCHEMA = """
CREATE TABLE deploy (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  service TEXT NOT NULL,
  source TEXT NOT NULL,
  strategy TEXT NOT NULL,
  previous INTEGER,
  release INTEGER,
  phase TEXT NOT NULL,
  entered REAL NOT NULL,
  seconds TEXT NOT NULL DEFAULT '{}',
  began REAL NOT NULL,
  ended REAL,
  outcome TEXT NOT NULL DEFAULT '',
  code INTEGER,
  reason TEXT NOT NULL DEFAULT '',
  unavailable REAL,
  evidence TEXT NOT NULL DEFAULT '{}'
);
"""
_COLUMNS = (
    "id, service, source, strategy, previous, release, phase, entered, seconds, began, ended, outcome, code, reason, "
    "unavailable, evidence"
)


class Attempt:
    """One deployment. Times are Unix times in seconds, `seconds` are those of each phase.

    `previous` is the release that served before, `release` the one that was to serve; `unavailable` is how long nothing
    answered, in seconds.
    """

    __slots__ = (
        "began",
        "code",
        "ended",
        "entered",
        "evidence",
        "id",
        "outcome",
        "phase",
        "previous",
        "reason",
        "release",
        "seconds",
        "service",
        "source",
        "strategy",
        "unavailable",
    )

    def __init__(self, row: tuple[Any, ...]) -> None:
        self.id: int = row[0]
        self.service: str = row[1]
        self.source: str = row[2]
        self.strategy: str = row[3]
        self.previous: int | None = row[4]
        self.release: int | None = row[5]
        self.phase: str = row[6]
        self.entered: float = row[7]
        self.seconds: dict[str, float] = json.loads(row[8])
        self.began: float = row[9]
        self.ended: float | None = row[10]
        self.outcome: str = row[11]
        self.code: int | None = row[12]
        self.reason: str = row[13]
        self.unavailable: float | None = row[14]
        self.evidence: dict[str, Any] = json.loads(row[15])

    def __str__(self) -> str:
        return f"deployment {self.id} of {self.service} ({self.source})"


class Deploys:
    """The attempts, in the database of a store."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def _attempts(self, where: str = "", values: tuple[object, ...] = ()) -> list[Attempt]:
        rows = self._store.rows(f"SELECT {_COLUMNS} FROM deploy {where} ORDER BY id DESC", values)
        return [Attempt(row) for row in rows]

    def history(self, service: str | None = None) -> list[Attempt]:
        """All attempts, or those of one service, newest first."""
        return self._attempts("WHERE service = ?", (service,)) if service else self._attempts()

    def get(self, identifier: int) -> Attempt:
        """Return an attempt. Raises HookError if there is none of this number."""
        found = self._attempts("WHERE id = ?", (identifier,))
        if not found:
            raise HookError(f"there is no deployment {identifier}")
        return found[0]

    def unfinished(self) -> list[Attempt]:
        """The attempts without an end, newest first: the one under way, and those that were cut off."""
        return self._attempts("WHERE ended IS NULL")

    def begin(self, service: str, source: str, strategy: str) -> Attempt:
        """Record that a deployment begins."""
        now = time.time()
        with self._store:
            self._store.rows(
                "INSERT INTO deploy (service, source, strategy, phase, entered, began) VALUES (?, ?, ?, ?, ?, ?)",
                (service, source, strategy, PLAN, now, now),
            )
            ((identifier,),) = self._store.rows("SELECT last_insert_rowid()")
            self._store.rows("DELETE FROM deploy WHERE id <= ?", (identifier - _RETAINED,))
        return self.get(identifier)

    def enter(self, attempt: Attempt, phase: str, spent: float) -> None:
        """Record that a phase begins; the one before it took `spent` seconds (of a clock that does not jump)."""
        with self._store:
            self._enter(attempt, phase, spent)

    def _enter(self, attempt: Attempt, phase: str, spent: float) -> None:
        attempt.seconds[attempt.phase] = round(attempt.seconds.get(attempt.phase, 0.0) + spent, 3)
        attempt.phase, attempt.entered = phase, time.time()
        self._store.rows(
            "UPDATE deploy SET phase = ?, entered = ?, seconds = ? WHERE id = ?",
            (phase, attempt.entered, json.dumps(attempt.seconds), attempt.id),
        )

    def candidate(self, attempt: Attempt, release: Release, previous: Release | None) -> None:
        """Record which release is to serve, and which one serves."""
        attempt.release, attempt.previous = release.id, previous.id if previous is not None else None
        with self._store:
            self._store.rows(
                "UPDATE deploy SET release = ?, previous = ? WHERE id = ?",
                (attempt.release, attempt.previous, attempt.id),
            )

    def switch(self, attempt: Attempt, release: Release, spent: float) -> None:
        """Make the candidate what the next start runs: from here on there is something to revert. One transaction."""
        with self._store:
            self._store.choose_within(release)
            self._enter(attempt, SWITCH, spent)

    def forget(self, attempt: Attempt) -> None:
        """Take back that something began: it was a test alone, which only had to be found if it was cut off."""
        with self._store:
            self._store.rows("DELETE FROM deploy WHERE id = ?", (attempt.id,))

    def end(
        self,
        attempt: Attempt,
        outcome: str,
        code: int,
        reason: str,
        *,
        spent: float = 0.0,
        unavailable: float | None = None,
        evidence: dict[str, Any] | None = None,
    ) -> None:
        """Record how a deployment ended; from here on there is nothing to recover."""
        attempt.seconds[attempt.phase] = round(attempt.seconds.get(attempt.phase, 0.0) + spent, 3)
        attempt.ended, attempt.outcome, attempt.code = time.time(), outcome, code
        attempt.reason, attempt.unavailable, attempt.evidence = reason, unavailable, evidence or {}
        with self._store:
            self._store.rows(
                "UPDATE deploy SET ended = ?, outcome = ?, code = ?, reason = ?, seconds = ?, unavailable = ?, "
                "evidence = ? WHERE id = ?",
                (
                    attempt.ended,
                    outcome,
                    code,
                    reason,
                    json.dumps(attempt.seconds),
                    unavailable,
                    json.dumps(attempt.evidence),
                    attempt.id,
                ),
            )
