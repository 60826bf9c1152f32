"""A guest's files, and its life: made, started, stopped, removed."""

from __future__ import annotations

import json
import subprocess
import uuid
from dataclasses import dataclass, field
from pathlib import Path

from guest import cache, nspawn, paths, storage
from guest.cache import key_of
from guest.errors import GuestError
from guest.nspawn import Leader, Mounts

ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "USER": "root",
    "LOGNAME": "root",
    "SHELL": "/bin/bash",
    "LANG": "C.UTF-8",
    "SYSTEMD_PAGER": "",
}
"""What a command in a guest finds in its environment: nothing of the host's."""


@dataclass
class Guest:
    """One guest by name. Its files are in one folder, so another process can find and end it."""

    name: str
    _process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    @property
    def folder(self) -> Path:
        """The folder that holds all of this guest's files."""
        return paths.guests() / self.name

    @property
    def scope(self) -> str:
        """The guest's name among all guests of this host, those of other caches included."""
        return f"{self.name}-{key_of([str(self.folder)])[:8]}"

    @property
    def console(self) -> Path:
        """What the guest's manager and systemd-nspawn print."""
        return self.folder / "console.log"

    @property
    def upper(self) -> Path:
        """The part of the guest's file system that it changed."""
        return self.folder / "upper"

    @property
    def storage(self) -> Path:
        """The guest's /var/lib/containers: a plain folder, because podman mounts overlays on it."""
        return self.folder / "containers"

    @property
    def leader(self) -> Leader | None:
        """The guest's first process; None when it is off."""
        try:
            saved = json.loads((self.folder / "leader.json").read_text())
        except FileNotFoundError:
            return None
        if saved.get("boot", _boot_id()) != _boot_id():
            return None
        leader = Leader(saved["pid"], saved["started"])
        return leader if leader.alive else None

    @property
    def running(self) -> bool:
        """Whether the guest is on."""
        return self.leader is not None

    def create(self, root: Path, images: Path | None) -> None:
        """Make the guest's files afresh: an empty layer over `root`, a copy of the image storage."""
        self.destroy()
        for folder in (self.upper, self.folder / "work", self.folder / "root"):
            folder.mkdir(parents=True)
        self.upper.chmod(0o755)
        if images is None:
            self.storage.mkdir()
        else:
            storage.copy(images, self.storage)
        etc = self.upper / "etc"
        etc.mkdir()
        (etc / "hostname").write_text(f"{self.name}\n")
        # One identity for all of the guest's boots: the journal is filed under it.
        (etc / "machine-id").write_text(f"{uuid.uuid4().hex}\n")
        made_from = {"root": str(root), "images": str(images or "")}
        # Whole or not there: whoever prunes the cache reads every guest's.
        (self.folder / "made-from.part").write_text(json.dumps(made_from))
        (self.folder / "made-from.part").rename(self.folder / "made-from.json")

    def _made_from(self, what: str) -> Path:
        return Path(json.loads((self.folder / "made-from.json").read_text())[what])

    @property
    def root(self) -> Path:
        """The cached root that the guest was made over."""
        return self._made_from("root")

    @property
    def images(self) -> Path:
        """The cached podman storage that the guest's own was copied from."""
        return self._made_from("images")

    @property
    def usable(self) -> bool:
        """Whether the guest was made and the root below it is still there."""
        return (self.folder / "made-from.json").is_file() and self.root.is_dir()

    def start(self) -> None:
        """Boot; return when the guest's manager takes commands."""
        if self.running:
            return
        if not self.usable:
            raise GuestError(f"guest {self.name} cannot be started", why="its files are not complete")
        mounts = Mounts(
            lower=self.root,
            upper=self.upper,
            work=self.folder / "work",
            root=self.folder / "root",
            binds=((self.storage, "/var/lib/containers"),),
        )
        leader, self._process = nspawn.boot(mounts, self.name, self.scope, self.console)
        saved = json.dumps({"boot": _boot_id(), "pid": leader.pid, "started": leader.started})
        (self.folder / "leader.json").write_text(saved)

    def enter(self, command: list[str], *, environment: dict[str, str] | None = None) -> list[str]:
        """Return the host command that runs `command` in the guest."""
        leader = self.leader
        if leader is None:
            raise GuestError(f"guest {self.name} is not running", why=nspawn.tail(self.console))
        return nspawn.enter(leader, command, environment={**ENVIRONMENT, **(environment or {})})

    def wait_off(self, timeout: float) -> None:
        """Wait until the guest has powered itself off."""
        leader = self.leader
        if leader is not None:
            nspawn.wait_gone(leader, nspawn.mounted_cgroup(self.scope), timeout)
        self._forget()

    def kill(self) -> None:
        """Pull the plug. A guest that is off stays so."""
        leader = self.leader
        if leader is not None:
            nspawn.kill(leader, self.scope)
        self._forget()

    def _forget(self) -> None:
        if self._process is not None:
            self._process.wait(nspawn.KILL_TIMEOUT)
            self._process = None
        (self.folder / "leader.json").unlink(missing_ok=True)

    def destroy(self) -> None:
        """End the guest and remove its files."""
        if self.folder.is_dir():
            self.kill()
            cache.remove(self.folder)


def _boot_id() -> str:
    """What a process id is only good for: this boot of the host."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def known() -> list[Guest]:
    """Return every guest whose files are there."""
    folder = paths.guests()
    found = sorted(folder.iterdir()) if folder.is_dir() else []
    return [Guest(path.name) for path in found if path.is_dir()]
