"""Releases: which image and environment a service runs, which it ran before, and which of them is known to work.

A release is an image id, an environment without secrets, and the service's manifest entry. Its state is

    staged → probation → good        good is earned by staying ready through the probation window
                       → bad         with the reason and the end of the log

`staged` is chosen and has not been ready yet. Kept in SQLite (WAL, synchronous=FULL); each change is one transaction.
"""

from __future__ import annotations

import json
import os
import sqlite3
import time

from aistack.hooks import deploys
from aistack.hooks.errors import UNEXPECTED, HookError, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

STAGED, PROBATION, GOOD, BAD = "staged", "probation", "good", "bad"

_VERSION = 3
_NEEDED = 64 * 1024  # bytes; what SQLite puts beside a database in WAL mode that is only read (32 KiB), and some
_SCHEMA = (
    """
CREATE TABLE release (
  id INTEGER PRIMARY KEY AUTOINCREMENT,
  service TEXT NOT NULL,
  fingerprint TEXT NOT NULL,
  image_id TEXT NOT NULL,
  image_ref TEXT NOT NULL,
  environment TEXT NOT NULL,
  entry TEXT NOT NULL,
  source TEXT NOT NULL,
  created REAL NOT NULL,
  state TEXT NOT NULL CHECK (state IN ('staged', 'probation', 'good', 'bad')),
  changed REAL NOT NULL,
  reason TEXT NOT NULL DEFAULT '',
  log TEXT NOT NULL DEFAULT '',
  turn INTEGER NOT NULL DEFAULT 0,
  base TEXT NOT NULL DEFAULT '',
  UNIQUE (service, fingerprint)
);
CREATE TABLE current (
  service TEXT PRIMARY KEY,
  release INTEGER NOT NULL REFERENCES release (id),
  declared TEXT NOT NULL
);
CREATE TABLE loaded (source TEXT PRIMARY KEY, image_id TEXT NOT NULL);
"""
    + deploys.SCHEMA
)
# From version 1, which did not know in which order releases ran last; the highest turn is the last one's.
_FROM_1 = """
ALTER TABLE release ADD COLUMN turn INTEGER NOT NULL DEFAULT 0;
UPDATE release SET turn = 1 WHERE id IN (SELECT release FROM current);
"""
# From version 2, which knew no deployments: every release was of the image that Nix declared.
_FROM_2 = (
    """
ALTER TABLE release ADD COLUMN base TEXT NOT NULL DEFAULT '';
UPDATE release SET base = image_id;
"""
    + deploys.SCHEMA
)
_UPGRADES = {0: _SCHEMA, 1: _FROM_1 + _FROM_2, 2: _FROM_2}
_TABLES = frozenset({"release", "current", "loaded"})
_COLUMNS = (
    "id, service, fingerprint, image_id, image_ref, environment, entry, source, created, state, changed, reason, log, "
    "turn, base"
)


class Release:
    """One row of the table. Times are Unix times in seconds; `image_id` has no `sha256:` in front.

    `base` is the image that Nix declared when the release was made: another one than its own if it was deployed.
    """

    __slots__ = (
        "base",
        "changed",
        "created",
        "entry",
        "environment",
        "fingerprint",
        "id",
        "image_id",
        "image_ref",
        "log",
        "reason",
        "service",
        "source",
        "state",
        "turn",
    )

    def __init__(self, row: tuple[Any, ...]) -> None:
        self.id: int = row[0]
        self.service: str = row[1]
        self.fingerprint: str = row[2]
        self.image_id: str = row[3]
        self.image_ref: str = row[4]
        self.environment: dict[str, str] = json.loads(row[5])
        self.entry: dict[str, Any] = json.loads(row[6])
        self.source: str = row[7]
        self.created: float = row[8]
        self.state: str = row[9]
        self.changed: float = row[10]
        self.reason: str = row[11]
        self.log: str = row[12]
        self.turn: int = row[13]
        self.base: str = row[14]

    @property
    def deployed(self) -> bool:
        """Whether it was put in place of the declared image by a deployment."""
        return self.base != self.image_id

    @property
    def proven(self) -> bool:
        """Whether it has been good: such a release is restarted when it fails, never rolled back."""
        return self.state == GOOD

    def __str__(self) -> str:
        return f"release {self.id} ({self.image_ref}, image {self.image_id[:12]})"


def fingerprint(image_id: str, environment: dict[str, str], entry: dict[str, Any]) -> str:
    """What makes a release another one: its image, its environment, its manifest entry."""
    import hashlib

    text = json.dumps([image_id, environment, entry], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


class Store:
    """The releases of every service, in one database."""

    def __init__(self, connection: sqlite3.Connection, path: str) -> None:
        self._db = connection
        self.path = path

    @classmethod
    def open(cls, path: str, *, create: bool = True) -> Store:
        """Open the database at `path`, making it where `create` says so.

        Raises Damaged for a file that is not such a database, HookError for one that cannot be opened (exit code 1).
        """
        if not create and not os.path.exists(path):
            raise HookError(f"no releases yet: {path} does not exist; it is made at the first start of a service")
        if not create:
            return cls._open(path, create=False)
        with _Lock(path):
            return cls._open(path, create=True)

    @classmethod
    def _open(cls, path: str, *, create: bool) -> Store:
        try:
            store = cls(sqlite3.connect(path, timeout=10, isolation_level=None), path)
        except sqlite3.Error as error:
            raise _translated(path, error) from None
        try:
            store._prepare(create=create)
        except BaseException:
            store.close()
            raise
        return store

    def _prepare(self, *, create: bool) -> None:
        """Make the schema in a file without one, if `create`; refuse a damaged or foreign file, and other versions."""
        version = self.rows("PRAGMA user_version")[0][0]
        tables = {row[0] for row in self.rows("SELECT name FROM sqlite_master WHERE type = 'table'")}
        if (tables or version) and not tables >= _TABLES:
            raise Damaged(self.path, "it is another program's database")
        if not tables and not create:
            # A reader that made the schema here would hide that somebody, or a crash, emptied the file.
            raise Damaged(self.path, "it is empty: what history it had is gone")
        if version > _VERSION:
            raise HookError(f"{self.path} was written by a newer aistack (version {version}); install that one")
        self.rows("PRAGMA journal_mode=WAL")
        self.rows("PRAGMA synchronous=FULL")
        if version == _VERSION:
            # Reads every page's header: a file cut off in the middle is found here, not in the middle of a start.
            found = self.rows("PRAGMA quick_check(1)")[0][0]
            if found != "ok":
                raise Damaged(self.path, found)
            return
        with self:
            version = self.rows("PRAGMA user_version")[0][0]
            if version == _VERSION:
                return  # another start was faster
            for statement in _UPGRADES[version].split(";"):
                self.rows(statement)
            self.rows(f"PRAGMA user_version={_VERSION}")

    def rows(self, sql: str, values: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """Execute a statement; for what else is kept in this database. Raises HookError."""
        try:
            return self._db.execute(sql, values).fetchall()
        except sqlite3.Error as error:
            raise _translated(self.path, error) from None

    def _releases(self, where: str = "", values: Sequence[object] = ()) -> list[Release]:
        rows = self.rows(f"SELECT {_COLUMNS} FROM release {where} ORDER BY id DESC", values)
        try:
            return [Release(row) for row in rows]
        except ValueError as error:
            raise Damaged(self.path, error) from None

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    def __enter__(self) -> None:
        self.rows("BEGIN IMMEDIATE")

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self.rows("COMMIT")
        finally:
            # SQLite itself ends a transaction on some errors, and not on others (a full disk, at the end of it).
            if self._db.in_transaction:
                self.rows("ROLLBACK")

    def abandon(self) -> None:
        """Take back a transaction that a signal cut off before its end was taken care of."""
        if self._db.in_transaction:
            self.rows("ROLLBACK")

    # --- reading ---------------------------------------------------------------------------------

    def history(self, service: str | None = None) -> list[Release]:
        """All releases, or those of one service, newest first."""
        return self._releases("WHERE service = ?", (service,)) if service else self._releases()

    def get(self, service: str, identifier: int) -> Release | None:
        """Release `identifier` of `service`, or None."""
        return next(iter(self._releases("WHERE service = ? AND id = ?", (service, identifier))), None)

    def current(self, service: str) -> Release | None:
        """The release that the service's next start will run, or None before its first."""
        row = self._current(service)
        return self.get(service, row[0]) if row else None

    def declared(self, service: str) -> Release | None:
        """The release that Nix declares, whether or not it is the one that runs."""
        row = self._current(service)
        return self.by_fingerprint(service, row[1]) if row else None

    def _current(self, service: str) -> tuple[int, str] | None:
        """The id of the release to run, and the fingerprint of the declared one."""
        rows = self.rows("SELECT release, declared FROM current WHERE service = ?", (service,))
        return (rows[0][0], rows[0][1]) if rows else None

    def by_fingerprint(self, service: str, print_: str) -> Release | None:
        """The release of `service` with a fingerprint (`fingerprint`), or None."""
        return next(iter(self._releases("WHERE service = ? AND fingerprint = ?", (service, print_))), None)

    def last_good(self, service: str, besides: Release | None = None) -> Release | None:
        """The good release to go back to, not `besides`: the one that ran last."""
        return next(iter(self.good(service, besides)), None)

    def good(self, service: str, besides: Release | None = None) -> list[Release]:
        """The releases to go back to, but for `besides`, the one that ran last first.

        Not the newest: an override that is taken back, or an image that is declared again, runs an older release again.
        Where none is good, one that was ready and whose probation never ended: it served, which is better than nothing.
        """
        others = [r for r in self.history(service) if besides is None or r.id != besides.id]
        others.sort(key=lambda r: (r.turn, r.id), reverse=True)
        return [r for r in others if r.state == GOOD] or [r for r in others if r.state == PROBATION]

    def loaded(self, source: str) -> str | None:
        """The image id that loading the archive at `source` gave, or None if it was never loaded."""
        rows = self.rows("SELECT image_id FROM loaded WHERE source = ?", (source,))
        return rows[0][0] if rows else None

    # --- changing --------------------------------------------------------------------------------

    def remember_loaded(self, source: str, image_id: str) -> None:
        """Record which image the archive at `source` holds, so that it is loaded once."""
        with self:
            self.rows("INSERT OR REPLACE INTO loaded VALUES (?, ?)", (source, image_id))

    def declare(
        self,
        service: str,
        image_id: str,
        image_ref: str,
        environment: dict[str, str],
        entry: dict[str, Any],
    ) -> Release:
        """Record what Nix declares now and return the release to run.

        A declaration not seen before is a new release and is run. One that did not change since the last start
        changes nothing: what runs stays (it may have been rolled back or deployed by hand). A declaration known to be
        bad is not tried again while there is a good release; where there is none, it is the only thing to try.

        An image that was deployed in place of the declared one stays for as long as Nix declares that same image:
        another environment is a new release of the deployed image.
        """
        with self:
            row = self._current(service)
            running = self.get(service, row[0]) if row else None
            base = image_id
            if running is not None and running.deployed and running.base == base and running.state != BAD:
                image_id, image_ref = running.image_id, running.image_ref
            release = self._record(service, image_id, image_ref, environment, entry, source="declared", base=base)
            chosen = release
            if row is not None and running is not None and row[1] == release.fingerprint:
                chosen = running
            if chosen.state == BAD:
                chosen = self.last_good(service) or release
            self._set_current(service, chosen.id, release.fingerprint)
        return chosen

    def stage(
        self,
        service: str,
        image_id: str,
        image_ref: str,
        environment: dict[str, str],
        entry: dict[str, Any],
        *,
        source: str,
        base: str,
    ) -> Release:
        """Record what a deployment is to run, without choosing it. `base` is the image that Nix declares."""
        with self:
            return self._record(service, image_id, image_ref, environment, entry, source=source, base=base)

    def _record(
        self,
        service: str,
        image_id: str,
        image_ref: str,
        environment: dict[str, str],
        entry: dict[str, Any],
        *,
        source: str,
        base: str,
    ) -> Release:
        print_ = fingerprint(image_id, environment, entry)
        release = self.by_fingerprint(service, print_)
        if release is None:
            now = time.time()
            self.rows(
                "INSERT INTO release (service, fingerprint, image_id, image_ref, environment, entry, source, "
                "created, state, changed, base) VALUES (?, ?, ?, ?, ?, ?, ?, ?, 'staged', ?, ?)",
                (
                    service,
                    print_,
                    image_id,
                    image_ref,
                    json.dumps(environment),
                    json.dumps(entry),
                    source,
                    now,
                    now,
                    base,
                ),
            )
            release = self.by_fingerprint(service, print_)
        elif release.base != base:
            # The same image may be declared after it was deployed.
            self.rows("UPDATE release SET base = ? WHERE id = ?", (base, release.id))
            release.base = base
        if release is None:
            raise HookError(f"{self.path}: a release just written cannot be read back")
        return release

    def _set_current(self, service: str, release: int, declared: str) -> None:
        before = self._current(service)
        if before is None or before[0] != release:
            # A number, not a time: clocks jump.
            self.rows("UPDATE release SET turn = (SELECT 1 + MAX(turn) FROM release) WHERE id = ?", (release,))
        self.rows("INSERT OR REPLACE INTO current VALUES (?, ?, ?)", (service, release, declared))

    def _set_state(self, release: Release, state: str, reason: str = "", log: str = "") -> None:
        self.rows(
            "UPDATE release SET state = ?, changed = ?, reason = ?, log = ? WHERE id = ?",
            (state, time.time(), reason, log, release.id),
        )
        release.state, release.reason, release.log = state, reason, log

    def probation(self, release: Release) -> None:
        """The release is ready for the first time since it was chosen; from now on it has to stay so.

        One that was given up meanwhile, for another one, stays bad.
        """
        with self:
            found = self.get(release.service, release.id)
            row = self._current(release.service)
            if found is not None and found.state == BAD and row is not None and row[0] != release.id:
                release.state = BAD
                return
            self._set_state(release, PROBATION, release.reason, release.log)

    def bless(self, release: Release) -> None:
        """The release stayed ready through its probation: it is good."""
        with self:
            self._set_state(release, GOOD)

    def condemn(self, release: Release, reason: str, log: str, back_to: Release | None) -> None:
        """The release is bad; the next start runs `back_to`. With no `back_to` it stays the one to try."""
        with self:
            self._set_state(release, BAD, reason, log)
            if back_to is not None:
                self._choose(back_to)

    def choose(self, release: Release) -> None:
        """Make `release` what the next start runs; a bad one gets another try."""
        with self:
            self.choose_within(release)

    def choose_within(self, release: Release) -> None:
        """As `choose`, as part of a transaction of the caller's."""
        if release.state == BAD:
            self._set_state(release, STAGED, release.reason, release.log)
        self._choose(release)

    def _choose(self, release: Release) -> None:
        row = self._current(release.service)
        self._set_current(release.service, release.id, row[1] if row else release.fingerprint)

    def prune(self, service: str, retain: int) -> list[Release]:
        """Forget all but the last `retain` good ones to have run and the last `retain` others; returns the forgotten.

        What runs, what is declared and what a deployment is about always stay.
        """
        with self:
            keep = {r.id for r in (self.current(service), self.declared(service)) if r is not None}
            # What a deployment is about to run, and what it would go back to.
            for row in self.rows("SELECT release, previous FROM deploy WHERE ended IS NULL"):
                keep.update(row)
            everything = self.history(service)
            good = sorted((r for r in everything if r.state == GOOD), key=lambda r: (r.turn, r.id), reverse=True)
            for group in (good, [r for r in everything if r.state != GOOD]):
                keep.update(r.id for r in group[:retain])
            gone = [r for r in everything if r.id not in keep]
            for release in gone:
                self.rows("DELETE FROM release WHERE id = ?", (release.id,))
        return gone


class Damaged(HookError):
    """The file is there and is not a releases database any more."""

    def __init__(self, path: str, error: Exception | str) -> None:
        super().__init__(
            f"{path} is damaged ({printable(str(error), 120)}); running services are not touched. "
            f"Keep a copy and let the next start begin a new one: mv {path} {path}.damaged",
            UNEXPECTED,
        )
        self.path = path

    def set_aside(self) -> str | None:
        """Rename the damaged file, with its WAL, so that a new one can be begun; returns the new name.

        Returns None where another start has done so already: what is there now is sound. Raises HookError.
        """
        with _Lock(self.path):
            if not os.path.lexists(self.path):
                return None
            try:
                Store.open(self.path, create=False).close()
            except Damaged:
                pass
            else:
                return None
            aside = f"{self.path}.damaged-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}"
            number = 0
            while os.path.lexists(aside):
                number += 1
                aside = f"{aside.partition('+')[0]}+{number}"
            try:
                for suffix in ("-wal", "-shm", ""):
                    if os.path.lexists(self.path + suffix):
                        os.rename(self.path + suffix, aside + suffix)
            except OSError as error:
                raise HookError(f"cannot set {self.path} aside: {error.strerror}") from None
            return aside


class _Lock:
    """One start at a time opens, makes or sets aside the file: SQLite's own locks do not cover that."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.file = -1

    def __enter__(self) -> None:
        import fcntl

        try:
            os.makedirs(os.path.dirname(self.path), mode=0o755, exist_ok=True)
            self.file = os.open(f"{self.path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self.file, fcntl.LOCK_EX)
        except OSError as error:
            raise HookError(f"cannot open {self.path}: {error.strerror} ({error.filename})") from None

    def __exit__(self, *_: object) -> None:
        os.close(self.file)


def _no_space(folder: str) -> bool:
    try:
        found = os.statvfs(folder)
    except OSError:
        return False
    return found.f_bavail * found.f_frsize < _NEEDED or (found.f_files > 0 and found.f_favail == 0)


def _translated(path: str, error: sqlite3.Error) -> HookError:
    """What an error of SQLite means for an administrator."""
    if isinstance(error, sqlite3.DatabaseError) and not isinstance(error, sqlite3.OperationalError):
        return Damaged(path, error)
    folder = os.path.dirname(path)
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    if code in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CANTOPEN) and _no_space(folder):
        # Even a reader needs a page beside the database, and SQLite does not say why it gets none.
        return HookError(f"cannot use {path}: the disk is full; df -h {folder}")
    advice = {sqlite3.SQLITE_FULL: f"; df -h {folder}", sqlite3.SQLITE_BUSY: f"; who has it open: fuser -v {path}"}
    return HookError(f"cannot use {path}: {printable(str(error))}{advice.get(code, f'; ls -ld {folder} {path}')}")
