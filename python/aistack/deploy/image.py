"""The image that is to be deployed: found, pulled or built, and what podman knows of it."""

from __future__ import annotations

import dataclasses
import json
import platform
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from aistack.deploy.failure import Refused
from aistack.errors import printable
from aistack.hooks import runtime
from aistack.hooks.errors import HookError

BUILD_TIMEOUT = 3600.0  # seconds
PULL_TIMEOUT = 1800.0  # seconds
_SHOWN_LINES = 15  # of what a failed build said

# What podman calls an architecture, by what the kernel calls it (uname(2), GOARCH).
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "ppc64le": "ppc64le", "riscv64": "riscv64"}
_TRANSPORT = re.compile(r"(docker-archive|oci-archive|oci|dir|docker-daemon):")
_MOVING = re.compile(r"(^|/)[^/:@]+(:latest)?$")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Image:
    """An image in podman's storage; `id` without `sha256:` in front, `environment` its own."""

    id: str
    reference: str
    architecture: str
    entrypoint: tuple[str, ...]
    command: tuple[str, ...]
    environment: dict[str, str]
    user: str
    working_directory: str
    ports: tuple[int, ...]


def pull(reference: str) -> Image:
    """Return the image of this name; pulled if it is not here, or if its tag is one that moves.

    Raises:
        Refused: there is no such image, the archive is corrupt, or the registry cannot be reached.
    """
    here = None if _TRANSPORT.match(reference) else runtime.image_id(reference)
    if here is not None and (reference.startswith("localhost/") or not _MOVING.search(reference)):
        return inspect(here, reference)
    if reference.startswith("localhost/"):
        raise Refused(
            f"image {reference} is not in podman's storage, and no registry has a name under localhost/",
            hint="podman images; or build it: aistack deploy SVC --build DIR",
        )
    try:
        out = runtime.podman("pull", "--quiet", reference, timeout=PULL_TIMEOUT)
    except HookError as error:
        if here is not None:
            return inspect(here, reference)
        raise Refused(f"image {reference} cannot be had: {error}", hint=f"podman pull {reference}") from None
    return inspect(out.strip().rpartition("\n")[2], reference)


def build(directory: Path, tag: str) -> Image:
    """Build the image of a directory with a Containerfile or Dockerfile, and give it the tag.

    Raises:
        Refused: the build failed; has the last lines it said.
    """
    with tempfile.TemporaryDirectory(prefix="aistack-build-") as folder:
        file = Path(folder) / "id"
        command = ["podman", "build", "--tag", tag, "--iidfile", str(file), str(directory)]
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=BUILD_TIMEOUT,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise Refused(f"building {directory} took more than {BUILD_TIMEOUT:.0f} s") from None
        said = done.stdout.decode(errors="replace").strip().splitlines()
        if done.returncode != 0:
            reason = next((line for line in reversed(said) if "rror" in line), said[-1] if said else "it said nothing")
            raise Refused(
                f"building {directory} failed: {printable(reason, 300)}",
                hint=f"podman build {directory}",
                detail=said[-_SHOWN_LINES:],
            )
        return inspect(file.read_text(encoding="ascii").strip(), tag)


def inspect(identifier: str, reference: str) -> Image:
    """Return what podman knows of an image.

    Raises:
        Refused: it is for another kind of machine, or podman does not know it.
    """
    try:
        (found,) = json.loads(runtime.podman("image", "inspect", identifier))
    except (HookError, ValueError) as error:
        raise Refused(f"podman cannot inspect image {reference}: {error}") from None
    config: dict[str, Any] = found.get("Config") or {}
    image = Image(
        id=str(found["Id"]).removeprefix("sha256:"),
        reference=reference,
        architecture=str(found.get("Architecture") or ""),
        entrypoint=tuple(config.get("Entrypoint") or ()),
        command=tuple(config.get("Cmd") or ()),
        environment=dict(line.partition("=")[::2] for line in config.get("Env") or ()),
        user=str(config.get("User") or ""),
        working_directory=str(config.get("WorkingDir") or "/"),
        ports=tuple(int(port.partition("/")[0]) for port in config.get("ExposedPorts") or {} if port[0].isdigit()),
    )
    own = _ARCHITECTURES.get(platform.machine())
    if own is not None and image.architecture and image.architecture != own:
        raise Refused(
            f"image {reference} is for {image.architecture}, this machine is {own}",
            hint=f"podman build --platform linux/{own}, or another tag",
        )
    return image
