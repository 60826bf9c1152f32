"""Overrides: values of the .env that an administrator changed while the stack runs.

They stand in stateDir/overrides.json, together with how they came about:

    {"schemaVersion": 1,
     "values": {"RALPH_MAX_ITERATIONS_SIMPLE": "15"},
     "history": [{"id": 1, "at": 1760000000.5, "by": "root", "what": "set …", "values": {…}}]}

The effective value of a key is its override, else what Nix declares. Hooks only read the file: where it is no use, what
Nix declares is used, one line says so, and the file is kept. The command line writes it, one writer at a time.
"""

from __future__ import annotations

import json
import os
import stat
import time

from aistack.hooks.errors import INVALID, LOCK_HELD, HookError, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import Any

    from aistack.hooks.manifest import Manifest, Override

    # A key, its value that runs, and the one that should; None where there is no such key.
    Difference = tuple[str, str | None, str | None]

SCHEMA_VERSION = 1
HISTORY = 50  # entries that are kept
_LARGEST_FILE = 1_000_000  # bytes; fifty entries of a large stack take a tenth of it
_LONGEST_NUMBER = 16  # characters; JSON's readers agree on no more digits
_LOCK_PATIENCE = 5.0  # seconds; a writer holds the lock for milliseconds
_MOST_KEYS = 5  # of a difference that are named on one line

# What the hooks themselves go by, whoever else reads it.
OF_HOOKS = frozenset({"STARTUP_TIMEOUT_SECONDS", "STARTUP_DEPENDENCY_CHECK", "SELF_HEALING_ENABLED"})

# The characters, beside letters and digits, that every reader of the .env takes alike.
_PLAIN = "_./:@%+,=-"


class Malformed(HookError):
    """The file is there, and is no document that this program writes."""

    def __init__(self, path: str, why: str) -> None:
        super().__init__(
            f"{path} is no use: {printable(why, 200)}; what Nix declares holds, and the file is left as it is. "
            f"Mend it, or put it away: mv {path} {path}.damaged",
            INVALID,
        )


class Entry:
    """One change: when (Unix time, seconds), by whom, what was asked for, and all overrides as they were then."""

    __slots__ = ("at", "by", "id", "values", "what")

    def __init__(self, identifier: int, at: float, by: str, what: str, values: dict[str, str]) -> None:
        self.id = identifier
        self.at = at
        self.by = by
        self.what = what
        self.values = values


class Document:
    """The file's contents; the newest entry of the history stands last."""

    __slots__ = ("history", "values")

    def __init__(self, values: dict[str, str], history: list[Entry]) -> None:
        self.values = values
        self.history = history


def location(manifest: Manifest) -> str:
    """Where the overrides of a stack are."""
    return os.path.join(manifest.state_dir, "overrides.json")


# --- reading ---------------------------------------------------------------------------------------------------------


def apply(manifest: Manifest) -> None:
    """Put the overrides over what Nix declares. Never raises: a stack has to start whatever is in that file."""
    try:
        values = _values(_load(location(manifest)), location(manifest))
    except HookError as error:
        manifest.overrides_problem = str(error)
        return
    manifest.overrides, problems = usable(manifest, values)
    if problems:
        manifest.overrides_problem = f"{location(manifest)}: ignored: {'; '.join(problems)}; see: aistack env check"
    put_over(manifest, manifest.overrides)


def put_over(manifest: Manifest, values: dict[str, str]) -> None:
    """Make `values`, which must be usable, the overrides of this manifest."""
    manifest.overrides = values
    manifest.environment = {**manifest.declared, **values}
    settings = manifest.environment
    if "STARTUP_TIMEOUT_SECONDS" in values:
        manifest.startup_timeout = int(settings["STARTUP_TIMEOUT_SECONDS"])
    if "STARTUP_DEPENDENCY_CHECK" in values:
        manifest.dependency_check = settings["STARTUP_DEPENDENCY_CHECK"] == "true"
    if "SELF_HEALING_ENABLED" in values:
        manifest.self_healing = settings["SELF_HEALING_ENABLED"] == "true"


def read(manifest: Manifest) -> Document:
    """The whole document, an empty one where there is none. Raises Malformed, HookError."""
    path = location(manifest)
    raw = _load(path)
    return Document(_values(raw, path), _history(raw, path))


def _load(path: str) -> dict[str, Any]:
    """The document, of which nothing but the version is known. Raises Malformed."""
    try:
        # Not blocking: nobody may ever write to a named pipe that stands there by mistake.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return {"schemaVersion": SCHEMA_VERSION, "values": {}, "history": []}
    except OSError as error:
        raise Malformed(path, f"it cannot be read ({error.strerror})") from None
    try:
        with os.fdopen(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise Malformed(path, "it is not a regular file")
            text = file.read(_LARGEST_FILE + 1)
    except OSError as error:
        raise Malformed(path, f"it cannot be read ({error.strerror})") from None
    if len(text) > _LARGEST_FILE:
        raise Malformed(path, f"it is larger than {_LARGEST_FILE} bytes")
    try:
        raw: Any = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Malformed(path, f"it is not JSON ({error})") from None
    if not isinstance(raw, dict):
        raise Malformed(path, "it is not an object")
    version = raw.get("schemaVersion")
    if isinstance(version, bool) or version != SCHEMA_VERSION:
        raise Malformed(path, f"its schemaVersion is {version!r}, this program reads {SCHEMA_VERSION}")
    return raw


def _strings(values: Any) -> bool:
    return isinstance(values, dict) and all(isinstance(value, str) for value in values.values())


def _values(raw: dict[str, Any], path: str) -> dict[str, str]:
    if not _strings(raw.get("values")):
        raise Malformed(path, "its values are no object of strings")
    return dict(raw["values"])


def _history(raw: dict[str, Any], path: str) -> list[Entry]:
    found = raw.get("history")
    if not isinstance(found, list):
        raise Malformed(path, "its history is no list")
    entries = []
    for item in found:
        if not isinstance(item, dict) or not _strings(item.get("values")):
            raise Malformed(path, "an entry of its history has no values")
        identifier: Any = item.get("id")
        at: Any = item.get("at")
        if type(identifier) is not int or identifier < 1 or type(at) not in (int, float) or not 0 <= at < 1e11:
            raise Malformed(path, "an entry of its history has no id or no time")
        if not isinstance(item.get("by"), str) or not isinstance(item.get("what"), str):
            raise Malformed(path, "an entry of its history does not say who and what")
        entries.append(Entry(identifier, at, item["by"], item["what"], item["values"]))
    ids = [entry.id for entry in entries]
    if ids != sorted(set(ids)):
        raise Malformed(path, "its history is not in order")
    return entries


# --- judging ---------------------------------------------------------------------------------------------------------


def wanted(override: Override) -> str:
    """In words, what an override must be."""
    if override.type == "bool":
        return "true or false"
    if override.type == "string":
        return "letters, digits and _ . / : @ % + , = - only"
    low, high = override.minimum, override.maximum
    if low is not None and high is not None:
        return f"a whole number from {low} to {high}"
    if low is not None:
        return f"a whole number, {low} or more"
    return "a whole number" if high is None else f"a whole number, {high} or less"


def problem(override: Override, value: str) -> str | None:
    """What is wrong with a value, or None."""
    if override.type == "bool":
        fits = value in ("true", "false")
    elif override.type == "int":
        fits = _is_integer(value) and _within(override, int(value))
    else:
        fits = all((c.isascii() and c.isalnum()) or c in _PLAIN for c in value)
        address, _, rest = value.partition("://")
        if fits and rest and ":" in rest.partition("@")[0] and "@" in rest:
            return f"must not hold a password: everybody may read it (the URL of {address})"
    return None if fits else f"must be {wanted(override)}, and not {printable(repr(value), 80)}"


def _is_integer(value: str) -> bool:
    digits = value.removeprefix("-")
    plain = digits.isascii() and digits.isdigit() and len(value) <= _LONGEST_NUMBER
    # Written in one way only: 7, not 07 nor -0.
    return plain and str(int(value)) == value


def _within(override: Override, number: int) -> bool:
    low, high = override.minimum, override.maximum
    return (low is None or number >= low) and (high is None or number <= high)


def usable(manifest: Manifest, values: dict[str, str]) -> tuple[dict[str, str], list[str]]:
    """Those of `values` that hold, for all keys that move together, and what is wrong with the others.

    Nix may have changed since they were made: another range, or no such key any more.
    """
    good: dict[str, str] = {}
    problems = []
    for key, value in sorted(values.items()):
        override = manifest.overridable.get(key)
        if override is None:
            problems.append(f"{printable(key, 80)} cannot be overridden")
            continue
        wrong = problem(override, value)
        other = next((other for other in override.keys if values.get(other, value) != value), None)
        if wrong is None and other is not None:
            wrong = f"is {printable(value, 80)}, and {other}, which moves with it, is not"
        if wrong is not None:
            problems.append(f"{key} {wrong}")
        else:
            good.update(dict.fromkeys(override.keys, value))
    return good, problems


def differences(runs: dict[str, str], should: dict[str, str]) -> list[Difference]:
    """Keys whose values differ, sorted."""
    keys = sorted(set(runs) | set(should))
    return [(key, runs.get(key), should.get(key)) for key in keys if runs.get(key) != should.get(key)]


def in_words(manifest: Manifest, runs: dict[str, str], should: dict[str, str]) -> str:
    """How an environment that runs differs from the one that should: `KEY=10, not the overridden 45`; or ''."""
    found = differences(runs, should)
    parts = []
    for key, value, other in found[:_MOST_KEYS]:
        # Its values are on one line each, and may be of any length.
        now = f"{key} unset" if value is None else f"{key}={printable(value, 60)}"
        if other is None:
            parts.append(f"{now}, which is declared no more")
        else:
            source = "overridden" if manifest.overrides.get(key) == other else "declared"
            parts.append(f"{now}, not the {source} {printable(repr(other) if other == '' else other, 60)}")
    if len(found) > _MOST_KEYS:
        parts.append(f"and {len(found) - _MOST_KEYS} other keys")
    return "; ".join(parts)


# --- changing --------------------------------------------------------------------------------------------------------


def change(
    manifest: Manifest, by: str, what: str, decide: Callable[[Document], dict[str, str]]
) -> tuple[Document, Document]:
    """Replace all overrides by what `decide` makes of them; returns the document before and after.

    Nothing is written where nothing changes, or where `decide` raises. Raises Malformed, HookError (another writer has
    the lock: exit code 4; disk full, no permission).
    """
    path = location(manifest)
    try:
        os.makedirs(manifest.state_dir, mode=0o755, exist_ok=True)
    except OSError as error:
        raise HookError(f"cannot make {manifest.state_dir}: {error.strerror}") from None
    lock = _lock(f"{path.removesuffix('.json')}.lock")
    try:
        before = read(manifest)
        values = decide(before)
        if values == before.values:
            return before, before
        identifier = before.history[-1].id + 1 if before.history else 1
        entry = Entry(identifier, round(time.time(), 3), printable(by, 60), printable(what, 400), values)
        after = Document(values, [*before.history, entry][-HISTORY:])
        _write(path, after)
    finally:
        os.close(lock)
    return before, after


def _lock(path: str) -> int:
    """The descriptor that holds the lock until it is closed. Raises HookError (exit code 4)."""
    import fcntl

    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        raise HookError(f"cannot open {path}: {error.strerror}") from None
    deadline = time.monotonic() + _LOCK_PATIENCE
    pause = 0.001
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return descriptor
        except BlockingIOError:
            if time.monotonic() > deadline:
                os.close(descriptor)
                raise HookError(
                    f"another program is changing the overrides, and has held {path} for {_LOCK_PATIENCE:g} s; "
                    f"see who: fuser -v {path}",
                    LOCK_HELD,
                ) from None
            # No wait for a lock ends by itself, but for a signal; the holder needs milliseconds.
            time.sleep(pause)
            pause = min(pause * 2, 0.1)
        except OSError as error:
            os.close(descriptor)
            raise HookError(f"cannot lock {path}: {error.strerror}") from None


def _write(path: str, document: Document) -> None:
    from aistack.hooks.runtime import write_atomic

    for left in _leftovers(path):
        os.unlink(left)
    history = [
        {"id": entry.id, "at": entry.at, "by": entry.by, "what": entry.what, "values": entry.values}
        for entry in document.history
    ]
    raw = {"schemaVersion": SCHEMA_VERSION, "values": document.values, "history": history}
    write_atomic(path, json.dumps(raw, indent=2, sort_keys=True).encode() + b"\n", 0o644)
    # What was said to be changed must still be so after a power loss.
    directory = os.open(os.path.dirname(path), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _leftovers(path: str) -> Iterator[str]:
    """Files that a writer left that was killed: whoever has the lock knows that nobody writes them any more."""
    folder, name = os.path.split(path)
    for found in os.listdir(folder):
        if found.startswith(f"{name}.") and found.endswith(".new"):
            yield os.path.join(folder, found)


def readers(manifest: Manifest, keys: Iterable[str]) -> list[str]:
    """Names of the services whose containers get one of these keys of the .env."""
    changed = set(keys)
    return [
        service.name
        for service in manifest.services.values()
        if not service.external and service.stack_environment and changed - set(service.environment)
    ]
