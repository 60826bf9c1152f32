"""The verbs that units call: `aistack-hook VERB SERVICE`.

Each verb's module is imported where it is used: a hook pays only for what it does.
"""

from __future__ import annotations

import os
import signal

from aistack.hooks.errors import DONE, INVALID, UNEXPECTED, HookError, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from aistack.hooks.manifest import Manifest

ALONE = ("secrets",)  # verbs without a service
VERBS = ("start-pre", "await-ready", "health", "network", "rollback", "bless", "retry", "recover")
INTERRUPTED = 130  # as a shell counts SIGINT
_LONGEST_LINE = 4000  # characters; long enough for the names of every service of a large stack
USAGE = (
    f"usage: aistack-hook {'|'.join(VERBS)} SERVICE "
    f"(health: SECONDS, network: NETWORK, recover: before-start|late), or {'|'.join(ALONE)}"
)


def main(arguments: list[str]) -> int:
    """Run one hook; returns its exit code. Errors become one line on standard error, never a traceback."""
    from aistack.hooks.runtime import say

    try:
        if len(arguments) == 1 and arguments[0] in ALONE:
            return _follow_secrets()
        if len(arguments) != 2 or arguments[0] not in VERBS:
            say(USAGE)
            return INVALID
        from aistack.hooks.manifest import load

        return _verb(arguments[0])(load(), arguments[1])
    except HookError as error:
        say(f"aistack: {printable(str(error), _LONGEST_LINE)}")
        # A health unit that fails would be one more thing that is wrong, and its next tick is near: it has been said.
        return DONE if arguments[:1] == ["health"] else error.code
    except KeyboardInterrupt:
        say("aistack: interrupted")
        return INTERRUPTED
    except Exception as error:
        # The last line of defence: whatever it is, systemd gets an exit code and the journal a line.
        if os.environ.get("AISTACK_DEBUG"):
            raise
        say(f"aistack: unexpected {type(error).__name__}: {printable(str(error))}; AISTACK_DEBUG=1 shows where")
        return UNEXPECTED


def _follow_secrets() -> int:
    from aistack.hooks.manifest import load
    from aistack.hooks.rotation import follow

    return follow(load())


def _verb(name: str) -> Callable[[Manifest, str], int]:
    if name == "start-pre":
        # A stop during the start sends SIGTERM. Somebody asked for it, so it must not look like a failure.
        signal.signal(signal.SIGTERM, lambda *_: os._exit(DONE))
        from aistack.hooks.start_pre import start_pre

        return start_pre
    if name == "await-ready":
        from aistack.hooks.await_ready import await_ready

        return await_ready
    if name == "health":
        from aistack.hooks.health import health

        return health
    if name == "network":
        from aistack.hooks.network import up

        return up
    if name == "recover":
        from aistack.hooks.recover import recover

        return recover
    from aistack.hooks import rollback

    return {"rollback": rollback.on_failure, "bless": rollback.bless, "retry": rollback.retry}[name]
