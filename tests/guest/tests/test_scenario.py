from __future__ import annotations

import argparse
import json
import os
import signal
import threading
from typing import TYPE_CHECKING

import pytest
from guest import paths, run, suite
from guest.deadline import Deadline, wait_until
from guest.errors import GuestError, Skipped
from guest.guest import Guest
from guest.log import Log
from guest.machine import subtest
from guest.scenario import TIME_LIMIT, Scenario, discover
from guest.scenario import run as run_scenario

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def test_scenarios_are_the_scripts_of_the_folder_but_not_its_helpers(tmp_path: Path) -> None:
    for name in ("b.py", "a.py", "_prelude.py", "a.nix"):
        (tmp_path / name).touch()
    assert [item.name for item in discover(tmp_path)] == ["a", "b"]


def test_the_header_of_a_script(tmp_path: Path) -> None:
    script = tmp_path / "x.py"
    script.write_text("# guest: skip needs a kernel of its own\n# guest: time-limit 42\nmachine.start()\n")
    found = Scenario.read(script)
    assert (found.skip, found.time_limit) == ("needs a kernel of its own", 42.0)
    script.write_text("machine.start()\n")
    assert (Scenario.read(script).skip, Scenario.read(script).time_limit) == (None, TIME_LIMIT)
    assert Scenario.read(script).slow is None


@pytest.fixture
def one_slow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of scenarios, one of which says that it is slow."""
    (tmp_path / "quick.py").write_text("machine.start()\n")
    (tmp_path / "hundred.py").write_text("# guest: slow a hundred containers\n")
    found = discover(tmp_path)
    monkeypatch.setattr("guest.scenario.discover", lambda: found)


@pytest.mark.usefixtures("one_slow", "signals")
@pytest.mark.parametrize(
    ("arguments", "skipped"),
    [
        ([], ["slow, `make test-all` runs it: a hundred containers", None]),
        (["--slow"], [None, None]),
        (["hundred"], [None]),
    ],
)
def test_a_slow_scenario_is_left_out_with_its_reason_unless_asked_for(
    arguments: list[str], skipped: list[str | None], monkeypatch: pytest.MonkeyPatch
) -> None:
    ran: list[Scenario] = []

    def note(runner: run.Runner, items: list[Scenario]) -> list[run.Outcome]:
        del runner
        ran.extend(items)
        return []

    monkeypatch.setattr(run.Runner, "run", note)
    monkeypatch.setattr("guest.host.require", lambda **_: None)
    monkeypatch.setattr("guest.root.ensure", lambda: None)
    monkeypatch.setattr("guest.images.ensure", lambda _: None)
    run.main(arguments)
    assert [item.skip for item in ran] == skipped


@pytest.mark.parametrize("everything", [False, True])
def test_make_test_all_asks_for_the_slow_ones(
    everything: bool,  # noqa: FBT001
    tmp_path: Path,
) -> None:
    commands: list[list[str]] = []

    def note(command: list[str]) -> int:
        commands.append(command)
        return 0

    suite.scenarios(tmp_path, argparse.Namespace(repeat=1, all=everything), note)
    assert ("--slow" in commands[0]) is everything


@pytest.mark.usefixtures("signals")
def test_the_other_parts_run_beside_the_scenarios_and_are_shown_in_one_piece(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    begun = threading.Event()

    def unit(folder: Path, options: argparse.Namespace, call: suite.Call) -> suite.Part:
        begun.set()
        code = call(["sh", "-c", "echo one; echo two >&2; exit 3"])
        return suite.Part("unit", passed=code, failures=[str(folder.is_dir()), str(options.all)])

    def scenarios(folder: Path, options: argparse.Namespace, call: suite.Call) -> suite.Part:
        del folder, options
        assert begun.wait(10), "nothing runs beside the scenarios"
        call(["echo", "live"])
        return suite.Part("scenario", passed=1)

    monkeypatch.setattr(suite, "PARTS", {"unit": unit, "scenario": scenarios})
    assert suite.main([]) == 0
    shown = capfd.readouterr().out
    assert "\n== unit\none\ntwo\n" in shown
    assert "== scenario, the others beside it" in shown
    assert shown.index("unit  ") < shown.index("scenario  "), "the summary is in the order of the parts"


@pytest.mark.usefixtures("signals")
@pytest.mark.parametrize("name", [signal.SIGHUP, signal.SIGINT])
def test_what_is_ignored_here_is_not_ignored_by_what_is_started(
    name: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unit(folder: Path, options: argparse.Namespace, call: suite.Call) -> suite.Part:
        del folder, options
        # A shell cannot trap what was ignored when it was started.
        name_there = name.name.removeprefix("SIG")
        return suite.Part("unit", passed=call(["sh", "-c", f"trap 'exit 9' {name_there}; kill -{name_there} $$"]))

    signal.signal(name, signal.SIG_IGN)
    monkeypatch.setattr(suite, "PARTS", {"unit": unit})
    monkeypatch.setattr(suite, "summary", lambda parts, _: parts[0].passed)
    assert suite.main([]) == 9


@pytest.mark.usefixtures("signals")
@pytest.mark.parametrize("name", [signal.SIGINT, signal.SIGTERM])
def test_what_runs_beside_the_scenarios_ends_when_they_are_interrupted(
    name: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun = threading.Event()
    codes: list[int] = []

    def unit(folder: Path, options: argparse.Namespace, call: suite.Call) -> suite.Part:
        del options
        ready = folder / "ready"
        os.mkfifo(ready)
        threading.Thread(target=lambda: begun.set() if ready.read_text() else None, daemon=True).start()
        codes.append(call(["sh", "-c", f"echo > {ready}; exec sleep 60"]))
        codes.append(call(["sleep", "60"]))
        return suite.Part("unit")

    def scenarios(folder: Path, options: argparse.Namespace, call: suite.Call) -> suite.Part:
        del folder, options, call
        assert begun.wait(10)
        signal.raise_signal(name)
        pytest.fail("it went on")

    monkeypatch.setattr(suite, "PARTS", {"unit": unit, "scenario": scenarios})
    monkeypatch.setattr(suite, "_INTERRUPTED", threading.Event())
    with pytest.raises(KeyboardInterrupt):
        suite.main([])
    assert codes == [-signal.SIGTERM, 130]


def test_what_was_just_starting_when_all_was_interrupted_ends_too(monkeypatch: pytest.MonkeyPatch) -> None:
    class Late(set[object]):
        """Knows a process only after the interruption has ended all that were known."""

        def add(self, process: object, /) -> None:
            suite._INTERRUPTED.set()
            super().add(process)

    monkeypatch.setattr(suite, "_INTERRUPTED", threading.Event())
    monkeypatch.setattr(suite, "_RUNNING", Late())
    monkeypatch.setattr(suite, "PART_TIMEOUT", 10.0)
    assert suite.call(["sleep", "60"]) == -signal.SIGTERM


def test_a_skipped_scenario_boots_nothing_and_gives_its_reason(tmp_path: Path) -> None:
    item = Scenario("x", tmp_path / "x.py", "no such hardware", 1)
    log = Log(tmp_path / "log")
    with pytest.raises(Skipped, match="no such hardware"):
        run_scenario(item, Guest("none"), log, Deadline(1))


@pytest.fixture
def signals() -> Iterator[None]:
    """The handlers of this process, restored afterwards."""
    before = [(number, signal.getsignal(number)) for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM)]
    yield
    for number, handler in before:
        signal.signal(number, handler)


@pytest.mark.usefixtures("signals")
def test_an_unknown_scenario_is_refused_with_the_known_names(capsys: pytest.CaptureFixture[str]) -> None:
    assert run.main(["--list", "no-such-scenario"]) == 1
    assert "there are:" in capsys.readouterr().err


def test_a_failure_inside_a_subtest_says_which(tmp_path: Path) -> None:
    log = Log(tmp_path / "log")
    with pytest.raises(GuestError) as caught, subtest(log, "the moon is up"):
        raise GuestError("it is not")
    assert caught.value.__notes__ == ["in subtest: the moon is up"]
    assert "FAILED in subtest: the moon is up" in log.path.read_text()


def test_waiting_ends_with_the_last_try() -> None:
    tries: list[bool] = []

    def never(last: bool) -> bool:  # noqa: FBT001
        tries.append(last)
        return False

    assert not wait_until(never, 0.1)
    assert tries[-1]
    assert not any(tries[:-1])
    assert wait_until(lambda _: True, 0)


def test_a_wait_is_bounded_by_the_scenarios_time() -> None:
    deadline = Deadline(0.5)
    assert deadline.bound(900) <= 0.5
    assert deadline.bound(None) <= 0.5
    assert deadline.bound(0.1) == 0.1


JUNIT = """<testsuites><testsuite>
<testcase classname="a" name="good"/>
<testcase classname="a" name="bad"><failure message="no"/></testcase>
<testcase classname="a" name="broken"><error message="no"/></testcase>
<testcase classname="a" name="later"><skipped message="there is no nix"/></testcase>
</testsuite></testsuites>"""


def test_counts_of_a_pytest_report() -> None:
    part = suite.Part("unit")
    suite.count_junit(part, JUNIT)
    assert (part.passed, part.failed, part.skipped) == (1, 2, 1)
    assert part.skips == [("a::later", "there is no nix")]
    assert part.failures == ["a::bad", "a::broken"]


@pytest.mark.parametrize(
    ("passed", "failed", "code"),
    [(3, 0, 0), (3, 1, 1), (0, 0, 1)],
)
def test_the_last_line_and_the_exit_code(
    passed: int, failed: int, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    part = suite.Part("unit", passed=passed, failed=failed, skips=[("x", "because")])
    assert suite.summary([part], 1.0) == code
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == f"{passed} passed, {failed} failed, 1 skipped"
    assert "skipped  unit: because (x)" in out


def test_a_reason_shared_by_many_skips_is_said_once() -> None:
    part = suite.Part("unit", skips=[(name, "no nix") for name in "abcdef"] + [("g", "no moon")])
    assert list(part.reasons()) == ["no nix (a, b, c and 3 more)", "no moon (g)"]


def test_every_file_of_tests_is_in_one_part(tmp_path: Path) -> None:
    ran: list[str] = []

    def note(command: list[str | Path], environment: dict[str, str]) -> int:
        """As pytest finds them."""
        del environment
        words = [str(word) for word in command]
        ignored = [word.partition("=")[2] for word in words if word.startswith("--ignore-glob=")]
        for word in words:
            here = paths.CHECKOUT / word
            files = here.glob("test_*.py") if here.is_dir() else [here]
            if word.startswith(("python/tests", "tests/guest")):
                ran.extend(str(file) for file in files if not any(file.match(pattern) for pattern in ignored))
        return 0

    for name in ("integration", "unit", "evaluation"):
        suite.PARTS[name](tmp_path, argparse.Namespace(repeat=1, all=False), note)
    everything = [str(file) for tests in suite.UNITS for file in (paths.CHECKOUT / tests).glob("test_*.py")]
    assert sorted(ran) == sorted(everything)


def test_a_part_that_ends_without_a_report_has_failed(tmp_path: Path) -> None:
    options = argparse.Namespace(repeat=1, all=False)
    for part in suite.PARTS.values():
        assert part(tmp_path, options, lambda *_: 137).failed >= 1


def test_outcomes_are_reported_with_reasons(tmp_path: Path) -> None:
    rows = [
        {"name": "a", "result": "passed", "reason": "", "log": "/l"},
        {"name": "b", "result": "failed", "reason": "why\nmore", "log": "/l"},
        {"name": "c", "result": "skipped", "reason": "no moon", "log": "/l"},
    ]
    (tmp_path / "scenarios.json").write_text(json.dumps(rows))
    part = suite.scenarios(tmp_path, argparse.Namespace(repeat=1, all=False), lambda *_: 1)
    assert (part.passed, part.failures, part.skips) == (1, ["b: why (log: /l)"], [("c", "no moon")])


def test_a_failure_shows_the_scripts_part_and_the_journals_end() -> None:
    log = [
        *(f"step {number}" for number in range(10)),
        "   1.0 the whole journal:",
        *(f"entry {number}" for number in range(1000)),
    ]
    shown = run.shortened(log)
    assert shown[:10] == log[:10]
    assert shown[10:12] == ["   1.0 the whole journal:", "(…)"]
    assert shown[-1] == "entry 999"
    assert len(shown) == 12 + run.SHOWN_JOURNAL_LINES
    assert run.shortened(log[:10]) == log[:10]
