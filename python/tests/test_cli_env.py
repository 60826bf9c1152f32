"""`aistack env`: what is shown, what is refused, what is written, and what becomes of the services."""

from __future__ import annotations

import copy
import json
import os
import subprocess
from pathlib import Path
from typing import Any

import fakehost
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aistack.cli import env
from aistack.hooks import deploy_lock, overrides
from aistack.hooks.manifest import load
from aistack.hooks.releases import Store

UNIT = "podman-aistack-app.service"
ROLLBACK = "aistack-rollback@app.service"
PROBE = fakehost.probe("exec", None, command=["true"])

DECLARED = {
    "ADAPTIVE_ITERATION_LIMITS": "true",
    "LOG_LEVEL": "info",
    "OTHER_LEVEL": "info",
    "RALPH_ADAPTIVE_ITERATIONS": "true",
    "RALPH_MAX_ITERATIONS_SIMPLE": "10",
    "REDIS_HOST": "redis",
    "STARTUP_TIMEOUT_SECONDS": "1",
}
OPTIONS = {
    "ADAPTIVE_ITERATION_LIMITS": "services.aistack.ralph.adaptive",
    "LOG_LEVEL": "services.aistack.environment.LOG_LEVEL",
    "OTHER_LEVEL": "services.aistack.environment.OTHER_LEVEL",
    "RALPH_ADAPTIVE_ITERATIONS": "services.aistack.ralph.adaptive",
    "RALPH_MAX_ITERATIONS_SIMPLE": "services.aistack.ralph.maxIterations.simple",
    "REDIS_HOST": "services.aistack.services.redis.external.host",
    "STARTUP_TIMEOUT_SECONDS": "services.aistack.startup.timeoutSeconds",
}


def entry(kind: str, *keys: str, low: int | None = None, high: int | None = None) -> dict[str, Any]:
    return {"type": kind, "min": low, "max": high, "option": OPTIONS[keys[0]], "keys": list(keys)}


ADAPTIVE = entry("bool", "ADAPTIVE_ITERATION_LIMITS", "RALPH_ADAPTIVE_ITERATIONS")
CHANGES: dict[str, Any] = {
    "environment": DECLARED,
    "environmentOptions": OPTIONS,
    "overridable": {
        "ADAPTIVE_ITERATION_LIMITS": ADAPTIVE,
        "RALPH_ADAPTIVE_ITERATIONS": ADAPTIVE,
        "LOG_LEVEL": entry("string", "LOG_LEVEL"),
        "RALPH_MAX_ITERATIONS_SIMPLE": entry("int", "RALPH_MAX_ITERATIONS_SIMPLE", low=1, high=100),
        "STARTUP_TIMEOUT_SECONDS": entry("int", "STARTUP_TIMEOUT_SECONDS", low=1, high=60),
    },
    "secrets": {"POSTGRES_PASSWORD": {"file": "/etc/aistack/secrets/postgres-password", "as": "env"}},
}


@pytest.fixture
def stack(host: fakehost.FakeHost, monkeypatch: pytest.MonkeyPatch) -> fakehost.FakeHost:
    """Two services that read the stack's environment, the second needing the first, and one that does not."""
    monkeypatch.delenv("SUDO_USER", raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    services = {
        "worker": fakehost.service("worker", dependsOn=["app"], probe=PROBE),
        "app": fakehost.service("app", secrets=["POSTGRES_PASSWORD"], probe=PROBE),
        "cache": fakehost.service("cache", stackEnvironment=False, environment={"CACHE_SIZE": "1"}),
    }
    host.declare(services, **copy.deepcopy(CHANGES))
    host.images()
    write_env_file(host)
    return host


def write_env_file(host: fakehost.FakeHost, **changes: str) -> None:
    lines = [f"{key}={value}\n" for key, value in {**DECLARED, **changes}.items()]
    (host.root / ".env").write_text("# Generated\n\n" + "".join(lines))


@pytest.fixture
def running(stack: fakehost.FakeHost) -> fakehost.FakeHost:
    """The same, where all of it runs with what Nix declares."""
    for name in ("app", "worker", "cache"):
        run(stack, name, 1)
    return stack


def run(host: fakehost.FakeHost, name: str, number: int) -> None:
    """Let a service run a good release of what is effective now."""
    release = host.release(name, number, "good")
    host.unit(name, "active")
    host.verdict(name, phase="ready", release=release.id, readyAt=1_700_000_000.5, ok=True)


def document(host: fakehost.FakeHost) -> dict[str, Any]:
    path = host.root / "state/overrides.json"
    found = json.loads(path.read_text()) if path.exists() else {"values": {}, "history": []}
    assert isinstance(found, dict)
    return found


def values(host: fakehost.FakeHost) -> dict[str, str]:
    found = document(host)["values"]
    assert isinstance(found, dict)
    return found


def restarts(host: fakehost.FakeHost) -> list[str]:
    return [call.split()[-1] for call in host.calls() if call.startswith("systemctl restart podman-")]


# --- show, get -------------------------------------------------------------------------------------------------------


def test_show_prints_the_effective_environment_and_marks_what_is_overridden(stack: fakehost.FakeHost) -> None:
    assert stack.run("env", "set", "RALPH_MAX_ITERATIONS_SIMPLE=15").code == 0
    answer = stack.run("env", "show")
    assert (answer.code, answer.err) == (0, "")
    lines = answer.out.splitlines()
    assert lines[:3] == ["ADAPTIVE_ITERATION_LIMITS=true", "LOG_LEVEL=info", "OTHER_LEVEL=info"]
    where = lines.index("RALPH_MAX_ITERATIONS_SIMPLE=15")
    assert lines[where - 1] == "# RALPH_MAX_ITERATIONS_SIMPLE is overridden; Nix declares 10"
    assert [line for line in lines if line.startswith("#")] == [lines[where - 1]]


def test_no_secret_is_shown_nor_a_key_that_one_container_alone_has(stack: fakehost.FakeHost) -> None:
    for arguments in (["show"], ["show", "--json"], ["diff"], ["history"], ["check"]):
        answer = stack.run("env", *arguments)
        assert "POSTGRES_PASSWORD" not in answer.out + answer.err
        assert "CACHE_SIZE" not in answer.out


def test_show_json_says_of_each_key_where_it_comes_from_and_who_reads_it(stack: fakehost.FakeHost) -> None:
    stack.run("env", "set", "RALPH_MAX_ITERATIONS_SIMPLE=15")
    found = stack.run("env", "show", "--json").json
    assert found["schema_version"] == 1
    assert found["environment"] == {**DECLARED, "RALPH_MAX_ITERATIONS_SIMPLE": "15"}
    assert found["keys"][4] == {
        "key": "RALPH_MAX_ITERATIONS_SIMPLE",
        "value": "15",
        "declared": "10",
        "overridden": True,
        "option": "services.aistack.ralph.maxIterations.simple",
        "overridable": {"type": "int", "min": 1, "max": 100, "keys": ["RALPH_MAX_ITERATIONS_SIMPLE"]},
        "read_by": ["worker", "app"],
    }
    assert found["keys"][5]["overridable"] is None


def test_get_prints_the_value_alone(stack: fakehost.FakeHost) -> None:
    assert stack.run("env", "get", "LOG_LEVEL").out == "info\n"
    stack.run("env", "set", "LOG_LEVEL=")
    assert stack.run("env", "get", "LOG_LEVEL").out == "\n"
    assert stack.run("env", "get", "LOG_LEVEL", "--json").json["declared"] == "info"


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("POSTGRES_PASSWORD", "POSTGRES_PASSWORD is a secret, which is never shown"),
        ("RALPH_MAX_ITERATION_SIMPLE", "(did you mean RALPH_MAX_ITERATIONS_SIMPLE?)"),
        ("x\n\x1b[2J", r"there is no key 'x\n\x1b[2J'"),
        ("", "there is no key ''"),
        ("X" * 100_000, "there is no key 'XXX"),
    ],
)
def test_get_of_what_is_no_key_is_one_line(stack: fakehost.FakeHost, key: str, says: str) -> None:
    answer = stack.run("env", "get", key)
    assert (answer.code, answer.out) == (2, "")
    assert says in answer.err
    assert answer.err.count("\n") == 1
    assert len(answer.err) < 500


def test_a_file_that_is_no_use_is_said_and_nix_is_shown(stack: fakehost.FakeHost) -> None:
    path = stack.root / "state/overrides.json"
    path.parent.mkdir()
    path.write_text("{")
    answer = stack.run("env", "show")
    assert answer.code == 0
    assert "RALPH_MAX_ITERATIONS_SIMPLE=10\n" in answer.out
    assert answer.err.startswith(f"aistack: {path} is no use: it is not JSON")
    assert answer.err.count("\n") == 1
    for arguments in (
        ["set", "LOG_LEVEL=x"],
        ["unset", "LOG_LEVEL"],
        ["unset", "--all"],
        ["restore", "1"],
        ["history"],
    ):
        answer = stack.run("env", *arguments)
        assert answer.code == 2, arguments
        assert f"mv {path} {path}.damaged" in answer.err
    assert path.read_text() == "{"


def test_keys_are_completed_with_what_they_take(stack: fakehost.FakeHost) -> None:
    context = env.command.make_context("env", ["show"], resilient_parsing=True)
    parameter = env.set_.params[0]
    found = env.complete_key(context, parameter, "RALPH_M")
    assert [(item.value, item.help) for item in found] == [
        ("RALPH_MAX_ITERATIONS_SIMPLE", "a whole number from 1 to 100")
    ]
    assert "REDIS_HOST" in [item.value for item in env.complete_any_key(context, parameter, "")]
    stack.manifest_path.unlink()
    assert env.complete_key(context, parameter, "") == env.complete_any_key(context, parameter, "") == []


# --- set: what is refused --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("assignment", "says"),
    [
        ("RALPH_MAX_ITERATIONS_SIMPLE=101", "must be a whole number from 1 to 100, and not '101'"),
        ("RALPH_MAX_ITERATIONS_SIMPLE=0", "must be a whole number from 1 to 100"),
        ("RALPH_MAX_ITERATIONS_SIMPLE=ten", "(services.aistack.ralph.maxIterations.simple)"),
        ("RALPH_MAX_ITERATIONS_SIMPLE=", "and not ''"),
        ("RALPH_ADAPTIVE_ITERATIONS=yes", "must be true or false, and not 'yes'"),
        ("LOG_LEVEL=a\nB=c", r"and not 'a\nB=c'"),
        ("LOG_LEVEL=\x1b[2J", r"and not '\x1b[2J'"),
        ("LOG_LEVEL='quoted'", """must be letters, digits and _ . / : @ % + , = - only, and not "'quoted'\""""),
        ('LOG_LEVEL="quoted"', "and not '\"quoted\"'"),
        ("LOG_LEVEL=$HOME", "and not '$HOME'"),
        ("LOG_LEVEL=\udcff\udcfe", r"\udcff"),
        ("LOG_LEVEL=http://me:secret@host", "must not hold a password"),
        ("LOG_LEVEL=" + "x " * 50_000, "must be letters"),
        ("LOG_LEVEL", "'LOG_LEVEL' is not KEY=VALUE"),
        ("=x", "'=x' is not KEY=VALUE"),
        ("", "'' is not KEY=VALUE"),
        ("log_level=x", "there is no key 'log_level'"),
        ("LOG_LEVE=x", "(did you mean LOG_LEVEL?)"),
        ("LOG\x1b[2J\n=x", r"there is no key 'LOG\x1b[2J\n'"),
        (
            "REDIS_HOST=other",
            "REDIS_HOST cannot be overridden: set services.aistack.services.redis.external.host in Nix",
        ),
        ("OTHER_LEVEL=x", "OTHER_LEVEL in Nix, or name it in services.aistack.overridable"),
        ("CACHE_SIZE=2", "set services.aistack.services.cache.environment.CACHE_SIZE in Nix"),
        ("POSTGRES_PASSWORD=hunter2", "is in /etc/aistack/secrets/postgres-password"),
    ],
)
def test_what_is_not_right_is_one_line_and_nothing_is_written(
    stack: fakehost.FakeHost, assignment: str, says: str
) -> None:
    answer = stack.run("env", "set", "RALPH_MAX_ITERATIONS_SIMPLE=15", assignment)
    assert (answer.code, answer.out) == (2, "")
    assert says in answer.err
    assert answer.err.endswith("; nothing was changed\n")
    assert answer.err.count("\n") == 1
    assert answer.err[:-1].isprintable()
    assert len(answer.err) < 600
    assert "hunter2" not in answer.err
    assert "me:secret" not in answer.err
    assert not (stack.root / "state").exists()


def test_all_that_is_wrong_is_said_at_once(stack: fakehost.FakeHost) -> None:
    answer = stack.run("env", "set", "RALPH_MAX_ITERATIONS_SIMPLE=0", "REDIS_HOST=x", "NOPE=1", "--json")
    assert answer.code == 2
    for part in ("from 1 to 100", "REDIS_HOST cannot be overridden", "there is no key 'NOPE'"):
        assert part in answer.json["error"]["message"]


def test_one_setting_cannot_have_two_values(stack: fakehost.FakeHost) -> None:
    answer = stack.run("env", "set", "ADAPTIVE_ITERATION_LIMITS=true", "RALPH_ADAPTIVE_ITERATIONS=false")
    assert answer.code == 2
    assert "RALPH_ADAPTIVE_ITERATIONS and ADAPTIVE_ITERATION_LIMITS are one setting and cannot differ" in answer.err
    answer = stack.run("env", "set", "LOG_LEVEL=a", "LOG_LEVEL=b")
    assert answer.code == 2
    assert values(stack) == {}


@pytest.mark.parametrize(
    "arguments",
    [
        ["set"],
        ["set", "--nope"],
        ["unset"],
        ["unset", "--all", "LOG_LEVEL"],
        ["unset", "NOPE"],
        ["restore"],
        ["restore", "x"],
        ["restore", "1"],
        ["restore", "--", "-1"],
        ["restore", "9" * 40],
        ["get"],
        ["nope"],
        ["show", "extra"],
    ],
)
def test_a_wrong_command_line_is_one_line_and_code_2(stack: fakehost.FakeHost, arguments: list[str]) -> None:
    answer = stack.run("env", *arguments)
    assert (answer.code, answer.out) == (2, "")
    assert answer.err.startswith("aistack: ")
    assert answer.err.count("\n") == 1
    assert values(stack) == {}


def test_without_a_subcommand_it_shows_them(stack: fakehost.FakeHost) -> None:
    answer = stack.run("env")
    assert (answer.code, answer.out) == (2, "")
    for name in ("show", "get", "set", "unset", "diff", "history", "restore", "check"):
        assert f"\n  {name} " in answer.err


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
@pytest.mark.parametrize(
    "arguments",
    [["set", "LOG_LEVEL=x"], ["unset", "--all"], ["restore", "1"]],
    ids=["set", "unset", "restore"],
)
def test_somebody_else_than_root_is_told_so(
    stack: fakehost.FakeHost, monkeypatch: pytest.MonkeyPatch, arguments: list[str]
) -> None:
    stack.run("env", "set", "RALPH_MAX_ITERATIONS_SIMPLE=15")
    monkeypatch.undo()
    monkeypatch.setenv("AISTACK_MANIFEST", str(stack.manifest_path))
    for folder in (stack.root, *stack.root.parents):
        if folder.name.startswith(("pytest-", "test_")):
            folder.chmod(0o755)
    os.seteuid(65534)
    try:
        answer = stack.run("env", *arguments)
        shown = stack.run("env", "show")
    finally:
        os.seteuid(0)
    assert answer.code == 2
    assert f"`aistack env {arguments[0]}` needs root" in answer.err
    assert answer.err.endswith(f"sudo aistack env {arguments[0]}\n")
    assert "RALPH_MAX_ITERATIONS_SIMPLE=15\n" in shown.out
    assert values(stack) == {"RALPH_MAX_ITERATIONS_SIMPLE": "15"}


# --- set, unset: what is written, and what it means ------------------------------------------------------------------


def test_set_says_what_changes_who_reads_it_and_what_to_restart(running: fakehost.FakeHost) -> None:
    answer = running.run("env", "set", "RALPH_MAX_ITERATIONS_SIMPLE=15", "LOG_LEVEL=debug")
    assert (answer.code, answer.err) == (0, "")
    changed = "RALPH_MAX_ITERATIONS_SIMPLE=10, not the overridden 15"
    assert answer.out.splitlines() == [
        "LOG_LEVEL: info -> debug (Nix declares info)",
        "RALPH_MAX_ITERATIONS_SIMPLE: 10 -> 15 (Nix declares 10)",
        f"app: runs with LOG_LEVEL=info, not the overridden debug; {changed}",
        f"worker: runs with LOG_LEVEL=info, not the overridden debug; {changed}",
        f"next: systemctl restart {UNIT} podman-aistack-worker.service",
    ]
    assert values(running) == {"LOG_LEVEL": "debug", "RALPH_MAX_ITERATIONS_SIMPLE": "15"}
    assert restarts(running) == []


def test_both_keys_of_one_option_are_set_and_unset_by_either(stack: fakehost.FakeHost) -> None:
    answer = stack.run("env", "set", "RALPH_ADAPTIVE_ITERATIONS=false")
    assert "ADAPTIVE_ITERATION_LIMITS: true -> false (Nix declares true)" in answer.out
    assert values(stack) == {"ADAPTIVE_ITERATION_LIMITS": "false", "RALPH_ADAPTIVE_ITERATIONS": "false"}
    answer = stack.run("env", "unset", "ADAPTIVE_ITERATION_LIMITS")
    assert "RALPH_ADAPTIVE_ITERATIONS: false -> true (as Nix declares)" in answer.out
    assert values(stack) == {}


def test_what_is_so_already_changes_nothing(stack: fakehost.FakeHost) -> None:
    stack.run("env", "set", "LOG_LEVEL=debug")
    answer = stack.run("env", "set", "LOG_LEVEL=debug")
    assert answer.code == 0
    assert answer.out.startswith("nothing changes: the overrides are so already\n")
    assert len(document(stack)["history"]) == 1
    assert stack.run("env", "unset", "RALPH_MAX_ITERATIONS_SIMPLE").out.startswith("nothing changes")


def test_what_the_hooks_go_by_is_said_so(stack: fakehost.FakeHost) -> None:
    answer = stack.run("env", "set", "STARTUP_TIMEOUT_SECONDS=5")
    assert "every start and every health check uses it from now on" in answer.out


def test_a_service_that_does_not_run_needs_no_restart(stack: fakehost.FakeHost) -> None:
    answer = stack.run("env", "set", "LOG_LEVEL=debug")
    assert "app: does not run; its next start has it\n" in answer.out
    assert "next:" not in answer.out


def test_unset_all_and_keys_that_nix_does_not_know_any_more(stack: fakehost.FakeHost) -> None:
    stack.run("env", "set", "LOG_LEVEL=debug", "RALPH_MAX_ITERATIONS_SIMPLE=15")
    del stack.document["overridable"]["LOG_LEVEL"]
    stack.declare(stack.document["services"], **{key: stack.document[key] for key in CHANGES})
    answer = stack.run("env", "show")
    assert "LOG_LEVEL=info\n" in answer.out
    assert "ignored: LOG_LEVEL cannot be overridden; see: aistack env check" in answer.err
    assert stack.run("env", "unset", "LOG_LEVEL").code == 0
    assert values(stack) == {"RALPH_MAX_ITERATIONS_SIMPLE": "15"}
    assert stack.run("env", "unset", "--all").code == 0
    assert values(stack) == {}
    assert [entry["what"] for entry in document(stack)["history"]] == [
        "set LOG_LEVEL=debug RALPH_MAX_ITERATIONS_SIMPLE=15",
        "unset LOG_LEVEL",
        "unset --all",
    ]


def test_set_json(running: fakehost.FakeHost) -> None:
    found = running.run("env", "set", "LOG_LEVEL=debug", "--json").json
    assert found["changed"] == [{"key": "LOG_LEVEL", "from": None, "to": "debug", "declared": "info"}]
    assert (found["change"], found["values"], found["exit_code"]) == (1, {"LOG_LEVEL": "debug"}, 0)
    assert [(s["service"], s["state"], s["unit"]) for s in found["services"]] == [
        ("app", "needs restart", UNIT),
        ("worker", "needs restart", "podman-aistack-worker.service"),
    ]
    assert found["next"] == f"systemctl restart {UNIT} podman-aistack-worker.service"


def test_a_held_lock_is_code_4(stack: fakehost.FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    import fcntl

    stack.run("env", "set", "LOG_LEVEL=debug")
    monkeypatch.setattr(overrides, "_LOCK_PATIENCE", 0.01)
    with (stack.root / "state/overrides.lock").open() as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        answer = stack.run("env", "set", "LOG_LEVEL=x")
    assert answer.code == 4
    assert answer.err.count("\n") == 1
    assert values(stack) == {"LOG_LEVEL": "debug"}


# --- history, restore ------------------------------------------------------------------------------------------------


def test_history_and_restore(stack: fakehost.FakeHost, monkeypatch: pytest.MonkeyPatch) -> None:
    stack.run("env", "set", "LOG_LEVEL=debug")
    monkeypatch.setenv("SUDO_USER", "ada")
    stack.run("env", "set", "RALPH_MAX_ITERATIONS_SIMPLE=15", "LOG_LEVEL=warn")
    answer = stack.run("env", "restore", "1")
    assert answer.code == 0
    assert answer.out.splitlines()[:2] == [
        "LOG_LEVEL: warn -> debug (Nix declares info)",
        "RALPH_MAX_ITERATIONS_SIMPLE: 15 -> 10 (as Nix declares)",
    ]
    assert values(stack) == {"LOG_LEVEL": "debug"}
    lines = stack.run("env", "history").out.splitlines()
    assert [(line.split()[0], line.split()[3]) for line in lines[1:]] == [("3", "ada"), ("2", "ada"), ("1", "root")]
    assert lines[1].endswith("restore 1")
    found = stack.run("env", "history", "--json").json
    assert found["values"] == {"LOG_LEVEL": "debug"}
    assert [entry["id"] for entry in found["history"]] == [3, 2, 1]
    assert found["history"][1]["values"] == {"LOG_LEVEL": "warn", "RALPH_MAX_ITERATIONS_SIMPLE": "15"}


def test_a_change_that_is_not_there_names_those_that_are(stack: fakehost.FakeHost) -> None:
    stack.run("env", "set", "LOG_LEVEL=debug")
    answer = stack.run("env", "restore", "7")
    assert answer.code == 2
    assert "there is no change 7: recorded are 1; nothing was changed" in answer.err


def test_what_nix_does_not_allow_any_more_is_not_restored(stack: fakehost.FakeHost) -> None:
    stack.run("env", "set", "RALPH_MAX_ITERATIONS_SIMPLE=90")
    stack.run("env", "set", "RALPH_MAX_ITERATIONS_SIMPLE=15")
    stack.document["overridable"]["RALPH_MAX_ITERATIONS_SIMPLE"]["max"] = 50
    stack.declare(stack.document["services"], **{key: stack.document[key] for key in CHANGES})
    answer = stack.run("env", "restore", "1")
    assert answer.code == 2
    assert "from 1 to 50, and not '90'" in answer.err
    assert values(stack) == {"RALPH_MAX_ITERATIONS_SIMPLE": "15"}


def test_no_history_is_said(stack: fakehost.FakeHost) -> None:
    answer = stack.run("env", "history")
    assert (answer.code, answer.out, answer.err) == (0, "", "aistack: no override was ever made\n")


# --- diff ------------------------------------------------------------------------------------------------------------


def test_diff_prints_the_lines_that_make_it_permanent(stack: fakehost.FakeHost) -> None:
    stack.run("env", "set", "LOG_LEVEL=a=b", "RALPH_MAX_ITERATIONS_SIMPLE=15", "RALPH_ADAPTIVE_ITERATIONS=false")
    stack.run("env", "set", "STARTUP_TIMEOUT_SECONDS=1")
    answer = stack.run("env", "diff")
    assert answer.code == 0
    lines = [line.split() for line in answer.out.splitlines()]
    assert lines[:5] == [
        ["KEY", "NIX", "NOW"],
        ["ADAPTIVE_ITERATION_LIMITS", "true", "false"],
        ["RALPH_ADAPTIVE_ITERATIONS", "true", "false"],
        ["LOG_LEVEL", "info", "a=b"],
        ["RALPH_MAX_ITERATIONS_SIMPLE", "10", "15"],
    ]
    assert answer.out.splitlines()[-3:] == [
        "services.aistack.ralph.adaptive = false;",
        'services.aistack.environment.LOG_LEVEL = "a=b";',
        "services.aistack.ralph.maxIterations.simple = 15;",
    ]
    key = "STARTUP_TIMEOUT_SECONDS"
    assert answer.err == f"aistack: {key}: overridden with what Nix declares; aistack env unset {key}\n"
    found = stack.run("env", "diff", "--json").json
    assert found["same_as_declared"] == ["STARTUP_TIMEOUT_SECONDS"]
    assert found["differences"][0] == {
        "keys": ["ADAPTIVE_ITERATION_LIMITS", "RALPH_ADAPTIVE_ITERATIONS"],
        "option": "services.aistack.ralph.adaptive",
        "declared": "true",
        "value": "false",
        "nix": "services.aistack.ralph.adaptive = false;",
    }


def test_diff_without_a_difference(stack: fakehost.FakeHost) -> None:
    answer = stack.run("env", "diff")
    assert (answer.code, answer.out) == (0, "")
    assert "nothing differs" in answer.err


def test_a_negative_number_is_a_number_in_nix_too() -> None:
    spec = fakehost_override("int")
    assert env.nix_line(spec, "-7") == "services.aistack.environment.LOG_LEVEL = -7;"


def fakehost_override(kind: str) -> Any:  # noqa: ANN401  (the hooks' own class)
    from aistack.hooks.manifest import Override

    return Override(entry(kind, "LOG_LEVEL"))


# --- restart ---------------------------------------------------------------------------------------------------------


def after_restart(host: fakehost.FakeHost, name: str, values: dict[str, str], *, state: str = "probation") -> int:
    """Let the next restart of a service run a release of these values; returns its number."""
    store = Store.open(str(host.journal_path))
    manifest = load()
    release = store.declare(
        name, fakehost.image(1), f"registry.example/{name}:1", {**DECLARED, **values}, manifest.service(name).raw
    )
    if state == "probation":
        store.probation(release)
    store.close()
    host.when("restart", f"podman-aistack-{name}.service", service=name, active="active", release=release.id)
    return release.id


def test_restart_restarts_what_reads_it_in_order_and_verifies(running: fakehost.FakeHost) -> None:
    numbers = [after_restart(running, name, {"LOG_LEVEL": "debug"}) for name in ("app", "worker")]
    answer = running.run("env", "set", "LOG_LEVEL=debug", "--restart")
    assert answer.code == 0, answer.err
    assert restarts(running) == [UNIT, "podman-aistack-worker.service"]
    assert f"app: release {numbers[0]} (registry.example/app:1" in answer.out
    assert "in probation for 60 s" in answer.out
    assert "next:" not in answer.out


def test_restart_leaves_alone_what_has_it_already_and_what_is_stopped(running: fakehost.FakeHost) -> None:
    after_restart(running, "app", {"LOG_LEVEL": "debug"})
    running.unit("worker", "inactive")
    assert running.run("env", "set", "LOG_LEVEL=debug", "--restart").code == 0
    assert restarts(running) == [UNIT]
    answer = running.run("env", "set", "LOG_LEVEL=debug", "--restart")
    assert "app: runs with it already\n" in answer.out
    assert restarts(running) == [UNIT]


def test_a_restart_that_was_left_out_is_made_up_for(running: fakehost.FakeHost) -> None:
    running.run("env", "set", "LOG_LEVEL=debug")
    for name in ("app", "worker"):
        after_restart(running, name, {"LOG_LEVEL": "debug"})
    answer = running.run("env", "set", "LOG_LEVEL=debug", "--restart")
    assert answer.out.startswith("nothing changes: the overrides are so already\n")
    assert restarts(running) == [UNIT, "podman-aistack-worker.service"]


def fail_and_go_back(host: fakehost.FakeHost, *, back_to: int | None) -> None:
    """Let the next restart of the app fail, and its rollback end with a release, or with nothing."""
    store = Store.open(str(host.journal_path))
    manifest = load()
    environment = {**DECLARED, "LOG_LEVEL": "debug"}
    entry = manifest.service("app").identity
    bad = store.declare("app", fakehost.image(1), "registry.example/app:1", environment, entry)
    store.condemn(bad, "never ready (exited)", "", store.get("app", back_to) if back_to is not None else None)
    store.close()
    host.when("restart", UNIT, service="app", active="failed", release=bad.id, code=1)
    if back_to is not None:
        host.when("start", ROLLBACK, service="app", active="active", release=back_to)
    else:
        host.when("start", ROLLBACK, service="app", active="failed", release=bad.id)


def current(host: fakehost.FakeHost, name: str) -> int:
    store = Store.open(str(host.journal_path))
    release = store.current(name)
    store.close()
    assert release is not None
    return release.id


def test_a_restart_that_is_rolled_back_is_code_7_and_ends_the_round(running: fakehost.FakeHost) -> None:
    good = current(running, "app")
    # Not by the same image, so that it is not known beforehand.
    fail_and_go_back(running, back_to=good)
    running.images(fakehost.image(5))
    running.document["services"]["app"]["image"]["ref"] = "localhost/kept/0:1"
    running.declare(running.document["services"], **CHANGES)
    answer = running.run("env", "set", "LOG_LEVEL=debug", "--restart")
    assert answer.code == 7
    assert restarts(running) == [UNIT]
    assert "did not serve (never ready (exited)); release" in answer.err
    assert answer.err.endswith("it is recorded all the same; to take it back: aistack env unset LOG_LEVEL\n")
    assert "aistack: app: release" in answer.err
    assert "worker: runs with LOG_LEVEL=info, not the overridden debug; not restarted, because of app" in answer.out
    assert values(running) == {"LOG_LEVEL": "debug"}


def test_a_service_that_is_down_is_code_8(running: fakehost.FakeHost) -> None:
    running.images(fakehost.image(5))
    running.document["services"]["app"]["image"]["ref"] = "localhost/kept/0:1"
    running.declare(running.document["services"], **CHANGES)
    fail_and_go_back(running, back_to=None)
    answer = running.run("env", "set", "LOG_LEVEL=debug", "--restart", "--json")
    assert answer.code == 8
    assert answer.json["exit_code"] == 8
    assert answer.json["services"][0]["state"] == "down"
    assert answer.json["next"] == "aistack status app"
    assert "app: DOWN: never ready (exited); aistack status app" in answer.err


def test_what_is_known_to_fail_is_not_tried_and_the_way_back_is_named(running: fakehost.FakeHost) -> None:
    running.run("env", "set", "RALPH_MAX_ITERATIONS_SIMPLE=15")
    running.run("env", "unset", "RALPH_MAX_ITERATIONS_SIMPLE")
    good = current(running, "app")
    fail_and_go_back(running, back_to=good)
    # Without --restart nothing is done, and nothing has failed.
    answer = running.run("env", "set", "LOG_LEVEL=debug")
    assert answer.code == 0
    assert "app: release 4 (registry.example/app:1" in answer.out
    assert (
        "had this environment and failed (never ready (exited)); no start tries it again, unless you say so"
        in answer.out
    )
    answer = running.run("env", "set", "LOG_LEVEL=debug", "--restart")
    assert answer.code == 7
    assert restarts(running) == []
    assert "to take it back: aistack env unset LOG_LEVEL" in answer.err
    running.run("env", "unset", "LOG_LEVEL")
    answer = running.run("env", "set", "LOG_LEVEL=debug", "--restart", "--json")
    assert answer.json["next"] == "it is recorded all the same; to take it back: aistack env restore 4"
    assert answer.json["services"][0]["state"] == "known bad"


def test_a_damaged_journal_is_in_nobodys_way_but_a_restarts(running: fakehost.FakeHost) -> None:
    running.journal_path.write_text("no database, and long enough to be looked at" * 100)
    answer = running.run("env", "set", "LOG_LEVEL=debug", "--restart")
    assert answer.code == 1
    assert values(running) == {}
    answer = running.run("env", "set", "LOG_LEVEL=debug")
    assert answer.code == 0
    assert f"next: systemctl restart {UNIT}" in answer.out
    assert values(running) == {"LOG_LEVEL": "debug"}


# --- check -----------------------------------------------------------------------------------------------------------


def containers(host: fakehost.FakeHost, **environments: dict[str, str]) -> None:
    """Let podman say what containers were started with."""
    lines = []
    for name, environment in environments.items():
        pairs = [
            f"{key}={value}" for key, value in {"PATH": "/bin", "POSTGRES_PASSWORD": "s3cret", **environment}.items()
        ]
        lines.append(f"aistack-{name}\t{json.dumps(pairs)}\n")
    (host.root / "containers").write_text("".join(lines))


def test_check_of_a_stack_that_agrees(running: fakehost.FakeHost) -> None:
    containers(running, app=DECLARED, worker=DECLARED, cache={"CACHE_SIZE": "1"})
    answer = running.run("env", "check")
    assert (answer.code, answer.err) == (0, "")
    assert answer.out == f"ok: {running.root}/.env, 0 overridden keys, 3 containers\n"
    assert running.run("env", "check", "--json").json["containers"] == ["worker", "app", "cache"]


def test_check_names_a_container_that_runs_with_something_else(running: fakehost.FakeHost) -> None:
    running.run("env", "set", "LOG_LEVEL=debug")
    containers(running, app=DECLARED, worker={**DECLARED, "LOG_LEVEL": "debug"}, cache={"CACHE_SIZE": "2"})
    answer = running.run("env", "check")
    assert answer.code == 3
    assert answer.out.splitlines() == [
        "app: runs with LOG_LEVEL=info, not the overridden debug",
        f"  next: systemctl restart {UNIT}",
        "cache: runs with CACHE_SIZE=2, not the declared 1",
        "  next: systemctl restart podman-aistack-cache.service",
    ]
    found = running.run("env", "check", "--json").json
    assert (found["ok"], found["exit_code"]) == (False, 3)
    assert found["problems"][0] == {
        "where": "container",
        "subject": "app",
        "detail": "runs with LOG_LEVEL=info, not the overridden debug",
        "next": f"systemctl restart {UNIT}",
    }
    assert "s3cret" not in answer.out + json.dumps(found)


def test_check_names_a_key_that_is_declared_no_more(running: fakehost.FakeHost) -> None:
    containers(running, app=DECLARED, worker=DECLARED, cache={"CACHE_SIZE": "1", "OWN_OF_THE_IMAGE": "1"})
    services = copy.deepcopy(running.document["services"])
    services["cache"]["environment"] = {}
    running.declare(services, **CHANGES)
    answer = running.run("env", "check")
    assert answer.code == 3
    assert "cache: runs with CACHE_SIZE=1, which is declared no more\n" in answer.out
    assert "OWN_OF_THE_IMAGE" not in answer.out


def test_check_shows_no_key_that_has_become_a_secret(running: fakehost.FakeHost) -> None:
    services = copy.deepcopy(running.document["services"])
    secret = {"CACHE_SIZE": {"file": "/etc/cache-size", "as": "env"}}
    services["cache"] |= {"environment": {}, "secrets": ["CACHE_SIZE"]}
    running.declare(services, **{**CHANGES, "secrets": {**CHANGES["secrets"], **secret}})
    containers(running, app=DECLARED, worker=DECLARED, cache={"CACHE_SIZE": "s3cret"})
    answer = running.run("env", "check")
    assert (answer.code, answer.err) == (0, "")
    assert "s3cret" not in answer.out


def test_check_of_a_container_that_podman_does_not_know(running: fakehost.FakeHost) -> None:
    containers(running, app=DECLARED, worker=DECLARED)
    answer = running.run("env", "check")
    assert answer.code == 3
    assert "cache: podman does not say what it runs with" in answer.out


def test_check_after_a_rollback_names_the_override(running: fakehost.FakeHost) -> None:
    running.run("env", "set", "LOG_LEVEL=debug")
    store = Store.open(str(running.journal_path))
    good = store.current("app")
    raw = running.document["services"]["app"]
    bad = store.declare("app", fakehost.image(1), "registry.example/app:1", {**DECLARED, "LOG_LEVEL": "debug"}, raw)
    store.condemn(bad, "never ready", "", good)
    store.close()
    containers(running, app=DECLARED, worker={**DECLARED, "LOG_LEVEL": "debug"}, cache={"CACHE_SIZE": "1"})
    answer = running.run("env", "check")
    assert answer.code == 3
    assert answer.out.splitlines()[1] == "  next: aistack env unset LOG_LEVEL"
    shown = running.run("status", "app")
    assert "app: runs with LOG_LEVEL=info, not the overridden debug\n  next: aistack env unset LOG_LEVEL\n" in shown.out
    (row,) = running.run("status", "app", "--json").json["services"]
    differs = {"key": "LOG_LEVEL", "runs": "info", "should": "debug", "overridden": True}
    assert row["environment_differs"] == [differs]
    listed = running.run("releases", "app")
    assert "app: release 1 has LOG_LEVEL=info, not the overridden debug\n" in listed.out
    old, new = sorted(running.run("releases", "app", "--json").json["releases"], key=lambda r: int(r["id"]))
    assert (old["environment_differs"], new["environment_differs"]) == ([differs], [])


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "cannot be read: "),
        (b"\xff\xfe", "cannot be read: "),
        (b"LOG_LEVEL\n", "has a line that is no KEY=value"),
        (b"LOG_LEVEL=info\n", "ADAPTIVE_ITERATION_LIMITS is missing, declared true"),
        (b"A=\x1b[2J\n", r"A is \x1b[2J, not declared"),
    ],
)
def test_check_of_the_file(stack: fakehost.FakeHost, text: bytes | None, says: str) -> None:
    path = stack.root / ".env"
    path.unlink()
    if text is not None:
        path.write_bytes(text)
    answer = stack.run("env", "check")
    assert answer.code == 2
    assert f"{path}: " in answer.out
    assert says in answer.out
    assert "next: render it again" in answer.out


def test_check_of_the_overrides(stack: fakehost.FakeHost) -> None:
    stack.run("env", "set", "LOG_LEVEL=debug", "RALPH_MAX_ITERATIONS_SIMPLE=15")
    stack.document["overridable"]["RALPH_MAX_ITERATIONS_SIMPLE"]["max"] = 12
    stack.declare(stack.document["services"], **{key: stack.document[key] for key in CHANGES})
    answer = stack.run("env", "check")
    assert answer.code == 2
    assert "ignored: RALPH_MAX_ITERATIONS_SIMPLE must be a whole number from 1 to 12, and not '15'" in answer.out
    assert "next: aistack env unset RALPH_MAX_ITERATIONS_SIMPLE" in answer.out
    Path(stack.root, "state/overrides.json").write_text("[]")
    answer = stack.run("env", "check", "--json")
    assert answer.code == 2
    assert answer.json["problems"][0]["where"] == "overrides"


def test_check_by_somebody_else_leaves_the_containers_out_and_says_so(
    stack: fakehost.FakeHost, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    answer = stack.run("env", "check")
    assert answer.code == 0
    assert "not run by root" in answer.err


# --- what was set is what is shown, to a shell too -------------------------------------------------------------------


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=30, deadline=None)
@given(
    st.integers(1, 100),
    st.sampled_from(["true", "false"]),
    st.from_regex(r"[A-Za-z0-9_./%+,=-]{0,30}", fullmatch=True),
)
def test_what_was_set_is_what_show_shows_and_a_shell_reads(
    stack: fakehost.FakeHost, limit: int, adaptive: str, level: str
) -> None:
    answer = stack.run(
        "env",
        "set",
        f"RALPH_MAX_ITERATIONS_SIMPLE={limit}",
        f"RALPH_ADAPTIVE_ITERATIONS={adaptive}",
        f"LOG_LEVEL={level}",
    )
    assert answer.code == 0, answer.err
    expected = {
        **DECLARED,
        "RALPH_MAX_ITERATIONS_SIMPLE": str(limit),
        "RALPH_ADAPTIVE_ITERATIONS": adaptive,
        "ADAPTIVE_ITERATION_LIMITS": adaptive,
        "LOG_LEVEL": level,
    }
    shown = stack.run("env", "show").out
    lines = [line for line in shown.splitlines() if not line.startswith("#")]
    assert dict(line.split("=", 1) for line in lines) == expected
    path = stack.root / "shown.env"
    path.write_text(shown)
    script = f"set -a; . {path}; exec /usr/bin/env -0"
    read = subprocess.run(["/bin/sh", "-c", script], env={}, capture_output=True, text=True, check=True).stdout
    assert {k: v for k, _, v in (p.partition("=") for p in read.split("\0")) if k in expected} == expected


@pytest.mark.parametrize("words", [("set", "LOG_LEVEL=debug"), ("unset", "--all"), ("restore", "1")])
def test_a_restart_while_a_deployment_is_under_way_is_code_4_and_nothing_is_recorded(
    running: fakehost.FakeHost, words: tuple[str, ...]
) -> None:
    for level in ("trace", "warn"):
        assert running.run("env", "set", f"LOG_LEVEL={level}").code == 0
    before = document(running)
    with deploy_lock.acquire(load(), "aistack deploy app"):
        answer = running.run("env", *words, "--restart")
        assert answer.code == 4
        assert "the lock is held by `aistack deploy app` (process " in answer.err
        assert document(running) == before
        assert not [call for call in running.calls() if call.startswith("systemctl restart")]
        assert running.run("env", *words).code == 0
    assert document(running) != before


def test_what_failed_with_a_deployed_image_is_known_to_fail_too(running: fakehost.FakeHost) -> None:
    store = Store.open(str(running.journal_path))
    entry = load().service("app").identity
    declared, new = (fakehost.image(number) for number in (1, 2))
    (running.root / "images").write_text(f"registry.example/app:1\t{declared}\nlocal/new:2\t{new}\n")
    found = store.stage("app", new, "local/new:2", DECLARED, entry, source="deployment 1", base=declared)
    with store:
        store.choose_within(found)
    store.probation(found)
    store.bless(found)
    bad = store.declare("app", declared, "registry.example/app:1", {**DECLARED, "LOG_LEVEL": "debug"}, entry)
    store.condemn(bad, "never ready (exited)", "", found)
    store.close()
    assert bad.image_id == new
    running.verdict("app", phase="ready", release=found.id, readyAt=1_700_000_000.5, ok=True)
    answer = running.run("env", "set", "LOG_LEVEL=debug")
    assert f"app: {bad} had this environment and failed (never ready (exited))" in answer.out
