"""bundle/install and bundle/uninstall, on a root file system that is the host's with a layer above it.

The layer shows exactly what they wrote. Nothing of it runs: what a running systemd adds is for the scenarios.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
BUNDLE = ROOT / "bundle"
UNITS = "etc/systemd/system"

# The program that this Python really is, under the name that makes it find its environment's modules: the name itself
# may lead, by links, to the /usr/bin/python3 that this test replaces, and that would run itself for ever.
EXEC_PYTHON = f"exec -a {sys.executable} {Path(sys.executable).resolve()}"

# What a host must have, as far as install looks: versions from programs, and podman's helpers.
HOST_FILES = {
    "usr/local/bin/systemctl": "#!/bin/sh\necho 'systemd 257 (257.9-1~deb13u1)'\n",
    "usr/local/bin/podman": "#!/bin/sh\necho 'podman version 5.4.2'\n",
    "usr/lib/podman/netavark": "#!/bin/sh\n",
    "usr/lib/podman/aardvark-dns": "#!/bin/sh\n",
    # The host's own Python may lack the modules; this one has them, or this test would not run.
    "usr/bin/python3": f'#!/bin/bash\n{EXEC_PYTHON} "$@"\n',
}


@dataclass
class Host:
    """A root file system to install into: `/` below, `layer` above it."""

    folder: Path

    @property
    def layer(self) -> Path:
        """What differs from the real host."""
        return self.folder / "layer"

    def run(self, *command: str | Path) -> subprocess.CompletedProcess[str]:
        """Run a command that finds the root file system at `$root`, in mounts of its own."""
        mount = f'mount -t overlay overlay -o "lowerdir=/,upperdir={self.layer},workdir={self.folder}/work" "$root"'
        if Path(sys.prefix).stat().st_dev != Path("/").stat().st_dev:
            # The layer shows nothing of other file systems, and the host's Python needs this one's environment.
            mount += f'; mkdir -p "$root{sys.prefix}"; mount --bind {sys.prefix} "$root{sys.prefix}"'
        words = ["sh", "-euc", f'{mount}; exec "$@"', "sh", *command]
        return subprocess.run(
            [shutil.which("unshare") or "unshare", "--mount", *words],
            env={**os.environ, "root": str(self.root), "PYTHONDONTWRITEBYTECODE": ""},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    @property
    def root(self) -> Path:
        """Where the layers are mounted, while a command runs."""
        return self.folder / "root"

    def install(self, *options: str | Path, bundle: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run bundle/install into the root file system."""
        return self.run(BUNDLE / "install", "--root", self.root, *options, *([bundle] if bundle else []))

    def uninstall(self, *options: str) -> subprocess.CompletedProcess[str]:
        """Run bundle/uninstall on the root file system."""
        return self.run(BUNDLE / "uninstall", "--root", self.root, *options)

    def write(self, name: str, text: str = "", mode: int = 0o644) -> None:
        """Put a file there that is not ours."""
        path = self.layer / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        path.chmod(mode)

    def files(self) -> dict[str, str]:
        """Every file above the real host, with its text or where it points to; byte code without its bytes.

        A directory of the real host may show up too, once something in it was touched; those are left out. So are
        podman's own, which systemd-tmpfiles makes for it and which are not the installer's to take away.
        """
        found = {}
        for path in sorted(self.layer.rglob("*")):
            name = str(path.relative_to(self.layer))
            if path.is_symlink():
                found[name] = f"-> {path.readlink()}"
            elif path.is_dir():
                if not Path("/", name).is_dir() and not name.startswith("var/lib/containers"):
                    found[name] = "/"
            elif path.is_char_device():
                # How the layer says: deleted.
                pass
            else:
                found[name] = "" if name.endswith(".pyc") else path.read_text(encoding="utf-8")
        return found


@pytest.fixture
def bare(tmp_path: Path) -> Host:
    """The host as it is, or no test where no layer can be put above it."""
    if os.geteuid() != 0:
        pytest.skip("bundle/install was not run: it needs root")
    host = Host(tmp_path)
    for name in ("layer", "work", "root"):
        (tmp_path / name).mkdir()
    tried = host.run("true")
    if tried.returncode != 0:
        pytest.skip(f"bundle/install was not run: no overlay can be mounted here: {tried.stderr.strip()}")
    return host


@pytest.fixture
def host(bare: Host) -> Host:
    """A host that has all that the stack needs."""
    for name, text in HOST_FILES.items():
        bare.write(name, text, 0o755)
    return bare


@pytest.fixture
def older(tmp_path: Path) -> Iterator[Path]:
    """A bundle of an earlier version: it has a service and a script that the reference has not."""
    bundle = shutil.copytree(BUNDLE / "reference", tmp_path / "older")
    app = bundle / UNITS / "podman-aistack-app.service"
    old = app.read_text(encoding="utf-8").replace("libexec/podman-aistack-app", "libexec/podman-aistack-old")
    (bundle / UNITS / "podman-aistack-old.service").write_text(old, encoding="utf-8")
    libexec = bundle / "usr/lib/aistack/libexec"
    shutil.copytree(libexec / "podman-aistack-app", libexec / "podman-aistack-old")
    app.write_text(app.read_text(encoding="utf-8") + "# older\n", encoding="utf-8")
    yield bundle
    shutil.rmtree(bundle)


def test_a_host_that_lacks_things_is_told_all_of_them_at_once(bare: Host) -> None:
    before = bare.files()
    for name in ("systemctl", "podman"):
        bare.write(f"usr/local/bin/{name}", "#!/bin/sh\necho 'x 2 (2.1)'\n", 0o755)
    bare.write("usr/bin/python3", "#!/bin/sh\ncase $1 in --version) echo Python 3.13.5 ;; *) exit 1 ;; esac\n", 0o755)
    done = bare.install()
    assert done.returncode == 3
    for part in (
        "systemd 254 or newer is needed for RestartMode=direct; found: 2",
        "podman 5 or newer is needed; found: 2",
        "the Python module click is needed",
        "the Python module pydantic is needed",
        "the Python module rich is needed",
        "apt-get install systemd podman python3-click python3-pydantic python3-requests python3-rich",
    ):
        assert part in done.stderr
    assert not [name for name in bare.files() if name not in before and "aistack" in name]


@pytest.mark.parametrize(("version", "accepted"), [("3.10.12", False), ("3.9", False), ("3.11.0", True)])
def test_versions_are_compared_as_versions(host: Host, version: str, accepted: bool) -> None:  # noqa: FBT001
    host.write(
        "usr/bin/python3",
        f'#!/bin/bash\ncase $1 in --version) echo Python {version} ;; *) {EXEC_PYTHON} "$@" ;; esac\n',
        0o755,
    )
    done = host.install("--dry-run")
    assert (done.returncode == 0) == accepted, done.stderr
    assert ("/usr/bin/python3 3.11 or newer is needed" in done.stderr) != accepted


def test_what_is_installed_is_listed_enabled_and_taken_away_again(host: Host) -> None:
    before = host.files()
    done = host.install()
    assert done.returncode == 0, done.stderr
    installed = {name: text for name, text in host.files().items() if name not in before}
    for path in (BUNDLE / "reference").rglob("*"):
        name = str(path.relative_to(BUNDLE / "reference"))
        if path.is_file() and name != "SOURCES.sha256":
            assert installed[name] == path.read_text(encoding="utf-8"), name
    assert installed["usr/lib/aistack/aistack-hook"] == (ROOT / "python/aistack-hook").read_text(encoding="utf-8")
    modules = [name for name in installed if name.startswith("usr/lib/aistack/aistack/") and name.endswith(".py")]
    assert len(modules) == len([name for name in installed if name.endswith(".pyc")]) > 0
    assert "SOURCES.sha256" not in installed
    assert f"{UNITS}/multi-user.target.wants/aistack.target" in installed
    assert f"{UNITS}/aistack.target.wants/podman-aistack-app.service" in installed

    listed = set(installed["var/lib/aistack/installed-files"].splitlines())
    for name, text in installed.items():
        made_by_systemd = ".wants" in name or name.startswith("var/lib/aistack/")
        assert made_by_systemd or (f"/{name}/" if text == "/" else f"/{name}") in listed, name

    assert host.uninstall().returncode == 0
    assert host.files() == before


def test_the_installed_command_runs_and_the_hook_finds_its_package(host: Host) -> None:
    assert host.install().returncode == 0
    version = host.run("chroot", host.root, "/usr/bin/aistack", "--version")
    assert version.returncode == 0, version.stderr
    assert version.stdout.startswith("aistack")
    hook = host.run("chroot", host.root, "/usr/bin/python3", "-I", "-S", "/usr/lib/aistack/aistack-hook", "nonsense")
    assert hook.returncode == 2
    assert "Traceback" not in hook.stderr


def test_what_was_installed_can_be_compared_later(host: Host) -> None:
    assert host.install().returncode == 0
    path = "/usr/lib/aistack/SHA256SUMS"
    check = ("chroot", host.root, "sha256sum", "--check", "--strict", "--quiet", path)
    done = host.run(*check)
    assert (done.returncode, done.stdout) == (0, ""), done
    first, *lines = host.files()[path.removeprefix("/")].splitlines()
    assert first == f"# Installed by: {BUNDLE}/install {BUNDLE}/reference"
    named = {line.partition("  ")[2] for line in lines}
    listed = set(host.files()["var/lib/aistack/installed-files"].splitlines())
    assert named == {name for name in listed if not name.endswith(("/", ".pyc"))} - {path}
    host.write("etc/aistack/.env", "EDITED=yes\n")
    done = host.run(*check)
    assert done.returncode == 1
    assert "/etc/aistack/.env: FAILED" in done.stdout


def test_installing_again_changes_nothing(host: Host) -> None:
    assert host.install().returncode == 0
    before = host.files()
    assert host.install("--dry-run").stdout.startswith("would enable")
    assert host.install().returncode == 0
    assert host.files() == before


def test_installing_over_an_older_bundle_leaves_nothing_of_it(host: Host, older: Path) -> None:
    assert host.install().returncode == 0
    wanted = host.files()
    assert host.uninstall().returncode == 0
    assert host.install(bundle=older).returncode == 0
    assert f"{UNITS}/aistack.target.wants/podman-aistack-old.service" in host.files()
    planned = host.install("--dry-run")
    assert f"gone /{UNITS}/podman-aistack-old.service" in planned.stdout
    assert f"changed /{UNITS}/podman-aistack-app.service" in planned.stdout
    assert host.install().returncode == 0
    assert host.files() == wanted


def test_a_dry_run_changes_nothing(host: Host) -> None:
    before = host.files()
    done = host.install("--dry-run")
    assert done.returncode == 0, done.stderr
    assert "new /usr/bin/aistack" in done.stdout
    assert host.files() == before
    assert host.install().returncode == 0
    before = host.files()
    assert "would remove /usr/bin/aistack" in host.uninstall("--dry-run").stdout
    assert host.files() == before


def test_a_file_of_someone_else_is_not_replaced(host: Host) -> None:
    host.write("usr/bin/aistack", "#!/bin/sh\necho mine\n", 0o755)
    before = host.files()
    done = host.install()
    assert done.returncode == 2
    assert "/usr/bin/aistack is there already" in done.stderr
    assert host.files() == before


def test_data_and_secrets_stay_unless_they_are_purged(host: Host) -> None:
    before = host.files()
    kept = ("etc/aistack/secrets/postgres-password", "var/lib/aistack/releases.db", "var/lib/aistack/volumes/redis/x")
    assert host.install().returncode == 0
    for name in kept:
        host.write(name, "precious")
    done = host.uninstall()
    assert done.returncode == 0, done.stderr
    assert "its data stays in /var/lib/aistack" in done.stdout
    left = {name for name, text in host.files().items() if name not in before and text != "/"}
    assert left == set(kept)

    assert host.install().returncode == 0
    assert host.uninstall("--purge").returncode == 0
    assert host.files() == before


def test_an_install_that_was_cut_off_can_be_taken_back(host: Host) -> None:
    before = host.files()
    host.write(
        "usr/bin/python3",
        f'#!/bin/bash\ncase $* in *compileall*) kill -9 $PPID ;; *) {EXEC_PYTHON} "$@" ;; esac\n',
        0o755,
    )
    assert host.install().returncode != 0
    assert "usr/bin/aistack" in host.files()
    host.write("usr/bin/python3", HOST_FILES["usr/bin/python3"], 0o755)
    assert host.uninstall().returncode == 0
    assert host.files() == before


def test_uninstalling_nothing_says_so(host: Host) -> None:
    done = host.uninstall()
    assert done.returncode == 2
    assert "nothing is installed" in done.stderr


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--nonsense"], "usage: install"),
        (["--root"], "--root needs a directory"),
        (["--root", "/does-not-exist"], "is no root file system"),
        (["/etc"], "is no rendered stack"),
        (["--start", "--root", "ROOT"], "no running systemd"),
    ],
)
def test_wrong_usage_is_explained(host: Host, options: list[str], says: str) -> None:
    done = host.run(BUNDLE / "install", *(str(host.root) if option == "ROOT" else option for option in options))
    assert done.returncode == 2
    assert says in done.stderr
