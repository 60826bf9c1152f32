from __future__ import annotations

import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
from guest import images, paths, scenario, stack, workbench
from guest.cache import Entry
from guest.errors import GuestError

if TYPE_CHECKING:
    from pathlib import Path


def test_each_image_of_a_stack_has_a_folder_with_a_recipe() -> None:
    for name in (*images.NAMES, *images.RALPH_NAMES):
        assert (paths.IMAGES / name / "Containerfile").is_file(), name


def test_a_change_in_the_code_makes_new_images_for_those_who_have_it_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {name: images.entry(name).key for name in (images.REFERENCE, images.RALPH)}
    for part in {part for parts in images.CODE.values() for part in parts}:
        file = tmp_path / "python" / part
        file = file if file.suffix else file / "server.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("changed")
    (tmp_path / "python/aistack/cli").mkdir()
    (tmp_path / "python/aistack/cli/app.py").write_text("one")
    monkeypatch.setattr(paths, "CHECKOUT", tmp_path)
    changed = images.entry(images.RALPH).key
    assert changed != before[images.RALPH]
    assert images.entry(images.REFERENCE).key == before[images.REFERENCE]
    # The command line is in no image.
    (tmp_path / "python/aistack/cli/app.py").write_text("two")
    assert images.entry(images.RALPH).key == changed


def test_the_stacks_caches_do_not_prune_each_other() -> None:
    imported = images._workbench_entry()
    kinds = [entry.kind for entry in (images.entry(), images.entry(images.RALPH), workbench.entry(), imported)]
    assert not [(one, other) for one in kinds for other in kinds if one != other and other.startswith(f"{one}-")]


def test_the_workbench_is_made_beside_the_other_images(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[str] = []
    monkeypatch.setattr(Entry, "ensure", lambda entry, _: begun.append(entry.kind))
    wait = "import sys; sys.stdin.read()"
    command = [sys.executable, "-c", wait]
    real = images._beside
    monkeypatch.setattr(images, "_beside", lambda _: real(command))
    images.ensure(images.RALPH)
    assert begun == ["images", "ralph-images"]


def test_what_the_process_beside_says_is_what_is_told() -> None:
    script = "import sys; sys.exit('no room on the disk')"
    with pytest.raises(GuestError, match="no room on the disk"), images._beside([sys.executable, "-c", script]):
        pass


def test_the_process_beside_ends_with_what_is_beside_it(tmp_path: Path) -> None:
    mark = tmp_path / "pid"
    script = f"import os, time; open({str(mark)!r}, 'w').write(str(os.getpid())); time.sleep(600)"

    def fail() -> None:
        while not mark.is_file() or not mark.read_text():
            pass
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), images._beside([sys.executable, "-c", script]):
        fail()
    found = subprocess.run(["ps", "-p", mark.read_text()], capture_output=True, check=False)
    assert found.returncode != 0


def test_a_script_says_which_stack_it_is_about(tmp_path: Path) -> None:
    script = tmp_path / "x.py"
    script.write_text('"""About tasks."""\n# stack of examples/ralph.nix\n# guest: time-limit 42\nmachine.start()\n')
    found = scenario.Scenario.read(script)
    assert (found.stack, found.time_limit) == ("ralph", 42.0)
    assert stack.rendered(found.stack).is_dir()
    script.write_text("machine.start()\n")
    assert scenario.Scenario.read(script).stack == images.REFERENCE
