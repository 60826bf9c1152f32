"""Which folders and files may be worked on: those below the workspace root, and nothing that a link leads to."""

from __future__ import annotations

from typing import TYPE_CHECKING

from aistack.services.common import ServiceError

if TYPE_CHECKING:
    from pathlib import Path

DEFAULT = "default"


def outside(what: str) -> ServiceError:
    """Return the refusal of a path."""
    return ServiceError(
        403,
        what,
        kind="outside-workspace",
        title="The path leads out of where work is allowed",
        next_step="name a folder below the workspace root, and files within it",
    )


def workspace(root: Path, name: str | None) -> Path:
    """Return a workspace's folder, without links in it.

    Raises:
        ServiceError: 403 if it is not below the root, 404 if there is none.
    """
    root = root.resolve()
    if name is None:
        (root / DEFAULT).mkdir(exist_ok=True)
    try:
        found = (root / (name or DEFAULT)).resolve()
        is_folder = found.is_dir()
    except (OSError, RuntimeError):
        # Too long a name, or links in a circle.
        is_folder = False
        found = root / DEFAULT
    if found == root or not found.is_relative_to(root):
        raise outside("the workspace is not below the workspace root")
    if any(part.casefold() == ".git" for part in found.relative_to(root).parts):
        raise outside("the workspace is within git's own files")
    if not is_folder:
        raise ServiceError(404, "there is no such workspace", kind="no-workspace", next_step="make its folder first")
    repository = found / ".git"
    if repository.is_symlink() or (repository.exists() and not repository.is_dir()):
        raise outside("the repository of the workspace is not within it")
    return found


def files(folder: Path, names: list[str]) -> list[str]:
    """Return files relative to the workspace.

    Raises:
        ServiceError: 403 if one is not in it, or is one of git's own.
    """
    found = []
    for name in names:
        try:
            path = (folder / name).resolve()
        except (OSError, RuntimeError):
            raise outside("a file's path cannot be followed") from None
        # What is still a link leads in a circle.
        if path == folder or path.is_symlink() or not path.is_relative_to(folder):
            raise outside("a file is not within the workspace")
        relative = path.relative_to(folder)
        if any(part.casefold() == ".git" for part in relative.parts):
            raise outside("a file is one of git's own")
        found.append(str(relative))
    return found
