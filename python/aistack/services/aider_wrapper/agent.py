"""The real aider, for one message, in a child of the fork server.

It is used as a library (aider's scripting interface), so that no configuration of a workspace, no `.env` and no
command in a prompt (`/run`, `!`) can make it do anything but edit. Three things of its own are replaced: files are only
read and written within the workspace; the model's errors end the run with their kind instead of being tried again for a
minute; and commits take their subject from the prompt instead of asking the model once more.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import litellm
from aider import models
from aider.coders import Coder
from aider.io import InputOutput
from aider.repo import GitRepo
from aider.repomap import RepoMap

from aistack.services.aider_wrapper import order as orders
from aistack.services.aider_wrapper.order import Order
from aistack.services.aider_wrapper.wire import CONNECT_SECONDS, Wire

if TYPE_CHECKING:
    import os
    from collections.abc import Iterator

    from aistack.services.aider_wrapper.report import Report

TOO_LONG = "the model's answer, or what it was asked, is longer than the model can take"


class Stopped(BaseException):
    """The run cannot go on. Not an Exception: aider catches those, and tries again."""

    def __init__(self, kind: str, error: str) -> None:
        super().__init__(error)
        self.kind = kind
        self.error = error


class OutsideWorkspace(ValueError):
    """A path leads out of the workspace, or into git's own files. aider tells the model of a ValueError."""


def within(root: Path, path: str | os.PathLike[str]) -> Path:
    """Return where a path really leads.

    Raises:
        OutsideWorkspace: that is not below `root`, or it is one of git's own files.
    """
    found = (root / path).resolve()
    if not found.is_relative_to(root):
        raise OutsideWorkspace(f"{path} leads out of the workspace: only files within it may be edited")
    if any(part.casefold() == ".git" for part in found.relative_to(root).parts):
        raise OutsideWorkspace(f"{path} is one of git's own files: those may not be edited")
    return found


class BoundedIO(InputOutput):  # type: ignore[misc]  # aider has no types
    """Reads and writes within the workspace alone; answers every question with yes, and opens nothing."""

    def __init__(self, root: Path) -> None:
        super().__init__(pretty=False, yes=True, fancy_input=False)
        self.workspace = root

    def read_text(self, filename: str, silent: bool = False) -> str | None:  # noqa: FBT001, FBT002 (aider's own)
        """Read a file, unless it is not within the workspace: then there is none."""
        try:
            within(self.workspace, filename)
        except OutsideWorkspace as error:
            self.tool_error(str(error))
            return None
        text: str | None = super().read_text(filename, silent)
        return text

    def write_text(self, filename: str, content: str, *arguments: Any, **options: Any) -> None:  # noqa: ANN401
        """Write a file within the workspace. Raises Stopped where the disk does not let it."""
        within(self.workspace, filename)
        try:
            super().write_text(filename, content, *arguments, **options)
        except OSError as error:
            raise Stopped("infrastructure", f"a file could not be written: {error.strerror}") from error

    def offer_url(self, *_: object, **__: object) -> bool:
        """Open no browser."""
        return False


class Repository(GitRepo):  # type: ignore[misc]  # aider has no types
    """Commits under a subject that is known, without asking the model for one."""

    subject = ""

    def commit(
        self,
        fnames: list[str] | None = None,
        context: str | None = None,
        message: str | None = None,
        aider_edits: bool = False,  # noqa: FBT001, FBT002 (aider's own)
        coder: Any = None,  # noqa: ANN401
    ) -> Any:  # noqa: ANN401
        """Commit the files."""
        subject = self.subject if aider_edits else "Changes that were there before"
        return super().commit(fnames, context, message or subject, aider_edits, coder)


class Events:
    """What aider says of itself to its analytics: kept, and sent nowhere."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def event(self, name: str, **_: object) -> None:
        """Remember it."""
        self.names.append(name)


class Answer:
    """The model's answer while it arrives, as aider reads it: chunks, and `usage` once they have all come."""

    def __init__(self, chunks: Any, wire: Wire, report: Report) -> None:  # noqa: ANN401 (litellm's own)
        self._chunks = chunks
        self._wire = wire
        self._report = report
        self.usage: Any = None

    def __iter__(self) -> Iterator[Any]:
        """Yield the chunks.

        Raises:
            Stopped: the endpoint failed, or broke off.
        """
        try:
            for chunk in self._chunks:
                self.usage = getattr(chunk, "usage", None) or self.usage
                yield chunk
        except Exception as error:
            raise stopped(error, self._wire) from error
        if not self._wire.finished:
            raise Stopped(*self._wire.blame())
        self._report.write(orders.ANSWERED, tokens=self._wire.tokens)


def stopped(error: Exception, wire: Wire) -> Stopped:
    """Return how an error with the model's endpoint ends the run."""
    if isinstance(error, litellm.ContentPolicyViolationError):
        return Stopped("policy", "the model's endpoint refuses this for its content")
    if isinstance(error, litellm.ContextWindowExceededError):
        return Stopped("agent", TOO_LONG)
    return Stopped(*wire.blame())


def watch(model: models.Model, report: Report) -> None:
    """Have the model's requests reported, and its errors end the run."""
    send = model.send_completion
    wire = Wire(report)
    # What litellm takes for every request, instead of making one.
    litellm.client_session = httpx.Client(transport=wire)

    def watched(messages: Any, functions: Any, stream: Any, temperature: Any = None) -> Any:  # noqa: ANN401
        try:
            key, chunks = send(messages, functions, stream, temperature)
        except Exception as error:
            raise stopped(error, wire) from error
        return key, Answer(chunks, wire, report)

    model.send_completion = watched


def make_model(order: Order) -> models.Model:
    """Return the model behind the endpoint."""
    models.request_timeout = httpx.Timeout(order.silence_seconds, connect=CONNECT_SECONDS)
    # What is known of a model it looks up on the network, unless something is there already.
    models.model_info_manager.content = {"": {}}
    name = f"openai/{order.model}"
    model = models.Model(name, weak_model=name, editor_model=False)
    model.extra_params = {
        **(model.extra_params or {}),
        "api_base": order.api_base,
        "api_key": "none",
        "max_retries": 0,
        "stream_options": {"include_usage": True},
    }
    return model


def warm_up(api_base: str, report: Report) -> None:
    """Ask an endpoint once, so that all is imported and built that the first request needs."""
    order = Order(
        root="/",
        prompt="",
        subject="",
        mode="ask",
        api_base=api_base,
        model="warm",
        silence_seconds=CONNECT_SECONDS,
        map_tokens=0,
    )
    model = make_model(order)
    watch(model, report)
    model.token_count("warm")
    _, chunks = model.send_completion([{"role": "user", "content": "warm"}], None, True, None)  # noqa: FBT003 (aider's own)
    list(chunks)


def run(order: Order, report: Report) -> int:
    """Work on one message; return the exit code, which is 0 if aider came to its end with an answer it could use."""
    try:
        _work(order, report)
    except Stopped as end:
        report.write(orders.ENDED, kind=end.kind, error=end.error)
        return 1
    report.write(orders.ENDED, kind=None, error=None)
    return 0


def _work(order: Order, report: Report) -> None:
    root = Path(order.root)
    io = BoundedIO(root)
    model = make_model(order)
    watch(model, report)
    repository = Repository(io, [], order.root, git_commit_verify=False)
    repository.subject = order.subject
    # Beside git's own files: no file of aider's appears in the workspace.
    RepoMap.TAGS_CACHE_DIR = str(root / ".git" / "aider-tags")
    events = Events()
    coder = Coder.create(
        main_model=model,
        edit_format="ask" if order.mode == "ask" else order.edit_format,
        io=io,
        repo=repository,
        fnames=[str(within(root, file)) for file in order.files],
        map_tokens=order.map_tokens,
        auto_lint=False,
        suggest_shell_commands=False,
        detect_urls=False,
        analytics=events,
    )
    allowed = coder.allowed_to_edit

    def allowed_within(path: str) -> bool | None:
        within(root, path)
        permitted: bool | None = allowed(path)
        return permitted

    coder.allowed_to_edit = allowed_within
    coder.show_announcements()
    coder.check_for_file_mentions(order.prompt)
    coder.run_one(order.prompt, preproc=False)
    _judge(coder, events)


def _judge(coder: Any, events: Events) -> None:  # noqa: ANN401 (aider has no types)
    """Raise Stopped if aider came to its end without an answer that it could use."""
    if "message_send_exception" in events.names:
        raise Stopped("agent", "aider failed while it read the model's answer")
    if coder.num_exhausted_context_windows:
        raise Stopped("agent", TOO_LONG)
    if coder.reflected_message:
        raise Stopped("agent", f"none of {coder.num_reflections + 1} answers of the model could be used")
    if not coder.partial_response_content.strip():
        raise Stopped("agent", "the model's answer is empty")
