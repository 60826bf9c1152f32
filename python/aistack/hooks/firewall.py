"""netavark's firewall rules: which of them are there, and which of them count.

netavark writes them with nftables or with iptables. Both are read as chains that jump to each other, from a hook of the
kernel on: a rule that no hook leads to is as good as lost, and so is one behind a rule that is left over.
"""

from __future__ import annotations

import re
import shlex

from aistack.hooks import runtime
from aistack.hooks.errors import HookError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_DRIVER_FILE = "/run/containers/networks/firewall/firewall-driver"  # written by netavark
_NFTABLES = "nftables"
_IPTABLES = "iptables"
_TABLE = ("inet", "netavark")
_TIMEOUT = 30.0  # seconds

_NFT_JUMP = re.compile(r"\b(?:jump|goto) (\S+)")
_IPTABLES_JUMP = re.compile(r" -[jg] (\S+)")
_TARGET = re.compile(r"(?:\bdnat(?: ip)? to|--to-destination) (\d+\.\d+\.\d+\.\d+):(\d+)(?:-(\d+))?")
_NFT_CHAIN = re.compile(r"^\s*chain (\S+) \{")
_NFT_HOOK = re.compile(r"\bhook (\w+)\b")
_NFT_HANDLE = re.compile(r"# handle (\d+)$")


class _Line:
    """A line of a listing: that a chain is a hook's own, or a rule.

    Of a rule: the chain it jumps to, the command that removes it, and (`_follow`) the hooks that lead to it.
    """

    __slots__ = ("chain", "hook", "hooks", "jump", "remove", "rule")

    def __init__(
        self, chain: str, *, hook: str = "", rule: str = "", jump: str = "", remove: list[str] | None = None
    ) -> None:
        self.chain = chain
        self.hook = hook
        self.rule = rule
        self.jump = jump
        self.remove = remove or []
        self.hooks: set[str] = set()


class Target:
    """A rule that leads a published port to a container."""

    __slots__ = ("_rule", "address", "first", "last")

    def __init__(self, rule: _Line, match: re.Match[str]) -> None:
        self._rule = rule
        self.address = match[1]
        self.first = int(match[2])
        self.last = int(match[3] or match[2])

    @property
    def place(self) -> str:
        """Where it leads."""
        ports = str(self.first) if self.first == self.last else f"{self.first}-{self.last}"
        return f"{self.address}:{ports}"

    def leads_to(self, address: str, port: int) -> bool:
        """Whether a published port reaches this port of the container, from this host and from outside."""
        return self.serves([(address, port)]) and {"prerouting", "output"} <= self._rule.hooks

    def serves(self, wanted: Iterable[tuple[str, int]]) -> bool:
        """Whether it leads to one of these ports of containers."""
        return any(self.address == address and self.first <= port <= self.last for address, port in wanted)

    def remove(self) -> None:
        """Remove the rule. Raises HookError."""
        _must(self._rule.remove)


class Rules:
    """The rules of all of podman's networks."""

    __slots__ = ("_rules", "driver", "targets")

    def __init__(self, driver: str, lines: Iterable[_Line]) -> None:
        self.driver = driver
        self._rules = _follow(list(lines))
        matches = [(rule, _TARGET.search(rule.rule)) for rule in self._rules]
        self.targets = [Target(rule, match) for rule, match in matches if match is not None]

    def has(self, subnet: str) -> bool:
        """Whether the containers of a subnet may send and receive."""
        hooks: set[str] = set()
        for rule in self._rules:
            if subnet in rule.rule.split():
                hooks |= rule.hooks
        return {"forward", "postrouting"} <= hooks


def _driver() -> str:
    try:
        with open(_DRIVER_FILE, encoding="ascii", errors="replace") as file:
            return file.read(40).strip()
    except OSError:
        return ""


def read() -> Rules | None:
    """The rules there are now; None where netavark uses neither of the two. Raises HookError where none can look."""
    driver = _driver()
    if driver == _NFTABLES:
        return Rules(driver, _nftables())
    return Rules(driver, _iptables()) if driver == _IPTABLES else None


def clear() -> None:
    """Remove what is left of netavark's rules where it would not write the rest again. Raises HookError.

    netavark takes the rules of a network for complete if its chain is there. With iptables it looks for each rule.
    """
    if _driver() == _NFTABLES and runtime.run(["nft", "list", "table", *_TABLE], _TIMEOUT)[0] == 0:
        _must(["nft", "delete", "table", *_TABLE])


def _must(command: list[str]) -> None:
    code, _, errors = runtime.run(command, _TIMEOUT)
    if code != 0:
        raise HookError(f"`{shlex.join(command)}` failed: {errors.strip().partition(chr(10))[0]}")


def _nftables() -> Iterator[_Line]:
    _, out, _ = runtime.run(["nft", "--handle", "list", "table", *_TABLE], _TIMEOUT)
    chain = ""
    for line in out.splitlines():
        handle = _NFT_HANDLE.search(line)
        if found := _NFT_CHAIN.match(line):
            chain = found[1]
        elif found := _NFT_HOOK.search(line):
            yield _Line(chain, hook=found[1])
        elif handle is not None:
            jump = _NFT_JUMP.search(line)
            remove = ["nft", "delete", "rule", *_TABLE, chain, "handle", handle[1]]
            yield _Line(chain, rule=line, jump=jump[1] if jump else "", remove=remove)


def _iptables() -> Iterator[_Line]:
    _, out, _ = runtime.run(["iptables-save"], _TIMEOUT)
    table = ""
    for line in out.splitlines():
        words = line.split(" ")
        if line.startswith("*"):
            table = line[1:]
        elif line.startswith(":") and words[1:2] != ["-"]:
            # A chain with a policy is the kernel's own, and is called as its hook.
            yield _Line(f"{table}/{words[0][1:]}", hook=words[0][1:].lower())
        elif line.startswith("-A ") and len(words) > 2:
            jump = _IPTABLES_JUMP.search(line)
            remove = ["iptables", "--table", table, "-D", *_split(line)[1:]]
            yield _Line(f"{table}/{words[1]}", rule=line, jump=f"{table}/{jump[1]}" if jump else "", remove=remove)


def _split(line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError:  # a quote that nobody closed
        return line.split()


def _follow(lines: list[_Line]) -> list[_Line]:
    """The rules, each with the hooks that lead to it."""
    reached: dict[str, set[str]] = {}
    for line in lines:
        if line.hook:
            reached.setdefault(line.chain, set()).add(line.hook)
    jumps = [(line.chain, line.jump) for line in lines if line.jump]
    spread = True
    while spread:
        spread = False
        for chain, to in jumps:
            more = reached.get(chain, set()) - reached.setdefault(to, set())
            if more:
                reached[to] |= more
                spread = True
    rules = [line for line in lines if line.rule]
    for rule in rules:
        rule.hooks = reached.get(rule.chain, set())
    return rules
