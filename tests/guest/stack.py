"""Put the stack into a guest: the rendered bundle, the Python package, the secret and the model."""

from __future__ import annotations

import json
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

MODEL = "/var/lib/aistack/models/tiny.gguf"
TARGET = "aistack.target"


def model() -> Path:
    """Return the tiny model, written if need be; its bytes depend on its script alone."""
    script = paths.IMAGES / "llama-cpp/tiny_model.py"

    def build(folder: Path) -> None:
        check(["python3", "-I", script, folder / "tiny.gguf"])

    return Entry("model", key_of([script])).ensure(build) / "tiny.gguf"


def rendered(name: str) -> Path:
    """Return the checked-in bundle of a stack."""
    return paths.CHECKOUT / "bundle" / name


def install(machine: Machine, bundle: Path, *, keep_secrets: bool = False) -> None:
    """Install a rendered bundle with new secrets, and start nothing.

    With `keep_secrets` those that the guest has already stay: its database knows one of them.
    """
    if not (paths.CHECKOUT / "bundle/install").is_file():
        raise GuestError("this checkout has no bundle/install")
    with machine.nested("installing the stack"):
        for name in ("bundle", "python"):
            machine.copy_from_host(str(paths.CHECKOUT / name), f"{SOURCES}/{name}")
        source = f"{SOURCES}/bundle/{bundle.name}"
        if bundle.parent != paths.CHECKOUT / "bundle":
            source = f"{SOURCES}/rendered"
            machine.copy_from_host(str(bundle), source)
        machine.copy_from_host(str(model()), MODEL)
        manifest = json.loads((bundle / "etc/aistack/stack.json").read_text())
        for secret in manifest["secrets"].values():
            if not keep_secrets or machine.execute(f"test -s {secret['file']}")[0] != 0:
                give_secret(machine, secret["file"])
        machine.succeed(f"{SOURCES}/bundle/install {source} >&2")


def give_secret(machine: Machine, path: str) -> None:
    """Write a new random secret to a file of the guest that only root may read."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "secret"
        write_secret(file)
        machine.succeed(f"install -d -m 0700 {Path(path).parent}")
        machine.copy_from_host(str(file), path)


def write_secret(file: Path) -> None:
    """Write a new random secret to a new file that only its owner may read."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    file.touch(mode=0o600)
    file.write_text(f"{secrets.token_urlsafe(24)}\n")
    file.chmod(0o400)
