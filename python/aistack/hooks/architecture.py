"""Whether this machine can run an image at all: for which processors it says that it was built.

Names are those of the OCI image specification (GOARCH). What the image does not say, or this module does not know, is
not judged: the start will show.
"""

from __future__ import annotations

import os

from aistack.hooks import runtime
from aistack.hooks.errors import HookError, printable

# uname(2)'s machine -> the name in an image, and what such a machine runs besides.
_NAMES = {
    "x86_64": ("amd64", {"386"}),
    "i686": ("386", set[str]()),
    "aarch64": ("arm64", {"arm"}),
    "armv7l": ("arm", set[str]()),
    "riscv64": ("riscv64", set[str]()),
    "ppc64le": ("ppc64le", set[str]()),
    "s390x": ("s390x", set[str]()),
}
_HANDLERS = "/proc/sys/fs/binfmt_misc"  # an emulator registered there runs what the processor cannot


class WrongMachine(HookError):
    """The image is for another kind of machine than this one."""


def check(identifier: str) -> None:
    """Raise WrongMachine for an image that says it is for another system or architecture, which nothing emulates."""
    code, out, _ = runtime.run(
        ["podman", "image", "inspect", "--format", "{{.Os}} {{.Architecture}}", identifier], runtime.PODMAN_TIMEOUT
    )
    system, _, wanted = out.strip().partition(" ")
    machine = os.uname().machine
    own, besides = _NAMES.get(machine, ("", set[str]()))
    if code != 0 or not wanted or not own:
        return
    if system == "linux" and (wanted == own or wanted in besides or _emulated(wanted)):
        return
    words = printable(f"{system}/{wanted}", 60)
    raise WrongMachine(f"it is for {words}, and this machine is linux/{own}")


def _emulated(wanted: str) -> bool:
    machine = next((name for name, (known, _) in _NAMES.items() if known == wanted), None)
    try:
        handlers = os.listdir(_HANDLERS)
    except OSError:
        return False
    # Debian's qemu-aarch64, NixOS' aarch64-linux.
    return machine is not None and any(machine in handler for handler in handlers)
