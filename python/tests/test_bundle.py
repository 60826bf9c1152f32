"""bundle/reference and bundle/ralph are what the Nix sources render; and how an evaluation becomes files."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
import stat
import sys
from typing import TYPE_CHECKING, Any

import nixhost
import pytest

if TYPE_CHECKING:
    from pathlib import Path
    from types import ModuleType

ROOT = nixhost.ROOT
REFERENCE = ROOT / "bundle/reference"
EXAMPLE = ROOT / "examples/reference.nix"
STACKS = ["ralph", "reference"]
AGAIN = "render it again: make render"


def load_renderer() -> ModuleType:
    """The renderer is a program beside the Nix code, in no package."""
    spec = importlib.util.spec_from_file_location("render", ROOT / "nix/portable/render.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["render"] = module
    spec.loader.exec_module(module)
    return module


render = load_renderer()


def tree_of(folder: Path) -> dict[str, tuple[str, bool]]:
    """Every file below a folder: its text, and whether it is executable."""
    return {
        str(path.relative_to(folder)): (path.read_text(encoding="utf-8"), bool(path.stat().st_mode & stat.S_IXUSR))
        for path in folder.rglob("*")
        if path.is_file()
    }


def differing(one: dict[str, tuple[str, bool]], other: dict[str, tuple[str, bool]]) -> list[str]:
    """The names of files that are not the same in both."""
    return sorted(name for name in one.keys() | other.keys() if one.get(name) != other.get(name))


def recorded(sources: str) -> tuple[str, dict[str, str]]:
    """The Nixpkgs line of a SOURCES.sha256, and its hashes by file."""
    lines = sources.splitlines()
    (nixpkgs,) = (line for line in lines if line.startswith("# nixpkgs "))
    return nixpkgs, {name: digest for digest, name in (line.split("  ") for line in lines if not line.startswith("#"))}


def stale(bundle: Path, root: Path, stack: str = "reference") -> list[str]:
    """The sources that are not as they were when the bundle was rendered."""
    _, then = recorded((bundle / "SOURCES.sha256").read_text(encoding="utf-8"))
    now = {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in render.source_files(root, root / f"examples/{stack}.nix")
    }
    return sorted(name for name in then.keys() | now.keys() if then.get(name) != now.get(name))


# --- The reference ---------------------------------------------------------------------------------


@pytest.mark.parametrize("stack", STACKS)
def test_a_bundle_was_rendered_from_these_sources(stack: str) -> None:
    changed = stale(ROOT / "bundle" / stack, ROOT, stack)
    assert not changed, f"bundle/{stack} is older than {', '.join(changed)}; {AGAIN}"


@pytest.mark.parametrize("change", ["edit", "add", "remove"])
def test_a_stale_reference_is_noticed_without_nix(tmp_path: Path, change: str) -> None:
    for folder in ("nix/modules", "nix/lib", "nix/portable", "examples"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    reference = tmp_path / "reference"
    reference.mkdir()
    recording = render.sources_text(tmp_path, tmp_path / "examples/reference.nix", {"version": "1", "files": {}})
    (reference / "SOURCES.sha256").write_text(recording, encoding="utf-8")
    assert stale(reference, tmp_path) == []
    source = tmp_path / "nix/modules/containers.nix"
    if change == "edit":
        source.write_text(source.read_text(encoding="utf-8") + "\n", encoding="utf-8")
    elif change == "add":
        source = source.with_name("another.nix")
        source.touch()
    else:
        source.unlink()
    assert stale(reference, tmp_path) == [str(source.relative_to(tmp_path))]


@pytest.mark.parametrize("stack", STACKS)
def test_a_bundle_is_what_the_sources_render(stack: str, tmp_path: Path) -> None:
    reason = nixhost.unavailable()
    if reason is not None:
        pytest.skip(f"bundle/{stack} was compared with the hashes of its sources only; {reason}")
    done = nixhost.run(ROOT / "nix/portable/render", ROOT / f"examples/{stack}.nix", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    here, there = tree_of(tmp_path / "out"), tree_of(ROOT / "bundle" / stack)
    nixpkgs_here, _ = recorded(here["SOURCES.sha256"][0])
    nixpkgs_there, _ = recorded(there["SOURCES.sha256"][0])
    if nixpkgs_here != nixpkgs_there:
        # Another NixOS writes other units around the same hooks; what is ours alone must be the same.
        ours = [name for name in here.keys() | there.keys() if name.startswith("etc/aistack/")]
        assert here.keys() == there.keys()
        assert not [name for name in ours if here.get(name) != there.get(name)], AGAIN
        pytest.skip(f"units were compared by name only: rendered with {nixpkgs_there[2:]}, here is {nixpkgs_here[2:]}")
    assert not differing(here, there), AGAIN


def test_a_changed_reference_is_noticed(tmp_path: Path) -> None:
    copy = shutil.copytree(REFERENCE, tmp_path / "copy")
    assert not differing(tree_of(copy), tree_of(REFERENCE))
    unit = copy / "etc/systemd/system/podman-aistack-app.service"
    unit.write_text(unit.read_text(encoding="utf-8").replace("After=", "Before="), encoding="utf-8")
    start = copy / "usr/lib/aistack/libexec/podman-aistack-app/start"
    start.chmod(0o644)
    assert differing(tree_of(copy), tree_of(REFERENCE)) == [
        "etc/systemd/system/podman-aistack-app.service",
        "usr/lib/aistack/libexec/podman-aistack-app/start",
    ]


@pytest.mark.parametrize("stack", STACKS)
def test_a_bundle_needs_nothing_of_nix(stack: str) -> None:
    for name, (text, executable) in tree_of(ROOT / "bundle" / stack).items():
        assert "/nix/" not in text, name
        assert not [key for key in ("PATH=", "LOCALE_ARCHIVE=", "TZDIR=") if f'Environment="{key}' in text], name
        if name.startswith("usr/lib/aistack/libexec/"):
            assert text.startswith("#!/bin/bash\n"), name
            assert executable, name
        else:
            assert not executable, name
        if not name.endswith(".json"):
            assert "Generated" in "\n".join(text.splitlines()[:2]), name
        assert text.endswith("\n"), name
        assert not text.endswith("\n\n"), name


@pytest.mark.parametrize("stack", STACKS)
def test_every_program_that_a_unit_runs_is_in_the_bundle_or_on_the_host(stack: str) -> None:
    ours = tree_of(ROOT / "bundle" / stack)
    for name, (text, _) in ours.items():
        if not name.startswith("etc/systemd/system/"):
            continue
        for line in text.splitlines():
            key, _, value = line.partition("=")
            if not key.startswith("Exec"):
                continue
            program, *arguments = value.lstrip("-").split()
            assert program in ("/usr/bin/python3", "/usr/bin/podman") or program[1:] in ours, f"{name}: {line}"
            if program == "/usr/bin/python3":
                assert arguments[:3] == ["-I", "-S", "/usr/lib/aistack/aistack-hook"], f"{name}: {line}"


def test_another_configuration_is_rendered_where_it_is_told_to(tmp_path: Path) -> None:
    if nixhost.unavailable():
        pytest.skip(str(nixhost.unavailable()))
    configuration = tmp_path / "my stack.nix"
    configuration.write_text(f"{{ imports = [ {EXAMPLE} ]; services.aistack.services.qdrant.enable = false; }}")
    # qdrant is one of the hard dependencies of the example's own container.
    refused = nixhost.run(ROOT / "nix/portable/render", configuration, tmp_path / "out")
    assert refused.returncode != 0
    assert "qdrant" in refused.stderr
    assert not (tmp_path / "out").exists()

    configuration.write_text(
        f"{{ lib, ... }}: {{ imports = [ {EXAMPLE} ]; services.aistack.services = {{ qdrant.enable = false;"
        ' app.dependsOn = lib.mkForce [ "redis" ]; }; }'
    )
    done = nixhost.run(ROOT / "nix/portable/render", configuration, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    manifest = json.loads((tmp_path / "out/etc/aistack/stack.json").read_text(encoding="utf-8"))
    assert "qdrant" not in manifest["services"]
    assert not (tmp_path / "out/etc/systemd/system/podman-aistack-qdrant.service").exists()


def test_an_image_of_the_nix_store_cannot_go_to_a_host_without_one(tmp_path: Path) -> None:
    if nixhost.unavailable():
        pytest.skip(str(nixhost.unavailable()))
    configuration = tmp_path / "stack.nix"
    configuration.write_text(
        f"{{ pkgs, ... }}: {{ imports = [ {EXAMPLE} ];"
        ' services.aistack.services.redis.imageStream = pkgs.writeScript "stream" "exit 1"; }'
    )
    done = nixhost.run(ROOT / "nix/portable/render", configuration, tmp_path / "out")
    assert done.returncode == 1
    assert "etc/aistack/stack.json contains /nix/store/" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("arguments", [["one.nix"], ["a", "b", "c"], ["does-not-exist.nix", "out"]])
def test_wrong_usage_of_the_renderer_writes_nothing(tmp_path: Path, arguments: list[str]) -> None:
    done = nixhost.run(ROOT / "nix/portable/render", *arguments, cwd=tmp_path)
    assert done.returncode != 0
    assert done.stderr
    assert not list(tmp_path.iterdir())


# --- The renderer ----------------------------------------------------------------------------------


class Store:
    """A folder that plays the Nix store, and a tree that refers to it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.folder.mkdir()
        self.tree: dict[str, Any] = {"storeDir": str(folder), "units": {}, "etc": {}, "tmpfiles": []}

    def file(self, name: str, text: str) -> str:
        """Write a file of the store; return its path."""
        digest = hashlib.sha256(f"{name}{text}".encode()).hexdigest()[:32]
        path = self.folder / f"{digest}-{name}"
        path.write_text(text, encoding="utf-8")
        return str(path)

    def unit(self, name: str, text: str, **install: list[str]) -> None:
        """Add a unit to the tree."""
        lists = {"aliases": [], "wantedBy": [], "requiredBy": [], "upheldBy": [], **install}
        self.tree["units"][name] = {"text": text, **lists}

    def render(self) -> dict[str, Any]:
        """Render the tree."""
        files = render.render(self.tree)
        assert isinstance(files, dict)
        return files


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def test_scripts_of_a_unit_come_along_with_the_scripts_they_name(store: Store) -> None:
    inner = store.file("inner", "#!/bin/bash\necho inner\n\n\n\necho\n")
    data = store.file("data", "plain\n")
    start = store.file("x-start", f"#!/bin/bash\nset -e\n{inner}/bin/inner < {data}\n")
    store.unit("x.service", f"[Service]\nExecStart={start}/bin/x-start \n")
    files = store.render()
    assert sorted(files) == [
        "etc/systemd/system/x.service",
        "usr/lib/aistack/libexec/x/data",
        "usr/lib/aistack/libexec/x/inner",
        "usr/lib/aistack/libexec/x/start",
    ]
    assert files["etc/systemd/system/x.service"].text.splitlines()[2:] == [
        "[Service]",
        "ExecStart=/usr/lib/aistack/libexec/x/start",
    ]
    assert files["usr/lib/aistack/libexec/x/start"].text == (
        f"#!/bin/bash\n{render.GENERATED}\nset -e\n/usr/lib/aistack/libexec/x/inner < /usr/lib/aistack/libexec/x/data\n"
    )
    assert files["usr/lib/aistack/libexec/x/start"].mode == 0o755
    assert files["usr/lib/aistack/libexec/x/data"].mode == 0o644
    assert files["usr/lib/aistack/libexec/x/inner"].text.endswith("echo inner\n\necho\n")


def test_two_scripts_of_one_short_name_keep_their_full_names(store: Store) -> None:
    one = store.file("pre-start", "#!/bin/bash\none\n")
    two = store.file("x-pre-start", "#!/bin/bash\ntwo\n")
    store.unit("x.service", f"[Service]\nExecStartPre={one}\nExecStartPre={two}\n")
    files = store.render()
    assert "one" in files["usr/lib/aistack/libexec/x/pre-start"].text
    assert "two" in files["usr/lib/aistack/libexec/x/x-pre-start"].text


def test_install_sections_follow_from_what_wants_the_unit(store: Store) -> None:
    # Newer NixOS writes the section itself, older does not.
    store.unit("a.service", "[Unit]\nDescription=A\n\n[Service]\nType=oneshot\n", wantedBy=["x.target", "y.target"])
    store.unit("b.target", "[Unit]\n\n[Install]\nWantedBy=z.target\n", requiredBy=["z.target"])
    files = store.render()
    assert files["etc/systemd/system/a.service"].text.endswith("[Install]\nWantedBy=x.target y.target\n")
    assert files["etc/systemd/system/b.target"].text == f"{render.GENERATED}\n\n[Install]\nRequiredBy=z.target\n"


def test_restart_triggers_change_with_what_they_name(store: Store) -> None:
    def rendered(trigger: str) -> str:
        path = store.file("trigger", trigger)
        store.unit(
            "a.service", f"[Unit]\nX-Restart-Triggers={path}\n[Service]\nX-RestartIfChanged=false\nType=simple\n"
        )
        text = store.render()["etc/systemd/system/a.service"].text
        assert isinstance(text, str)
        return text

    one, two = rendered("one"), rendered("two")
    assert one != two
    assert one == rendered("one")
    assert "X-RestartIfChanged" not in one


def test_what_was_not_made_by_the_evaluation_is_refused(store: Store) -> None:
    missing = f"{store.folder}/{'0' * 32}-podman/bin/podman"
    store.unit("a.service", f"[Service]\nExecStart={missing}\n")
    with pytest.raises(render.RenderError, match=r"a\.service refers to .*-podman, which is no text file"):
        store.render()


def test_files_that_a_bundle_cannot_carry_are_refused(store: Store) -> None:
    store.tree["etc"]["aistack/secret"] = {"text": "x", "mode": "0400"}
    with pytest.raises(render.RenderError, match="etc/aistack/secret has mode 0400"):
        store.render()
    store.tree["etc"] = {"aistack/.env": {"text": f"A={store.folder}/{'0' * 32}-x\n", "mode": "0644"}}
    with pytest.raises(render.RenderError, match=r"etc/aistack/\.env contains"):
        store.render()
    store.tree["etc"] = {}
    store.tree["tmpfiles"] = [f"d {store.folder}"]
    with pytest.raises(render.RenderError, match="still mentions"):
        store.render()


def test_what_is_no_unit_is_refused(store: Store) -> None:
    store.unit("a.service", "[Service]\nnonsense\n")
    with pytest.raises(render.RenderError, match=r"a\.service: cannot understand the line 'nonsense'"):
        store.render()


def test_only_an_earlier_rendering_is_replaced(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "diary").write_text("dear diary", encoding="utf-8")
    with pytest.raises(render.RenderError, match="was not rendered"):
        render.write({"a": render.File("a\n")}, out)
    assert tree_of(out) == {"diary": ("dear diary", False)}
    (out / "diary").unlink()
    render.write({"a": render.File("a\n"), "SOURCES.sha256": render.File("")}, out)
    render.write({"b/c": render.File("b\n", 0o755)}, out)
    assert tree_of(tmp_path) == {"out/b/c": ("b\n", True)}
