"""Put the stack into a guest: the rendered bundle, the Python package, the secret and the model."""

from __future__ import annotations

import secrets
import tempfile
from pathlib import Path

from guest import paths
from guest.cache import Entry, key_of
from guest.errors import GuestError
from guest.machine import Machine
from guest.process import check

SOURCES = "/usr/src/aistack"
"""Where a guest keeps what it was installed from."""

PASSWORD_FILE = "/etc/aistack/secrets/postgres-password"
MODEL = "/var/lib/aistack/models/tiny.gguf"
TARGET = "aistack.target"


def model() -> Path:
    """Return the tiny model, written if need be; its bytes depend on its script alone."""
    script = paths.IMAGES / "llama-cpp/tiny_model.py"

    def build(folder: Path) -> None:
        check(["python3", "-I", script, folder / "tiny.gguf"])

    return Entry("model", key_of([script])).ensure(build) / "tiny.gguf"


def install(machine: Machine, bundle: Path | None = None, *, keep_secret: bool = False) -> None:
    """Install the checked-in reference bundle, or another rendered one, and start nothing.

    With `keep_secret` a password that the guest has already stays: its database knows it.
    """
    if not (paths.CHECKOUT / "bundle/install").is_file():
        raise GuestError("this checkout has no bundle/install")
    with machine.nested("installing the stack"):
        for name in ("bundle", "python"):
            machine.copy_from_host(str(paths.CHECKOUT / name), f"{SOURCES}/{name}")
        rendered = f"{SOURCES}/bundle/reference"
        if bundle is not None:
            rendered = f"{SOURCES}/rendered"
            machine.copy_from_host(str(bundle), rendered)
        machine.copy_from_host(str(model()), MODEL)
        if not keep_secret or machine.execute(f"test -s {PASSWORD_FILE}")[0] != 0:
            give_secret(machine, PASSWORD_FILE)
        machine.succeed(f"{SOURCES}/bundle/install {rendered} >&2")


def give_secret(machine: Machine, path: str) -> None:
    """Write a new random secret to a file of the guest that only root may read."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "secret"
        file.touch(mode=0o400)
        file.chmod(0o600)
        file.write_text(f"{secrets.token_urlsafe(24)}\n")
        file.chmod(0o400)
        machine.succeed(f"install -d -m 0700 {Path(path).parent}")
        machine.copy_from_host(str(file), path)
