"""What commands need of the installed stack: services by name, the release journal, rights.

Turns what the hooks raise into errors that name the command to run next.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

from aistack.errors import StoreError, UsageError
from aistack.hooks.errors import HookError
from aistack.hooks.releases import Damaged, Store

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from aistack.hooks.manifest import Manifest, Service


def validate(manifest: Manifest) -> None:
    """Check the whole manifest, for commands that act on it or are asked what is wrong.

    The hooks' reader trusts the types it finds; this does not, and costs a fifth of a second.

    Raises:
        ManifestError: says all that is wrong (exit code 2).
    """
    from aistack import model

    model.load(Path(manifest.path))


def chosen(manifest: Manifest, names: Sequence[str]) -> list[Service]:
    """Return the named services, or all of them, each after the services it depends on.

    Raises:
        HookError: a name is not declared (exit code 2).
    """
    wanted = {name: manifest.service(name) for name in names} or manifest.services
    ordered: dict[str, Service] = {}

    def add(service: Service, path: tuple[str, ...]) -> None:
        if service.name in path or service.name in ordered:
            return
        for name in service.depends_on:
            if name in manifest.services:
                add(manifest.services[name], (*path, service.name))
        ordered[service.name] = service

    for service in wanted.values():
        add(service, ())
    return [service for name, service in ordered.items() if name in wanted]


def journal_path(manifest: Manifest) -> str:
    """Return where the releases are recorded."""
    return str(Path(manifest.state_dir, "releases.db"))


def has_journal(manifest: Manifest) -> bool:
    """Whether a service was ever started: only then there is a journal."""
    return os.path.lexists(journal_path(manifest))


def may_use_journal(manifest: Manifest) -> bool:
    """Whether this user may open the journal: SQLite's WAL needs to write even for a reader."""
    # The effective user is the one who will open it.
    may = functools.partial(os.access, effective_ids=True)
    return may(journal_path(manifest), os.R_OK | os.W_OK) and may(manifest.state_dir, os.W_OK | os.X_OK)


def require_root(manifest: Manifest, command: str) -> None:
    """Refuse a command that changes the stack or reads its journal when this user may not.

    Raises:
        UsageError: says so, and how to call it (exit code 2).
    """
    if has_journal(manifest) and not may_use_journal(manifest):
        raise UsageError(
            f"`{command}` needs root: this user may not use {journal_path(manifest)}",
            hint=f"sudo {command}",
        )


@contextlib.contextmanager
def journal_or_new(manifest: Manifest) -> Iterator[Store]:
    """Open the release journal, made if no service was ever started, and close it afterwards.

    Raises:
        StoreError: it is damaged, locked or of another version; says what to do about it.
    """
    if not has_journal(manifest):
        Store.open(journal_path(manifest)).close()
    with journal(manifest) as store:
        yield store


@contextlib.contextmanager
def journal(manifest: Manifest) -> Iterator[Store]:
    """Open the release journal that is there, and close it afterwards.

    Raises:
        StoreError: it is damaged, locked or of another version; says what to do about it.
    """
    path = journal_path(manifest)
    if not Path(path).is_file():
        raise StoreError(f"cannot open {path}", why="it is not a file")
    try:
        store = Store.open(path, create=False)
    except HookError as error:
        raise StoreError(str(error)) from None
    try:
        yield store
    except sqlite3.OperationalError as error:
        raise StoreError(f"cannot use {path}", why=error, hint=f"fuser -v {path}") from None
    except (sqlite3.DatabaseError, json.JSONDecodeError) as error:
        # Found while reading, behind what opening looks at: the same damage.
        raise StoreError(str(Damaged(path, error))) from None
    finally:
        store.close()
