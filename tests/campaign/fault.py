"""The table of faults: one small file each in `faults/`, and what it becomes on a disk."""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from guest.errors import GuestError

HERE = Path(__file__).parent
FOLDER = HERE / "faults"
IMAGES = "localhost/aistack-images"
SHEBANG = "#!/usr/bin/env python3\n"
GOOD = "from server import serve\n\nif __name__ == '__main__':\n    serve()\n"
CONTAINERFILE = f"FROM {IMAGES}/app:1\nCOPY --chmod=755 app.py server.py /app/\n"


@dataclass(frozen=True, kw_only=True)
class Fault:
    """A release that is broken; exactly one of `program`, `containerfile` and `image` makes it, or the first two.

    `program` is its app.py, which may import server.py; `containerfile` is for another image than the app's usual;
    `image` is a reference, which `prepare` (bash, in the guest) made, or did not make.
    """

    name: str
    what: str
    """The fault, in a few words."""
    sees: str
    """What a user sees if it goes live."""
    exit_code: int
    """aistack's."""
    says: str
    """Has to be in what aistack prints."""
    service: str = "app"
    program: str = ""
    containerfile: str = ""
    image: str = ""
    prepare: str = ""
    watch: float = 1.0
    """Seconds to go on watching after the command."""

    def files(self) -> dict[str, str]:
        """Return the directory to build, by file name; empty if there is an image."""
        if self.image:
            return {}
        made = self.containerfile or CONTAINERFILE
        files = {"Containerfile": f"{made.rstrip()}\nENV RELEASE={self.name}\n"}
        if self.service == "app":
            files["app.py"] = SHEBANG + (self.program or GOOD)
            files["server.py"] = (HERE / "server.py").read_text(encoding="utf-8")
        return files


def read(path: Path) -> Fault:
    """Read one file; raises GuestError if it is not as it has to be."""
    try:
        return Fault(name=path.stem, **tomllib.loads(path.read_text(encoding="utf-8")))
    except (TypeError, tomllib.TOMLDecodeError) as error:
        raise GuestError(f"{path} is no fault", why=str(error)) from None


def table(names: Sequence[str] = ()) -> list[Fault]:
    """Return all faults, or those of these names, in the order of their exit codes and names."""
    found = {path.stem: read(path) for path in FOLDER.glob("*.toml")}
    unknown = sorted(set(names) - set(found))
    if unknown:
        raise GuestError(f"no such fault: {', '.join(unknown)}", next_step=f"ls {FOLDER}")
    wanted = [found[name] for name in names or found]
    return sorted(wanted, key=lambda fault: (fault.exit_code, fault.name))


def good(name: str) -> Fault:
    """Return a release without a fault: what is there before, and the control."""
    return Fault(name=name, what="none: a good release", sees="nothing", exit_code=0, says=" serves (good)")
