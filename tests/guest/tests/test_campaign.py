"""The table of the fault campaign is whole, and its figures are read right; the campaign itself is `make campaign`."""

from __future__ import annotations

import ast
import importlib
from typing import TYPE_CHECKING, Any

import pytest
from guest import paths
from guest.errors import GuestError

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

# What the campaign is for, by the names of its files.
WANTED = {
    *("syntax-error", "import-error", "missing-module", "missing-file", "not-executable", "wrong-port"),
    *("wrong-address", "wrong-hostname", "missing-key", "bad-secret", "dependency-down", "slow-start", "never-ready"),
    *("dies-after-2-s", "dies-after-20-s", "status-500", "error-with-status-200", "flapping", "hangs-on-connect"),
    *("ignores-sigterm", "out-of-memory", "disk-full", "huge-log", "another-user", "migration-fails"),
    *("image-missing", "another-architecture", "corrupt-archive", "stale-address", "port-taken"),
}
NAMES = sorted(path.stem for path in (paths.CHECKOUT / "tests/campaign/faults").iterdir())
SEEN = {"outcome": "stopped", "code": 6, "unavailable": 0.0, "dependents": True, "out": "aistack: app: no; next"}


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let its modules be imported, as `make campaign` does."""
    monkeypatch.syspath_prepend(str(paths.CHECKOUT / "bench"))
    monkeypatch.syspath_prepend(str(paths.CHECKOUT / "tests/campaign"))


def module(name: str) -> ModuleType:
    return importlib.import_module(name)


def test_every_fault_that_was_asked_for_is_there() -> None:
    assert set(NAMES) >= WANTED
    assert len(NAMES) >= 30


@pytest.mark.parametrize("name", NAMES)
def test_a_fault_has_what_it_needs(name: str) -> None:
    fault = module("fault").read(paths.CHECKOUT / f"tests/campaign/faults/{name}.toml")
    assert fault.exit_code in (5, 6, 7)
    assert fault.service in ("app", "redis", "postgres")
    assert bool(fault.image) != bool(fault.program or fault.containerfile)
    assert fault.what
    assert fault.sees
    assert fault.says
    assert not fault.program or fault.service == "app"


@pytest.mark.parametrize("name", [name for name in NAMES if name != "syntax-error"])
def test_a_fault_is_not_a_mistake_of_the_table(name: str) -> None:
    fault = module("fault").read(paths.CHECKOUT / f"tests/campaign/faults/{name}.toml")
    ast.parse(fault.program)


def test_a_file_that_is_no_fault_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "odd.toml"
    for text in ("what = 1 2", 'what = "a"', 'what = "a"\nsees = "b"\nexit_code = 5\nsays = "c"\nsay = "d"'):
        file.write_text(text)
        with pytest.raises(GuestError, match="is no fault"):
            module("fault").read(file)


def test_an_unknown_name_is_refused() -> None:
    with pytest.raises(GuestError, match="no such fault: nonsense"):
        module("fault").table(["nonsense"])


def test_the_release_says_which_it_is() -> None:
    fault = module("fault")
    assert "ENV RELEASE=old\n" in fault.good("old").files()["Containerfile"]
    assert set(fault.good("old").files()) == {"Containerfile", "app.py", "server.py"}


@pytest.mark.parametrize(
    ("release", "after", "expected"),
    [
        ("old", "1 image then", "stopped"),
        ("old", "2 image later", "rolled back"),
        ("new", "2 other later", "serves"),
        (None, "", "served broken"),
    ],
)
def test_what_became_of_users(release: str | None, after: str, expected: str) -> None:
    run, fault = module("campaign"), module("fault").good("new")
    assert run.outcome(fault, {"release": release}, {"app": "1 image then"}, {"app": after}) == expected


@pytest.mark.parametrize(
    ("changed", "expected"),
    [
        ({}, []),
        ({"outcome": "served broken"}, ["reached users"]),
        ({"code": 0}, ["exit code 0, not 6"]),
        ({"out": "aistack: app: yes"}, ["is not in what was printed"]),
        ({"dependents": False}, ["a dependent is dead"]),
    ],
)
def test_a_fault_that_reaches_users_is_no_success(changed: dict[str, Any], expected: list[str]) -> None:
    fault = module("fault").Fault(name="a", what="b", sees="c", exit_code=6, says="no;", program="d")
    found = module("campaign").judge(fault, {**SEEN, **changed})
    assert len(found) == len(expected)
    assert all(words in line for words, line in zip(expected, found, strict=True))


def test_a_good_release_has_to_go_through() -> None:
    judge, control = module("campaign").judge, module("fault").good(module("report").CONTROL)
    served = {**SEEN, "outcome": "serves", "code": 0, "out": "app: release 2 (…) serves (good) after 9 s"}
    assert judge(control, served) == []
    assert judge(control, {**served, "outcome": "stopped"}) == ["not even a good release: stopped"]


def test_an_exit_code_is_honest_only_if_it_says_whether_the_new_one_serves() -> None:
    honest = module("report").honest
    assert honest(SEEN)
    assert honest({**SEEN, "outcome": "serves", "code": 0})
    assert not honest({**SEEN, "outcome": "served broken", "code": 0})
    assert not honest({**SEEN, "outcome": "serves", "code": 7})


def test_the_section_has_each_fault_and_each_system() -> None:
    report, systems = module("report"), module("systems").SYSTEMS
    faults = module("fault").table()
    found = {name: {fault.name: SEEN for fault in [*faults, module("fault").good(report.CONTROL)]} for name in systems}
    text = report.section(faults, found)
    assert all(system.label in text for system in systems.values())
    assert text.count("stopped, 0.0 s, 6 |") == (len(faults) + 1) * len(systems)
    assert text.count("`app: no; next`") == len(faults)
    for part in text.split("\n\n"):
        assert len({line.count(" |") for line in part.splitlines() if line.startswith("| ")}) <= 1, part


def test_what_was_not_measured_is_a_dash_and_not_counted() -> None:
    report, faults = module("report"), module("fault").table(["wrong-port", "slow-start"])
    found = {"plan": {"wrong-port": SEEN}, "compose": {"slow-start": {**SEEN, "outcome": report.UNKNOWN}}}
    text = report.section(faults, found)
    assert "| wrong port (app) | stopped, 0.0 s, 6 | - |" in text
    assert "| slow start: 20 s (app) | - | - |" in text
    assert "| the plan's script | 1 of 2 | 1 | 0 | 0 | 0 | 0 s (0.0 s) | 1 of 1 | 1 of 1 |" in text
    assert "| podman-compose up -d | 0 of 2 | 0 | 0 | 0 | 0 | 0 s (0.0 s) | 0 of 0 | 0 of 0 |" in text


def test_only_its_own_section_is_renewed(tmp_path: Path) -> None:
    document = tmp_path / "benchmarks.md"
    for before in ("# B\n\n## One\n\n1\n", "# B\n\n## Fault campaign\n\nold\n\n## One\n\n1\n"):
        document.write_text(before)
        module("campaign").write(document, "## Fault campaign\n\nnew\n")
        text = document.read_text()
        assert "## One\n\n1\n" in text
        assert text.count("## Fault campaign\n\nnew\n") == 1
        assert "old" not in text
    sections = module("sections")
    assert sections.put("# B\n", sections.CAMPAIGN, sections.get(text, sections.CAMPAIGN)).endswith("new\n")


def test_the_peers_check_what_the_client_wants() -> None:
    systems = module("systems")
    assert "image: new:1\n" in systems.compose({"redis": "new:1"})
    unit = systems.quadlet("app")
    assert "AutoUpdate=local\nNotify=healthy\nHealthCmd=/health\n" in unit
    assert "Requires=app.service\n" in systems.quadlet("gateway")
