"""docs/troubleshooting.md has every message that the sources can say, and none that they do not."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING

import messages
import pytest

from aistack.hooks import preflight, probe

if TYPE_CHECKING:
    from pathlib import Path

PAGE = messages.ROOT / "docs/troubleshooting.md"


@dataclass(frozen=True)
class Entry:
    """An entry of the page: its title, the messages it explains, and the explanation."""

    title: str
    messages: list[str]
    text: str


def entries() -> list[Entry]:
    """All entries of the page."""
    _, *parts = re.split(r"^### (.+)$", PAGE.read_text(encoding="utf-8"), flags=re.MULTILINE)
    found = []
    for title, body in zip(parts[::2], parts[1::2], strict=True):
        lines = body.partition("\n## ")[0].strip().splitlines()
        bullets = [line for line in lines if line.startswith("- `")]
        rest = " ".join(line for line in lines if not line.startswith("- `")).strip()
        found.append(Entry(title, [bullet.removeprefix("- `").removesuffix("`") for bullet in bullets], rest))
    return found


def kinds() -> dict[str, str]:
    """What a check can find, with the module that names it."""
    return {
        value: module.__name__
        for module in (probe, preflight)
        for name, value in vars(module).items()
        if name.isupper() and isinstance(value, str) and value != probe.READY
    }


def test_every_message_is_explained() -> None:
    said = {**messages.all_of_them(), **kinds()}
    explained = {message for entry in entries() for message in entry.messages}
    missing = [f"- `{message}`   ({place})" for message, place in said.items() if message not in explained]
    assert not missing, "not in docs/troubleshooting.md; add to an entry, or begin one:\n" + "\n".join(missing)


def test_nothing_is_explained_that_is_not_said() -> None:
    said = {**messages.all_of_them(), **kinds()}
    stale = [f"{entry.title}: {message}" for entry in entries() for message in entry.messages if message not in said]
    assert not stale, "in docs/troubleshooting.md, and no code says it any more:\n" + "\n".join(stale)


def test_every_entry_has_messages_and_says_what_to_do() -> None:
    found = entries()
    assert len(found) > 30
    for entry in found:
        assert entry.messages, f"{entry.title} has no message"
        assert entry.text.endswith("."), f"{entry.title} does not end in a sentence"
    counted = Counter(message for entry in found for message in entry.messages)
    assert not [message for message, times in counted.items() if times > 1]


def test_the_contents_lead_to_every_section() -> None:
    text = PAGE.read_text(encoding="utf-8")
    titles = re.findall(r"^## (.+)$", text, re.MULTILINE)
    links = re.findall(r"^- \[(.+)\]\(#(.+)\)$", text, re.MULTILINE)
    assert [title for title, _ in links] == titles
    for title, anchor in links:
        assert anchor == re.sub(r"[^a-z0-9 -]", "", title.lower()).replace(" ", "-")


# --- The reader of the sources -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ('raise HookError(f"cannot open {path}: {why}", 2)', ["cannot open …: …"]),
        ('raise HookError("one " + other + " more")', ["one … more"]),
        ('class Broken(HookError): ...\nraise Broken("it is broken")', ["it is broken"]),
        (
            'class Torn(HookError):\n def __init__(self, a):\n  super().__init__(f"{a} is torn up")',
            ["… is torn up"],
        ),
        ('runtime.say(f"{name}: {error}")', []),
        ('runtime.say(f"{name} is `back` after {seconds:.1f} s, {a}{b}")', ["… is 'back' after … s, …"]),
        (
            'raise UsageError("it is wrong", why="because of this", hint="do that then")',
            ["it is wrong", "because of this"],
        ),
        ('def words(x):\n return f"no key {x}"\nraise UsageError(words(1))', ["no key …"]),
        ('reason = f"never ready ({why})" if a else "not at all"', ["never ready (…)", "not at all"]),
        ('def f():\n return WAIT, "it is awaited"', ["it is awaited"]),
        ('warn("area", f"{a} is odd", f"systemctl restart {a}")', ["… is odd"]),
        ('"""A docstring of words."""\nx = print("not for users")', []),
    ],
)
def test_messages_of_python(tmp_path: Path, source: str, expected: list[str]) -> None:
    path = tmp_path / "module.py"
    path.write_text(source, encoding="utf-8")
    assert list(messages.of_python([path], tmp_path)) == expected


def test_messages_of_nix(tmp_path: Path) -> None:
    path = tmp_path / "assertions.nix"
    path.write_text(
        "[\n"
        '  (refuse (a != null && "x (" == b) "${option name}.port is `${toString (f { x = "}"; })}`." "Set it.")\n'
        '  (refuse wrong "a \\"quoted\\" word" "Do.")\n'
        "]\n",
        encoding="utf-8",
    )
    assert list(messages.of_refusals([path], tmp_path)) == ["….port is '…'.", 'a "quoted" word']


def test_no_refusal_is_overlooked() -> None:
    paths = sorted((messages.ROOT / "nix/modules/assertions").glob("*.nix"))
    calls = sum(len(re.findall(r"\brefuse\s+[(\w]", path.read_text(encoding="utf-8"))) for path in paths)
    assert len(messages.of_refusals(paths)) == calls


def test_messages_of_shell(tmp_path: Path) -> None:
    path = tmp_path / "script"
    path.write_text(
        'die 2 "$bundle is no ${thing} of $(basename "$x")"\n'
        "[ -n x ] || die 1 'there is no room'\n"
        'missing+=("the module $name is needed")\n',
        encoding="utf-8",
    )
    assert list(messages.of_shell([path], tmp_path))[1:] == ["there is no room", "the module … is needed"]
