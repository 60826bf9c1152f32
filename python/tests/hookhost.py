"""A host for the hooks' tests: `fakehost` with a podman that has images, and a name server that knows containers.

podman, systemctl and journalctl stay stand-ins here: the real ones run in the scenario tests. Processes, signals,
sockets, files, modes and owners are real.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fakehost
import pytest
import scripted

from aistack.hooks.manifest import Manifest, load
from aistack.hooks.releases import Release, Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HOOK = Path(__file__).parents[1] / "aistack-hook"

# Images are lines of $FAKE_HOST/images: NAME<tab>ID. An archive is such lines; so is the registry.
_PODMAN = r"""#!/bin/sh
printf 'podman %s\n' "$*" >> "$FAKE_HOST/calls"
images="$FAKE_HOST/images"
for last in "$@"; do :; done
if [ -f "$FAKE_HOST/podman-fails" ]; then cat "$FAKE_HOST/podman-fails" >&2; exit 125; fi
case "$1 $2" in
"image list") cat "$images" ;;
"image inspect")
  awk -F '\t' -v n="$last" '$1 == n || $2 == n {print $2; found = 1; exit} END {exit !found}' "$images" ;;
"network exists") [ ! -f "$FAKE_HOST/no-network" ] ;;
tag*)
  id=$2; shift 2
  for tag in "$@"; do
    awk -F '\t' -v n="$tag" '$1 != n' "$images" > "$images.new"; printf '%s\t%s\n' "$tag" "$id" >> "$images.new"
    mv "$images.new" "$images"
  done ;;
untag*) awk -F '\t' -v n="$last" '$1 != n' "$images" > "$images.new"; mv "$images.new" "$images" ;;
pull*)
  grep -F "$last	" "$FAKE_HOST/registry" >> "$images" ||
    { printf 'Trying to pull...\nError: cannot reach the registry\n' >&2; exit 125; } ;;
"load --quiet") if [ "$3" = --input ]; then cat "$4"; else cat; fi >> "$images" ;;
exec*) if [ -f "$FAKE_HOST/not-ready" ]; then echo 'not yet'; exit 1; fi ;;
rm*)
  if [ -f "$FAKE_HOST/rm-slow" ]; then touch "$FAKE_HOST/removing"; sleep 0.4; fi
  if [ -f "$FAKE_HOST/rm-fails" ]; then echo 'Error: storage is locked' >&2; exit 125; fi ;;
esac
"""


class Host:
    """The host, with shorthands for what hooks leave behind."""

    def __init__(self, fake: fakehost.FakeHost, name_server: str) -> None:
        """Put the richer podman in the place of the plain one."""
        self.fake = fake
        self.root = fake.root
        self.name_server = name_server
        self.root.joinpath("fake-programs", "podman").write_text(_PODMAN)
        self.root.joinpath("registry").touch()

    def declare(self, app: fakehost.Document, **others: Any) -> Manifest:  # noqa: ANN401  (any JSON value)
        """Install a manifest with `app` and others; what is no entry of a service is a key of the manifest itself."""
        services = {name: entry for name, entry in others.items() if isinstance(entry, dict) and "unit" in entry}
        changes = {name: value for name, value in others.items() if name not in services}
        # A network that this machine does not have, not even where the stack is installed on it.
        network = {**fakehost.manifest(self.root, {})["network"], "name": "test-net", "gateway": self.name_server}
        self.fake.declare({"app": app, **services}, **{"network": network, **changes})
        return load()

    def secret(self, key: str, value: str, *, delivered: str = "env") -> dict[str, dict[str, str]]:
        """Write a secret; return its declaration."""
        path = self.root / f"secret-{key}"
        path.write_text(value)
        return {key: {"file": str(path), "as": delivered}}

    def have(self, **images: int) -> None:
        """Let podman have exactly the image NAME=NUMBER of these services, under the name that is declared."""
        lines = [f"registry.example/{name}:1\t{fakehost.image(number)}\n" for name, number in images.items()]
        self.root.joinpath("images").write_text("".join(lines))

    def images(self) -> dict[str, str]:
        """What podman has, by name."""
        lines = self.root.joinpath("images").read_text().splitlines()
        return {name: identifier for name, _, identifier in (line.partition("\t") for line in lines)}

    def calls(self, program: str = "") -> list[str]:
        """How the programs were called, or one of them."""
        return [call for call in self.fake.calls() if call.startswith(program)]

    def said(self) -> str:
        """What hooks of this process said since the last time."""
        return self.fake.capsys.readouterr().err

    def verdict(self, name: str = "app") -> dict[str, Any]:
        """The last verdict on a service."""
        from aistack.hooks.runtime import read_verdict

        return read_verdict(load(), name)

    def history(self, name: str = "app") -> dict[int, str]:
        """The state of each release of a service."""
        with self.store() as store:
            return {release.id: release.state for release in store.history(name)}

    def current(self, name: str = "app") -> Release:
        """The release that the next start of a service runs."""
        with self.store() as store:
            found = store.current(name)
        assert found is not None
        return found

    @contextlib.contextmanager
    def store(self) -> Iterator[Store]:
        """The journal."""
        store = Store.open(str(self.fake.journal_path))
        try:
            yield store
        finally:
            store.close()

    def start(self, *arguments: str, **environment: str) -> subprocess.Popen[str]:
        """Start the launcher in a process of its own, as a unit does."""
        return subprocess.Popen(
            [sys.executable, "-I", "-S", HOOK, *arguments],
            env={
                "PATH": os.environ["PATH"],
                "AISTACK_MANIFEST": str(self.fake.manifest_path),
                "FAKE_HOST": str(self.root),
                **environment,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


def name_server(address: str, answer: Callable[[bytes], list[bytes]]) -> scripted.Dns:
    """Return a name server on the very port 53, where that can be had."""
    try:
        return scripted.Dns(answer, address, 53)
    except OSError as error:
        pytest.skip(f"no name server can be started at {address}:53 (it needs root): {error.strerror}")


def containers(address: str) -> Iterator[Callable[..., scripted.Dns]]:
    """Return a fixture's body that starts the network's name server, knowing these containers."""
    running: list[scripted.Dns] = []

    def start(**names: str | list[str]) -> scripted.Dns:
        running.append(name_server(address, scripted.zone(**names)))
        return running[-1]

    yield start
    for server in running:
        server.__exit__()


def small_disk() -> Iterator[Callable[[str], Path]]:
    """Return a fixture's body that mounts a file system of 256 KiB in memory, with these options."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system needs root")
    # Not below pytest's own directory, which it could not clean up after a run that was killed.
    place = Path(tempfile.mkdtemp(prefix="aistack-small-disk-"))
    mounted = False

    def mount(options: str) -> Path:
        nonlocal mounted
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", f"size=256k,{options}", "tmpfs", place],  # noqa: S607
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode != 0:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
        mounted = True
        return place

    yield mount
    if mounted:
        subprocess.run(["umount", place], check=True)  # noqa: S607
    place.rmdir()


def fill(disk: Path) -> Path:
    """Leave no space on a disk; return the file that takes it."""
    filler = disk / "filler"
    with contextlib.suppress(OSError), filler.open("wb", buffering=0) as file:
        while True:
            file.write(bytes(1024))
    return filler
