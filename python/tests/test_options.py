"""docs/options.md is what the Nix sources say, and every option in it is explained."""

from __future__ import annotations

import hashlib
import re
import shutil
from typing import TYPE_CHECKING

import nixhost
import pytest

if TYPE_CHECKING:
    from pathlib import Path

ROOT = nixhost.ROOT
PAGE = ROOT / "docs/options.md"
SOURCES = ("nix/lib", "nix/modules", "nix/portable/options.nix")
AGAIN = "render it again: make render"

_HEADING = re.compile(r"^### `(services\.aistack\.[^`]+)`$", re.MULTILINE)
_FOOT = re.compile(r"<!-- Nixpkgs (\S+), sources ([0-9a-f]{64}) -->\n\Z")


def digest(root: Path) -> str:
    """The digest of the sources, as nix/portable/options.nix takes it."""
    found = [
        path for name in SOURCES for path in ((root / name).rglob("*") if (root / name).is_dir() else [root / name])
    ]
    names = sorted(str(path.relative_to(root)) for path in found if path.is_file())
    lines = (f"{hashlib.sha256((root / name).read_bytes()).hexdigest()}  {name}\n" for name in names)
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def foot(text: str) -> tuple[str, str]:
    """The release of Nixpkgs and the digest of the sources that a page was made with."""
    found = _FOOT.search(text)
    assert found is not None, "the page does not end with what it was made from"
    return found[1], found[2]


def entries(text: str) -> dict[str, str]:
    """The text below each option's heading."""
    _, *parts = _HEADING.split(text)
    names, bodies = parts[::2], parts[1::2]
    assert len(set(names)) == len(names)
    return {name: body.partition("\n## ")[0].strip() for name, body in zip(names, bodies, strict=True)}


def lasting(text: str) -> dict[str, tuple[str, list[str]]]:
    """What of each entry does not depend on how a release of Nixpkgs words types and values."""
    return {
        name: (body.partition("\n")[0], re.findall(r"declared in (.*)", body)) for name, body in entries(text).items()
    }


def page() -> str:
    """The page that is checked in."""
    return PAGE.read_text(encoding="utf-8")


OPTIONS = entries(page())


def test_the_page_was_made_from_these_sources() -> None:
    assert foot(page())[1] == digest(ROOT), f"docs/options.md is older than its sources; {AGAIN}"


@pytest.mark.parametrize("change", ["edit", "add", "remove"])
def test_a_stale_page_is_noticed_without_nix(tmp_path: Path, change: str) -> None:
    for folder in ("nix/lib", "nix/modules", "nix/portable"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    assert digest(tmp_path) == digest(ROOT)
    source = tmp_path / "nix/modules/service.nix"
    if change == "edit":
        source.write_text(source.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    elif change == "add":
        source.with_name("another.nix").touch()
    else:
        source.unlink()
    assert digest(tmp_path) != digest(ROOT)


def test_the_page_is_what_the_module_evaluates_to() -> None:
    reason = nixhost.unavailable()
    if reason is not None:
        pytest.skip(f"docs/options.md was compared with the hash of its sources only; {reason}")
    fresh = nixhost.evaluate_text(ROOT / "nix/portable/options.nix", "-A", "markdown")
    assert lasting(fresh) == lasting(page()), AGAIN
    if foot(fresh)[0] == foot(page())[0]:
        assert fresh == page(), AGAIN


def test_the_first_line_says_what_makes_it() -> None:
    first = page().splitlines()[0]
    assert "Generated" in first
    assert "make render" in first


@pytest.mark.parametrize("name", OPTIONS)
def test_an_option_is_explained(name: str) -> None:
    body = OPTIONS[name]
    description = body.partition("\n\n- type: ")[0]
    assert re.match(r"[A-Z]", description), description
    assert description.endswith("."), description
    assert len(description.split()) > 2 or name.endswith(".package"), description
    assert "\n- type: `" in body
    assert "\n- default: " in body or "\n- default:\n" in body or "\n- no default: it must be set" in body
    # What needs none: it is switched on, or is not set at all, or is what is installed.
    if not (name.endswith((".enable", ".package")) or "`, read only" in body):
        assert "\n- example:" in body


def test_every_option_is_declared_in_a_file_that_exists() -> None:
    for name, body in OPTIONS.items():
        links = re.findall(r"declared in \[([^]]+)\]\(\.\./([^)]+)\)", body)
        assert links, name
        for text, path in links:
            assert text == path
            leaf = name.rpartition(".")[2]
            assert (ROOT / path).is_file(), f"{name}: {path}"
            assert leaf in (ROOT / path).read_text(encoding="utf-8"), f"{name} is not in {path}"


def test_all_parts_of_the_module_are_there() -> None:
    wanted = {
        "services.aistack.stateDir",
        "services.aistack.services.<name>.health.kind",
        "services.aistack.services.<name>.publish.*.hostPort",
        "services.aistack.secrets.<name>.file",
        "services.aistack.llama-cpp.model",
        "services.aistack.selfHealing.maxRestarts",
    }
    assert wanted <= OPTIONS.keys()
    assert f"All {len(OPTIONS)} options" in page()
    for hidden in ("hook", "manifest", "derivedSections", "sections", "llama-cpp.modelFile"):
        assert f"services.aistack.{hidden}" not in OPTIONS


def test_the_contents_lead_to_every_section() -> None:
    titles = re.findall(r"^## (.+)$", page(), re.MULTILINE)
    links = re.findall(r"^- \[([^]]+)\]\(#([^)]+)\) \(\d+\)$", page(), re.MULTILINE)
    assert [title for title, _ in links] == titles
    for title, anchor in links:
        assert anchor == re.sub(r"[^a-z0-9_-]", "", title.lower())
