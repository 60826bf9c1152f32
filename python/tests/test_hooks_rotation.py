"""A secret's file changes: who uses it and runs is restarted, PostgreSQL's role first; what is of no use is refused."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import fakehost
import pytest

from aistack.hooks import await_ready, postgres_role, preflight, probe, rotation, runtime
from aistack.hooks.errors import DONE
from aistack.hooks.main import main
from aistack.hooks.manifest import load

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

OLD, NEW = "old value", "new value"
# Says what it was asked to run, and keeps what psql is given.
_PODMAN = r"""#!/bin/sh
printf 'podman %s\n' "$*" >> "$FAKE_HOST/calls"
case "$1" in
exec)
  cat > "$FAKE_HOST/statement"
  if [ -f "$FAKE_HOST/psql-fails" ]; then cat "$FAKE_HOST/psql-fails" >&2; exit 2; fi ;;
esac
"""


class Stack:
    """A database and an app with its password, and a cache without."""

    def __init__(self, host: fakehost.FakeHost) -> None:
        self.host = host
        self.file = host.root / "secret"
        self.file.write_text(f"{OLD}\n")
        self.declare()
        (host.root / "fake-programs/podman").write_text(_PODMAN)
        manifest = load()
        for name in ("app", "postgres", "redis"):
            host.unit(name, "active")
            runtime.write_environment(manifest, manifest.services[name], {"REDIS_HOST": "redis"})

    def declare(self, delivered: str = "env", *, enable: bool = True) -> None:
        login = fakehost.probe("postgres", 5432, user="mcp", database="aidb", secret="PW")  # noqa: S106
        self.host.declare(
            {
                "app": fakehost.service("app", secrets=["PW"], dependsOn=["postgres"]),
                "postgres": fakehost.service("postgres", secrets=["PW"], probe=login, port=5432),
                "redis": fakehost.service("redis"),
            },
            secrets={"PW": {"file": str(self.file), "as": delivered}},
            secretRotation={"enable": enable},
        )

    def follow(self) -> str:
        """Let systemd notice; returns what was said."""
        self.host.capsys.readouterr()
        assert main(["secrets"]) == DONE
        return self.host.capsys.readouterr().err

    def acted(self) -> list[str]:
        """What was done so far."""
        return [call for call in self.host.calls() if " show " not in call]

    def due(self) -> bool:
        """Whether a health check finds something to follow."""
        manifest = load()
        return rotation.due(manifest, list(manifest.services.values()))

    @property
    def statement(self) -> str:
        return (self.host.root / "statement").read_text()


RESTARTED = [
    "systemctl reset-failed podman-aistack-app.service podman-aistack-postgres.service",
    "systemctl try-restart --no-block podman-aistack-app.service podman-aistack-postgres.service",
]


@pytest.fixture
def stack(host: fakehost.FakeHost, monkeypatch: pytest.MonkeyPatch) -> Stack:
    """The stack, up, with the old value; its database refuses the new one until it is given it."""
    monkeypatch.setattr(rotation, "_QUIET", 0.01)
    monkeypatch.setattr(rotation, "_PATIENCE", 0.2)
    found = Stack(host)

    def ask(_: object, service: Any, password: str | None) -> probe.Result:  # noqa: ANN401
        knows = (host.root / "statement").exists() or password == OLD
        assert service.name == "postgres"
        return probe.Result(probe.READY if knows else probe.AUTH_REFUSED, "asked")

    monkeypatch.setattr(probe, "ask", ask)
    return found


def test_nothing_happens_while_the_value_is_the_same(stack: Stack) -> None:
    stack.file.write_text(OLD)  # without the line break at its end, as another file
    assert stack.follow() == ""
    assert (stack.acted(), stack.due()) == ([], False)


@pytest.mark.parametrize("delivered", ["env", "file"])
def test_who_uses_it_is_restarted_and_the_role_follows_first(stack: Stack, delivered: str) -> None:
    stack.declare(delivered)
    manifest = load()
    for service in manifest.services.values():
        # As its user: the tests may not be root's.
        service.user = f"{stack.file.stat().st_uid}:{stack.file.stat().st_gid}"
        runtime.write_environment(manifest, service, {})
    stack.file.write_text(f"{NEW}\n")
    assert stack.due()
    said = stack.follow()
    assert said == (
        "postgres: role mcp has the password of the secret PW now\nsecret PW changed: restarting app, postgres\n"
    )
    (psql, *rest) = stack.acted()
    assert psql.startswith("podman exec --interactive aistack-postgres psql --no-psqlrc --no-password --quiet ")
    assert "--username=mcp --dbname=aidb --port=5432" in psql
    assert rest == RESTARTED
    assert stack.statement.startswith('ALTER ROLE "mcp" PASSWORD \'SCRAM-SHA-256$4096:')
    assert NEW not in stack.statement + psql + said


def test_only_what_runs_is_restarted(stack: Stack) -> None:
    stack.host.unit("app", "failed")
    stack.host.unit("postgres", "inactive")
    stack.file.write_text(NEW)
    assert stack.follow() == ""
    assert stack.acted() == []


def test_a_password_that_the_database_has_already_is_not_set_again(stack: Stack) -> None:
    (stack.host.root / "statement").write_text("by hand")
    stack.file.write_text(NEW)
    assert stack.follow() == "secret PW changed: restarting app, postgres\n"
    assert stack.acted() == RESTARTED


def _empty(file: Path) -> None:
    file.write_text("\n")


def _two_lines(file: Path) -> None:
    file.write_text(f"{NEW}\n{NEW}\n")


def _gone(file: Path) -> None:
    file.unlink()


@pytest.mark.parametrize(
    ("spoil", "words"), [(_empty, "is empty"), (_two_lines, "more than one line"), (_gone, "does not exist")]
)
def test_a_value_of_no_use_is_refused_once_and_what_runs_keeps_the_old_one(
    stack: Stack, spoil: Callable[[Path], None], words: str
) -> None:
    spoil(stack.file)
    assert stack.due()
    said = stack.follow()
    assert words in said
    assert "not followed: app, postgres keep the old value until they are restarted" in said
    assert NEW not in said
    assert stack.acted() == []
    assert not stack.due(), "it would be said at every health check"
    assert stack.follow() == ""
    stack.file.write_text(NEW)
    assert stack.due()
    assert "restarting app, postgres" in stack.follow()


def test_where_the_role_cannot_follow_nothing_is_restarted_and_the_way_out_is_said(stack: Stack) -> None:
    (stack.host.root / "psql-fails").write_text('psql: error: FATAL:  no pg_hba.conf entry for "mcp"\n')
    stack.file.write_text(NEW)
    said = stack.follow()
    assert "the password in postgres cannot: psql in aistack-postgres says: psql: error: FATAL:" in said
    assert "podman exec -it aistack-postgres psql -U mcp aidb, then \\password" in said
    assert "afterwards: systemctl start aistack-secrets.service; not followed: app, postgres keep" in said
    assert [call for call in stack.acted() if call.startswith("systemctl")] == []
    assert not stack.due()


def test_it_can_be_switched_off(stack: Stack) -> None:
    stack.declare(enable=False)
    stack.file.write_text(NEW)
    assert (stack.due(), stack.follow(), stack.acted()) == (False, "", [])


def test_a_writer_that_never_ends_does_not_restart_for_ever(stack: Stack) -> None:
    said = ""
    for number in range(8):
        stack.file.write_text(f"{NEW} {number}")
        said += stack.follow()
    assert said.count("changed: restarting") == 5
    assert said.count("restarted no more for now") == 1
    assert not stack.due()
    assert len([call for call in stack.acted() if "try-restart" in call]) == 5


def test_a_record_of_no_use_is_none(stack: Stack) -> None:
    (stack.host.root / "run/rotation.json").write_text("{")
    stack.file.write_text(NEW)
    assert "restarting" in stack.follow()
    record = json.loads((stack.host.root / "run/rotation.json").read_text())
    assert (len(record["at"]), record["refused"], record["exhausted"]) == (1, {}, False)


def test_a_service_that_runs_is_asked_with_the_value_it_was_given(stack: Stack) -> None:
    manifest = load()
    postgres = manifest.services["postgres"]
    assert runtime.probe_passwords(manifest, postgres) == [OLD]
    stack.file.write_text(NEW)
    assert runtime.probe_passwords(manifest, postgres) == [NEW, OLD]
    stack.file.unlink()
    assert runtime.probe_passwords(manifest, postgres) == [OLD]


def test_a_useless_file_is_no_reason_to_roll_back_what_runs(stack: Stack) -> None:
    stack.file.write_text("")
    manifest = load()
    (itself,) = preflight.dependencies(manifest, ["postgres"], 0, as_started=True)
    (needed,) = preflight.dependencies(manifest, ["postgres"], 0)
    assert itself.ok
    assert needed.kind == "secret missing", "a dependent would be given what is in the file"


# --- at a start ------------------------------------------------------------------------------------------------------


def test_a_start_with_another_password_than_the_database_has_gives_it_that(stack: Stack) -> None:
    stack.file.write_text(NEW)
    manifest = load()
    result = await_ready.wait(manifest, manifest.services["postgres"], None)
    assert result.ok
    assert stack.acted()[-1] == "systemctl start --no-block aistack-secrets.service", "others run with the old one"
    assert "role mcp has the password of the secret PW now" in stack.host.capsys.readouterr().err


def test_where_that_cannot_be_it_is_no_fault_of_the_release(stack: Stack, monkeypatch: pytest.MonkeyPatch) -> None:
    (stack.host.root / "psql-fails").write_text("psql: error: FATAL:  nobody is trusted here\n")
    stack.file.write_text(NEW)
    stack.host.release("postgres", 1, "good")
    stack.host.release("postgres", 2, "staged")
    stack.host.verdict("postgres", phase="starting", release=2, proven=False, checks=[])
    monkeypatch.setattr(probe, "ask", lambda *_: probe.Result(probe.AUTH_REFUSED, "wrong password"))
    assert await_ready.await_ready(load(), "postgres") == 1
    verdict = runtime.read_verdict(load(), "postgres")
    (check,) = verdict["checks"]
    assert (verdict["phase"], check["subject"], check["kind"]) == ("preflight", "secret PW", "authentication refused")
    assert "nobody is trusted here" in check["detail"]
    assert "by hand: podman exec" in stack.host.capsys.readouterr().err


def test_a_role_with_a_strange_name_is_quoted(stack: Stack) -> None:
    service = load().services["postgres"]
    assert service.probe is not None
    service.probe.user = 'a"; DROP TABLE x; --'
    assert postgres_role.set_password(service, NEW) is None
    assert stack.statement.startswith('ALTER ROLE "a""; DROP TABLE x; --" PASSWORD ')
