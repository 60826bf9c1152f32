"""The documentation is true: what it names exists, what it quotes is what the code says, what it shows evaluates.

Only what a program can judge is judged here: paths, commands, options, keys, units, tables that list what the code has,
links, and every Nix block. Each test also fails when it finds nothing to judge.
"""

from __future__ import annotations

import importlib
import json
import re
import shlex
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import nixhost
import pytest

from aistack import __version__
from aistack.cli.app import COMMANDS
from aistack.errors import ExitCode
from aistack.hooks import network, preflight, probe, releases

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

ROOT = Path(__file__).resolve().parents[2]
NAMES = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "docs/guide.md",
    "docs/deploying.md",
    "docs/ralph.md",
    "docs/troubleshooting.md",
]
GUIDE = "docs/guide.md"

# What the documentation may quote.
SOURCES = ("bundle", "examples", "images", "nix", "python/aistack", "scripts", "tests", "Makefile")
# Programs of this project that are called through a word of another name, and where their options are.
PROGRAMS = {"scripts/test": "tests/guest/suite.py", "guest.run": "tests/guest/run.py"}

_FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"`([^`]+)`")
_LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
_OPTION = re.compile(r"services\.aistack((?:\.[A-Za-z0-9_<>-]+)+)")
_KEY = re.compile(r"[A-Z][A-Z0-9]*(?:_[A-Z0-9]+)+")
_UNIT = re.compile(r"(?<![\w/.])(?:podman-)?aistack-[a-z@<>*-]+(?:\.(?:service|timer|target))?")


@dataclass
class Page:
    """A page, taken apart: fenced blocks by language, code spans, links, and the text around the blocks."""

    name: str
    text: str
    blocks: list[tuple[str, str]] = field(init=False)
    spans: list[str] = field(init=False)
    links: list[str] = field(init=False)

    def __post_init__(self) -> None:
        self.blocks = [(match[1], match[2]) for match in _FENCE.finditer(self.text)]
        prose = _FENCE.sub("", self.text)
        self.spans = [" ".join(match[1].split()) for match in _SPAN.finditer(prose)]
        self.links = _LINK.findall(prose)

    def commands(self) -> Iterator[list[str]]:
        """The words of every command line: those of the blocks for a shell, and each code span."""
        lines = list(self.spans)
        for language, body in self.blocks:
            if language == "sh":
                lines += body.splitlines()
            elif language == "console":
                lines += [line[2:] for line in body.splitlines() if line.startswith(("# ", "$ "))]
        for line in lines:
            for part in re.split(r"[;|()]|&&", line):
                try:
                    # Not shlex's own comments: those begin in the middle of a word, such as .#bundle.
                    words = shlex.split(re.sub(r"(^|\s)#.*", "", part))
                except ValueError:  # a span with an apostrophe is no command
                    continue
                if words:
                    yield words

    def words(self) -> Iterator[str]:
        """Every word of every command."""
        for command in self.commands():
            yield from command

    def table(self, heading: str) -> list[list[str]]:
        """The cells of the table whose first column has this heading, without the heads."""
        found = re.search(rf"^\| {re.escape(heading)} \|.*\n\|[-| ]+\|\n((?:\|.*\n)+)", self.text, re.MULTILINE)
        assert found is not None, f"{self.name} has no table whose first column is {heading}"
        return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in found[1].splitlines()]


@cache
def page(name: str) -> Page:
    """A page by its path."""
    return Page(name, (ROOT / name).read_text(encoding="utf-8"))


def pages() -> list[Page]:
    """All pages that people write."""
    return [page(name) for name in NAMES]


def source_files() -> Iterator[Path]:
    """Every file that the documentation may quote."""
    for start in (ROOT / name for name in SOURCES):
        yield from sorted(start.rglob("*")) if start.is_dir() else [start]


@cache
def sources() -> str:
    """The text of all of them."""
    found = (path for path in source_files() if path.is_file() and "__pycache__" not in path.parts)
    return "\n".join(path.read_text(encoding="utf-8", errors="replace") for path in found)


def complain(wrong: Iterable[str]) -> None:
    """Fail with everything that is wrong, not with the first of it."""
    found = sorted(set(wrong))
    assert not found, "\n".join(found)


def plain(word: str) -> str:
    """A word of a usage line without the marks for "optional" and "repeated"."""
    return word.strip("[]").removesuffix("...").strip("[]")


# --- paths, links ----------------------------------------------------------------------------------------------------


def expanded(word: str) -> list[str]:
    """Patterns for a path with {a,b} and <name> in it."""
    found = re.search(r"\{([^}]*)\}", word)
    if found is None:
        return [re.sub(r"<[^>]*>", "*", word)]
    return [path for part in found[1].split(",") for path in expanded(word.replace(found[0], part, 1))]


def is_of_the_project(word: str) -> bool:
    """Whether a word is the path of a file here: it begins with a folder or file of the top level."""
    first, slash, _ = word.removeprefix("./").partition("/")
    named = bool(slash or "." in first.strip(".") or first == "Makefile")
    return named and not word.startswith("/") and (ROOT / first).exists()


def test_every_path_of_the_project_exists() -> None:
    seen = [(each, word) for each in pages() for word in each.words() if is_of_the_project(word)]
    assert len(seen) > 20
    complain(
        f"{each.name}: there is no {word}"
        for each, word in seen
        for path in expanded(word.partition("#")[0])
        if not list(ROOT.glob(path.rstrip("/")))
    )


def test_every_path_of_a_host_is_one_that_the_project_knows() -> None:
    seen = [
        (each, word.rstrip("/")) for each in pages() for word in each.words() if re.match(r"/(etc|run|usr|var)/", word)
    ]
    assert len(seen) > 5
    for each, word in seen:
        literal = word.partition("<")[0].rstrip("/")
        parent = literal.rpartition("/")[0]
        # A file that only an example has lies in a directory that the project knows.
        known = literal in sources() or (parent.count("/") > 1 and parent in sources())
        assert known, f"{each.name}: nothing knows {word}"


def anchors(name: str) -> set[str]:
    """The anchors that a page's headings make, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", _FENCE.sub("", page(name).text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.replace("`", "")).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", NAMES)
def test_every_link_leads_somewhere(name: str) -> None:
    for link in page(name).links:
        if "://" in link:
            continue
        target, _, anchor = link.partition("#")
        path = (ROOT / name).parent / target if target else ROOT / name
        assert path.exists(), f"{name}: {link}"
        if anchor:
            assert anchor in anchors(str(path.resolve().relative_to(ROOT))), f"{name}: {link}"


def test_nothing_of_the_authors_machine_is_in_the_pages() -> None:
    complain(
        f"{each.name}: {found}" for each in pages() for found in re.findall(r"/(?:work|opt|home|root)/\S*", each.text)
    )


def test_images_are_named_as_the_catalog_names_them() -> None:
    known = set(re.findall(r"\b[a-z0-9-]+\.io/[\w./-]+", sources()))
    complain(
        f"{each.name}: {image}"
        for each in pages()
        for image in re.findall(r"\b[a-z0-9-]+\.io/[\w./-]+", each.text)
        if image not in known
    )


# --- commands --------------------------------------------------------------------------------------------------------


@cache
def sub_commands() -> dict[str, click.Command]:
    """Every sub-command by its words: those of a group of commands are two, as `env set`."""
    found: dict[str, click.Command] = {}
    for name in COMMANDS:
        command = importlib.import_module(f"aistack.cli.{name}").command
        below = command.commands if isinstance(command, click.Group) else {}
        found |= {f"{name} {word}": each for word, each in below.items()} or {name: command}
    return found


def named(words: list[str]) -> tuple[str, list[str]]:
    """Split what follows `aistack` into a sub-command's words and its arguments."""
    length = 2 if " ".join(words[:2]) in sub_commands() else 1
    return " ".join(words[:length]), words[length:]


def options_of(name: str) -> set[str]:
    """The options of a sub-command; a group by itself has none."""
    parameters = sub_commands()[name].params if name in sub_commands() else []
    return {option for parameter in parameters for option in parameter.opts if option.startswith("-")}


def aistack_calls(each: Page) -> Iterator[list[str]]:
    """The arguments of every call of the command line on a page."""
    for words in each.commands():
        if words[0] == "aistack" and len(words) > 1:
            yield words[1:]


def test_every_aistack_command_and_option_exists() -> None:
    seen = [(each, call) for each in pages() for call in aistack_calls(each)]
    assert len(seen) > 10
    wrong = []
    for each, call in seen:
        name, arguments = named(call)
        if name not in sub_commands() and (name not in COMMANDS or arguments):
            wrong.append(f"{each.name}: aistack {' '.join(call)}")
            continue
        given = [plain(word) for word in arguments if plain(word).startswith("-")]
        wrong += [f"{each.name}: aistack {name} {option}" for option in given if option not in options_of(name)]
    complain(wrong)


def test_the_guide_lists_every_command_and_option() -> None:
    listed: dict[str, set[str]] = {}
    for row in page(GUIDE).table("command"):
        name, arguments = named(shlex.split(row[0].strip("`"))[1:])
        listed[name] = {plain(word) for word in arguments if plain(word).startswith("--")}
    assert set(listed) == set(sub_commands())
    # --json is said once, for all of them.
    wanted = {name: {o for o in options_of(name) if o.startswith("--")} - {"--json"} for name in sub_commands()}
    assert listed == wanted


def test_every_make_target_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    seen = [(each, words[1]) for each in pages() for words in each.commands() if words[0] == "make" and words[1:]]
    assert len(seen) > 5
    complain(f"{each.name}: make {target}" for each, target in seen if target not in targets)


def test_every_option_of_a_script_exists() -> None:
    seen = []
    for each in pages():
        for words in each.commands():
            program = next((word for word in words if word in PROGRAMS or is_of_the_project(word)), None)
            if program is None:
                continue
            path = ROOT / PROGRAMS.get(program, program)
            after = words[words.index(program) + 1 :]
            seen += [(each, path, word) for word in after if word.startswith("--") and path.is_file()]
    assert len(seen) > 3
    complain(
        f"{each.name}: {path.relative_to(ROOT)} {option}"
        for each, path, option in seen
        if option.partition("=")[0] not in path.read_text(encoding="utf-8")
    )


def test_every_flake_output_exists() -> None:
    flake = (ROOT / "flake.nix").read_text(encoding="utf-8")
    seen = [
        (each, output)
        for each in pages()
        for words in each.commands()
        if words[0] == "nix"
        for output in re.findall(r"^\.#([a-z-]+)", " ".join(words[2:]))
    ]
    assert seen
    complain(f"{each.name}: .#{output}" for each, output in seen if f"{output} =" not in flake)


# --- options, keys, units --------------------------------------------------------------------------------------------


def general(option: str) -> str:
    """An option's path as the module declares it: names of services and secrets are <name>."""
    option = option.rstrip(".")
    option = re.sub(r"^\.(services|secrets)\.[^.]+", r".\1.<name>", option)
    # What stands below them is free.
    return "services.aistack" + re.sub(r"^((?:\.services\.<name>)?\.environment)\..+", r"\1", option)


def mentioned() -> list[tuple[Page, str]]:
    """Every option that a page names in full."""
    return [(each, general(match[1])) for each in pages() for match in _OPTION.finditer(each.text)]


@cache
def declared() -> dict[str, str | None]:
    """The options of the module with their defaults as text; skips where there is nothing to evaluate with."""
    if (reason := nixhost.unavailable()) is not None:
        pytest.skip(reason)
    expression = f"""
      let
        lib = import <nixpkgs/lib>;
        harness = import {ROOT}/tests/eval/harness.nix {{ nixpkgs = <nixpkgs>; inherit lib; }};
        options = lib.optionAttrSetToDocList (harness.evaluate [ ]).options;
      in
      lib.listToAttrs (map (option: lib.nameValuePair option.name (option.default.text or null))
        (lib.filter (option: !option.internal && lib.hasPrefix "services.aistack." option.name) options))
    """
    return nixhost.evaluate("--expr", expression)


def test_the_modules_mention_every_option() -> None:
    modules = "\n".join(path.read_text(encoding="utf-8") for path in sorted((ROOT / "nix/modules").rglob("*.nix")))
    names = [(each, option) for each, option in mentioned() if option != "services.aistack"]
    assert len(names) > 20
    complain(
        f"{each.name}: {option}"
        for each, option in names
        for part in option.split(".")[2:]
        if part != "<name>" and not re.search(rf"(?<![\w-]){re.escape(part)}(?![\w-])", modules)
    )


def test_every_option_is_declared() -> None:
    # A set of options, such as services.aistack.services.<name>.health, is as good as one of them.
    known = {".".join(parts[:end]) for name in declared() for parts in [name.split(".")] for end in range(2, 9)}
    complain(f"{each.name}: {option}" for each, option in mentioned() if option not in known)


def test_short_names_of_options_are_ends_of_declared_ones() -> None:
    short = re.compile(r"(?:health|startup|rollback|preflight|capabilities|resources|external)(?:\.[a-zA-Z]+)+")
    seen = [(each, span) for each in pages() for span in each.spans if short.fullmatch(span)]
    assert seen
    complain(f"{each.name}: {span}" for each, span in seen if not any(n.endswith(f".{span}") for n in declared()))


def test_numbers_behind_options_are_their_defaults() -> None:
    stated = re.compile(r"`(?:services\.aistack)?\.?([A-Za-z.<>-]+)`\s+\((\d+)[);]")
    seen = [(each, match[1], match[2]) for each in pages() for match in stated.finditer(each.text)]
    assert len(seen) >= 4
    for each, name, number in seen:
        defaults = {default for option, default in declared().items() if option.endswith(f".{name.lstrip('.')}")}
        assert defaults == {number}, f"{each.name}: {name} ({number}), declared {defaults}"


def test_every_key_is_one_that_the_project_knows() -> None:
    seen = [(each, key) for each in pages() for span in each.spans for key in _KEY.findall(span)]
    assert len(seen) > 3
    complain(f"{each.name}: {key}" for each, key in seen if not re.search(rf"\b{key}\b", sources()))


def test_the_excerpt_of_the_env_is_the_reference_stacks() -> None:
    rendered = (ROOT / "bundle/reference/etc/aistack/.env").read_text(encoding="utf-8").splitlines()
    (excerpt,) = (body for _, body in page(GUIDE).blocks if "POSTGRES_HOST=" in body)
    complain(line for line in excerpt.splitlines() if line not in rendered)


def test_every_unit_exists() -> None:
    units = {path.name for path in (ROOT / "bundle/reference/etc/systemd/system").iterdir()}
    seen = [(each, match[0]) for each in pages() for match in _UNIT.finditer(each.text)]
    assert len(seen) > 10
    wrong = []
    for each, name in seen:
        file = re.sub(r"@[a-z<>*-]+", "@", name)
        pattern = re.sub(r"<svc>|<seconds>|\*", "[a-z0-9-]+", re.escape(file).replace(r"\*", "*"))
        fits = re.compile(pattern + r"(\.\w+)?")
        # Containers, images and packages have such names too.
        if not any(fits.fullmatch(unit) for unit in units) and name not in sources():
            wrong.append(f"{each.name}: {name}")
    complain(wrong)


# --- tables that list what the code has ------------------------------------------------------------------------------


def test_the_guide_explains_every_kind_of_check() -> None:
    constants = {**vars(probe), **vars(preflight)}
    kinds = {value for name, value in constants.items() if name.isupper() and isinstance(value, str)} - {probe.READY}
    assert {row[0] for row in page(GUIDE).table("kind")} == kinds


def test_the_guide_lists_every_fault_of_the_network_in_the_order_they_are_mended() -> None:
    faults = {name: value for name, value in vars(network).items() if name.isupper() and isinstance(value, str)}
    kinds = [kind for kind in faults.values() if not kind.startswith("/")]
    assert [row[0] for row in page(GUIDE).table("fault")] == kinds


def test_the_guide_lists_every_exit_code() -> None:
    assert [int(row[0]) for row in page(GUIDE).table("exit code")] == list(ExitCode)


def test_the_guide_lists_every_state_of_a_release() -> None:
    states = [releases.STAGED, releases.PROBATION, releases.GOOD, releases.BAD]
    assert [row[0] for row in page(GUIDE).table("state")] == states


def test_the_guide_lists_every_service_of_the_catalog() -> None:
    catalog = {path.stem for path in (ROOT / "nix/modules/catalog").glob("*.nix")} - {"default"}
    rows = page(GUIDE).table("service")
    assert {row[0].split()[0] for row in rows} == catalog
    manifest = json.loads((ROOT / "bundle/ralph/etc/aistack/stack.json").read_text(encoding="utf-8"))
    ports = {name: service["port"] for name, service in manifest["services"].items() if name in catalog}
    assert {row[0].split()[0]: int(row[1]) for row in rows} == ports


def test_the_steps_that_the_readme_shows_are_the_demos() -> None:
    demo = (ROOT / "tests/guest/demo.py").read_text(encoding="utf-8")
    (console,) = (body for language, body in page("README.md").blocks if language == "console")
    steps = re.findall(r"^   ok  (.+?)  \([\d.]+ s\)$", console, re.MULTILINE)
    assert len(steps) >= 4
    complain(step for step in steps if step not in demo)


# --- Nix -------------------------------------------------------------------------------------------------------------


def nix_blocks() -> dict[str, str]:
    """Every Nix block of the pages, by page and number."""
    return {
        f"{each.name} {number}": body
        for each in pages()
        for number, (language, body) in enumerate(each.blocks)
        if language == "nix"
    }


def test_the_configuration_of_the_readme_is_the_example() -> None:
    (shown,) = (body for name, body in nix_blocks().items() if name.startswith("README.md"))
    example = (ROOT / "examples/minimal.nix").read_text(encoding="utf-8")
    assert shown == re.sub(r"^#.*\n", "", example, flags=re.MULTILINE)


def test_every_flake_reference_is_the_templates() -> None:
    template = (ROOT / "templates/default/flake.nix").read_text(encoding="utf-8")
    seen = [(each, found) for each in pages() for found in re.findall(r"github:[\w/.-]+", each.text)]
    assert seen
    complain(f"{each.name}: {found}" for each, found in seen if f'"{found}"' not in template)


# A minimal stack, so that a block need only say what it is about; and what sops-nix would bring.
_AROUND = """
{ lib, ... }: {
  options.sops.secrets = lib.mkOption {
    default = { };
    type = lib.types.attrsOf (lib.types.submodule ({ name, ... }: {
      options.path = lib.mkOption { default = "/run/secrets/${name}"; };
    }));
  };
  config.services.aistack = {
    enable = true;
    secrets.POSTGRES_PASSWORD.file = lib.mkDefault "/run/secrets/postgres-password";
  };
}
"""


@cache
def evaluated(folder: Path) -> dict[str, Any]:
    """What the module refuses about each block that configures it."""
    if (reason := nixhost.unavailable()) is not None:
        pytest.skip(reason)
    around = folder / "around.nix"
    around.write_text(_AROUND, encoding="utf-8")
    cases = []
    for name, body in configurations().items():
        # Nix names the file when it cannot evaluate it.
        path = folder / f"{re.sub('[^a-z0-9]+', '-', name.lower())}.nix"
        path.write_text(body, encoding="utf-8")
        cases.append(f'"{name}" = judge {path};')
    expression = f"""
      let
        lib = import <nixpkgs/lib>;
        harness = import {ROOT}/tests/eval/harness.nix {{ nixpkgs = <nixpkgs>; inherit lib; }};
        judge = block:
          let config = (harness.evaluate [ {around} block ]).config;
          in builtins.seq config.environment.etc."aistack/stack.json".text (harness.failures config);
      in {{ {" ".join(cases)} }}
    """
    return nixhost.evaluate("--expr", expression)


def configurations() -> dict[str, str]:
    """The blocks that are modules; the others are flakes."""
    return {name: body for name, body in nix_blocks().items() if "inputs." not in body}


@pytest.mark.parametrize("name", list(configurations()))
def test_every_configuration_is_accepted(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.getbasetemp() / "documentation"
    folder.mkdir(exist_ok=True)
    assert evaluated(folder)[name] == []


@pytest.mark.parametrize("name", [name for name in nix_blocks() if name not in configurations()])
def test_every_flake_can_be_parsed(name: str, tmp_path: Path) -> None:
    if (reason := nixhost.unavailable()) is not None:
        pytest.skip(reason)
    path = tmp_path / "flake.nix"
    path.write_text(nix_blocks()[name], encoding="utf-8")
    done = nixhost.run("nix-instantiate", "--parse", path)
    assert done.returncode == 0, done.stderr


# --- the rest --------------------------------------------------------------------------------------------------------


def test_the_readme_is_short() -> None:
    assert len(page("README.md").text.splitlines()) <= 150


def test_the_changelog_begins_with_this_version() -> None:
    found = re.search(r"^## \[?([\d.]+)", page("CHANGELOG.md").text, re.MULTILINE)
    assert found is not None
    assert found[1] == __version__


def test_the_licence_is_the_one_that_the_package_names() -> None:
    assert (ROOT / "LICENSE").read_text(encoding="utf-8").startswith("MIT License\n")
    assert 'license = { text = "MIT" }' in (ROOT / "python/pyproject.toml").read_text(encoding="utf-8")
