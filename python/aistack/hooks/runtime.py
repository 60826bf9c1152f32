"""What the hooks share with the running system: podman, systemd, the files under /run/aistack.

The only place that runs commands. Every command has a time limit; every file is written beside its place and renamed.
"""

from __future__ import annotations

import errno
import json
import os
import stat
import sys
import time

from aistack.hooks.errors import DOWN, INVALID, TIMED_OUT, UNEXPECTED, HookError, printable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from aistack.hooks.manifest import Manifest, Service

NETWORKS = "/etc/containers/networks"  # network_config_dir of containers.conf(5), for containers of root
PODMAN_TIMEOUT = 60.0  # seconds for a podman call that moves no image
_JOURNAL = "/run/systemd/journal/socket"
SYSTEMCTL_TIMEOUT = 30.0  # seconds for a systemctl call that waits for no job
_LAST_WORDS = 5.0  # seconds for a program to end by itself when nobody reads any more what it writes

# What systemd says when a job has ended: SD_MESSAGE_UNIT_STARTED, _FAILED and _STOPPED of sd-messages(3).
_STARTED = "39f53479d3a045ac8e11786248231fbf"
_FAILED = "be02cf6855d2428ba40df7e9d022f03d"
_STOPPED = "9d1aaa27d60140bd96365438aad20286"

# Phases of a verdict, in the order a start walks through them.
PREFLIGHT = "preflight"  # a check failed before the container was started
STARTING = "starting"  # checks passed, the container is being started
NOT_READY = "not-ready"  # the container was started and did not become ready
READY = "ready"
ROLLBACK_FAILED = "rollback-failed"  # a file in a service's directory while its rollback unit is failed
DOWN_NO_RELEASE = "down"  # the only release there is does not work: nothing to go back to


def boot_seconds() -> float:
    """Seconds since boot, sleep included: what passes between two moments whatever somebody does to the clock."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


def say(message: str) -> None:
    """One message to the journal (or the terminal): on standard error, flushed."""
    sys.stderr.write(message.rstrip("\n") + "\n")
    sys.stderr.flush()


def note(message: str) -> None:
    """One message to the journal, from a command whose standard error is a terminal (journald's native protocol).

    A host without a journal gets none.
    """
    import socket

    line = printable(message, 4000)
    fields = f"MESSAGE={line}\nPRIORITY=5\nSYSLOG_IDENTIFIER=aistack\n".encode()
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as link:
        try:
            link.sendto(fields, _JOURNAL)
        except OSError:
            return


def run(command: list[str], timeout: float, stdin: int | None = None) -> tuple[int, str, str]:
    """Run a command without a shell; returns (exit code, output, errors), both decoded. `stdin` is what it reads.

    Raises HookError when the program cannot be run, or (exit code 124) when it takes longer than `timeout` seconds.
    """
    # Here alone: a start of a proven service that is ready at once runs no command at all.
    import subprocess

    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL if stdin is None else stdin,
            capture_output=True,
            timeout=timeout,
            check=False,
        )
    except FileNotFoundError:
        raise HookError(f"{command[0]} is not installed or not on PATH ({os.environ.get('PATH', '')})") from None
    except OSError as error:
        raise HookError(f"cannot run {command[0]}: {error.strerror}") from None
    except subprocess.TimeoutExpired:
        raise HookError(f"`{' '.join(command)}` took more than {timeout:g} s", TIMED_OUT) from None
    return done.returncode, done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")


def pipe(producer: list[str], consumer: list[str], timeout: float) -> str:
    """Run `producer | consumer` without a shell; returns the output of the consumer.

    What the producer says goes to the journal. Raises HookError when one of them fails, or takes more than `timeout`
    seconds.
    """
    import subprocess

    reader, writer = os.pipe()
    try:
        source = subprocess.Popen(producer, stdin=subprocess.DEVNULL, stdout=writer)
    except OSError as error:
        os.close(reader)
        raise HookError(f"cannot run {producer[0]}: {error.strerror}") from None
    finally:
        os.close(writer)
    try:
        code, out, errors = run(consumer, timeout, reader)
    finally:
        os.close(reader)  # whoever still writes is told so
        try:
            source.wait(_LAST_WORDS)
        except subprocess.TimeoutExpired:
            source.kill()
            source.wait()
    if code != 0:
        said = printable((errors.strip() or out.strip()).rpartition("\n")[2], 300)
        raise HookError(f"`{' '.join(consumer)}` failed: {said}")
    if source.returncode != 0:
        raise HookError(f"{producer[0]} ended with {source.returncode}")
    return out


def podman(*arguments: str, timeout: float = PODMAN_TIMEOUT) -> str:
    """Run podman; returns its output. Raises HookError with podman's last line of errors when it fails."""
    code, out, errors = run(["podman", *arguments], timeout)
    if code != 0:
        said = printable((errors.strip() or out.strip()).rpartition("\n")[2], 300)
        raise HookError(f"podman {arguments[0]} failed: {said}", UNEXPECTED)
    return out


def images() -> dict[str, str]:
    """Every image name in local storage, fully qualified, with the id of its image."""
    out = podman("image", "list", "--no-trunc", "--format", "{{.Repository}}:{{.Tag}}\t{{.ID}}")
    found: dict[str, str] = {}
    for line in out.splitlines():
        name, _, identifier = line.partition("\t")
        found[name] = identifier.removeprefix("sha256:")
    return found


def image_id(reference: str) -> str | None:
    """The id of the image podman finds locally under `reference` (a name, a digest or an id), or None."""
    code, out, _ = run(["podman", "image", "inspect", "--format", "{{.Id}}", reference], PODMAN_TIMEOUT)
    return out.strip() or None if code == 0 else None


def kept_tag(service: str, identifier: str) -> str:
    """The local name that keeps a release's image from `podman image prune`."""
    return f"localhost/aistack/{service}:{identifier[:12]}"


def remove_container(container: str, grace: float = 0) -> None:
    """Remove a container, stopping it first with `grace` seconds to end by itself. A missing one is fine."""
    podman("rm", "--force", "--ignore", "--time", str(int(grace)), container, timeout=PODMAN_TIMEOUT + grace)


def systemctl(*arguments: str, timeout: float = SYSTEMCTL_TIMEOUT) -> str:
    """Run systemctl; returns its output. Raises HookError with what it said when it fails."""
    code, out, errors = run(["systemctl", *arguments], timeout)
    if code != 0:
        said = printable((errors.strip() or out.strip()).partition("\n")[0], 300)
        raise HookError(f"systemctl {' '.join(arguments)} failed: {said}", DOWN)
    return out


def unit_states(units: Iterable[str], *properties: str) -> dict[str, dict[str, str]]:
    """The given systemd properties of each unit, in one call, keyed by unit name.

    ActiveState, SubState and Result are always among them. An unknown unit is `inactive` with LoadState=not-found.
    """
    names = list(units)
    if not names:
        return {}
    wanted = ",".join(["Id", "LoadState", "ActiveState", "SubState", "Result", *properties])
    out = systemctl("show", "--property", wanted, "--", *names)
    found: dict[str, dict[str, str]] = {}
    for block in out.strip().split("\n\n"):
        fields = dict(line.partition("=")[::2] for line in block.splitlines() if "=" in line)
        if "Id" in fields:
            found[fields["Id"]] = fields
    return found


def stopped(unit: str) -> bool:
    """Whether it was a stop, or the first half of a restart, that ended the unit, whatever its processes made of it.

    systemd calls a unit failed, too, when a program answers SIGTERM with an error, or when a hook is hit by it before
    it can catch it. Nothing but the message about the job tells the two apart.
    """
    run(["journalctl", "--sync"], SYSTEMCTL_TIMEOUT)
    command = ["journalctl", "--boot", "--lines=1", "--quiet", "--no-pager", "--output=json"]
    ended = [f"MESSAGE_ID={identifier}" for identifier in (_STARTED, _FAILED, _STOPPED)]
    _, out, _ = run([*command, "--output-fields=MESSAGE_ID", "_PID=1", f"UNIT={unit}", *ended], SYSTEMCTL_TIMEOUT)
    return _STOPPED in out


def waiting(manifest: Manifest, names: Iterable[str]) -> list[str]:
    """Those of the named services that failed and are to be started again.

    Stopping a failed unit leaves it failed, but takes its retry timer along: one without is left alone.
    """
    wanted = list(names)
    parts = {
        name: (manifest.services[name].unit, f"aistack-retry@{name}.timer", f"aistack-rollback@{name}.service")
        for name in wanted
    }
    states = unit_states([unit for units in parts.values() for unit in units])

    def is_waiting(name: str) -> bool:
        unit, timer, decision = (states.get(part, {}).get("ActiveState") for part in parts[name])
        return unit == "failed" and (timer == "active" or decision == "activating")

    return [name for name in wanted if is_waiting(name)]


def start_again(manifest: Manifest, names: Iterable[str]) -> None:
    """Start the named services without waiting, whatever their start limit says."""
    units = [manifest.services[name].unit for name in names]
    if units:
        systemctl("reset-failed", *units)
        systemctl("start", "--no-block", *units)


def journal_tail(service: Service, lines: int = 40, since: float | None = None) -> str:
    """The last lines the journal has of a service, not older than `since` (Unix time).

    What its container printed, what the hooks and systemd said of it; not podman's own events, which would fill it all.
    """
    command = ["journalctl", "--unit", service.unit, "--lines", str(lines), "--output", "short-iso", "--no-pager"]
    command += ["--quiet", "-t", service.container, "-t", "python3", "-t", "systemd"]
    if since is not None and since <= time.time():  # else the clock was set back since
        command += ["--since", f"@{since:.0f}"]
    try:
        code, out, errors = run(command, SYSTEMCTL_TIMEOUT)
    except HookError as error:
        return f"(no log: {error})"
    return out if code == 0 else f"(no log: {printable(errors)})"


def last_words(service: Service, since: float | None = None) -> str:
    """The last line that a service's container, or podman on its behalf, had to say; '' if there is none."""
    command = ["journalctl", "--unit", service.unit, "--lines", "200", "--output", "json", "--no-pager", "--quiet"]
    command += ["--output-fields=MESSAGE,SYSLOG_IDENTIFIER,PRIORITY"]
    if since is not None and since <= time.time():
        command += ["--since", f"@{since:.0f}"]
    try:
        run(["journalctl", "--sync"], SYSTEMCTL_TIMEOUT)
        _, out, _ = run(command, SYSTEMCTL_TIMEOUT)
    except HookError:
        return ""
    for line in reversed(out.splitlines()):
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        message, by = entry.get("MESSAGE"), entry.get("SYSLOG_IDENTIFIER", "")
        # Not systemd, the hooks, nor podman's own account of what it does; its errors begin so.
        own = by == service.container or (isinstance(message, str) and message.startswith("Error: "))
        if own and isinstance(message, str) and message.strip():
            return printable(message, 200)
    return ""


# --- files -----------------------------------------------------------------------------------------------------------


def write_atomic(path: str, data: bytes, mode: int, uid: int = -1, gid: int = -1) -> None:
    """Write `data` to `path` so that a reader sees the old file or the new one, never half of it.

    Raises HookError (disk full, no permission) and leaves the old file alone.
    """
    new = f"{path}.{os.getpid()}.new"
    try:
        descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fchown(file.fileno(), uid, gid)
                os.fchmod(file.fileno(), mode)
                os.fsync(file.fileno())
            os.replace(new, path)
        except OSError:
            os.unlink(new)
            raise
    except OSError as error:
        full = " (the disk is full: `df -h`)" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        raise HookError(f"cannot write {path}: {error.strerror}{full}") from None


def service_dir(manifest: Manifest, service: str) -> str:
    """The service's own directory under /run, made if it is not there (mode 0700). Raises HookError."""
    path = os.path.join(manifest.runtime_dir, service)
    try:
        os.makedirs(path, mode=0o700, exist_ok=True)
    except OSError as error:
        raise HookError(f"cannot make {path}: {error.strerror}") from None
    return path


def write_verdict(manifest: Manifest, service: str, **fields: Any) -> None:
    """Record what the last step of a start found, for status, rollback and the dependencies that come back."""
    verdict = {"schemaVersion": 1, "service": service, "at": time.time(), "atBoot": boot_seconds(), **fields}
    path = os.path.join(service_dir(manifest, service), "verdict.json")
    write_atomic(path, json.dumps(verdict).encode(), 0o644)


def read_verdict(manifest: Manifest, service: str) -> dict[str, Any]:
    """The last verdict on a service; empty when there is none since boot or it cannot be read."""
    path = os.path.join(manifest.runtime_dir, service, "verdict.json")
    try:
        with open(path, encoding="utf-8") as file:
            verdict = json.load(file)
    except (OSError, ValueError):
        return {}
    checks = verdict.get("checks", []) if isinstance(verdict, dict) else None
    sound = isinstance(checks, list) and all(isinstance(check, dict) for check in checks)
    return verdict if sound else {}


# --- secrets and environment -----------------------------------------------------------------------------------------


def read_secret(manifest: Manifest, key: str) -> str:
    """The value of a secret, without the line break at its end.

    Raises HookError that names the key and the file, never the value.
    """
    declared = manifest.secrets.get(key)
    if declared is None:
        raise HookError(f"secret {key} is not declared: set services.aistack.secrets.{key}.file", INVALID)
    path = declared["file"]
    try:
        # Not blocking: nobody may ever write to a named pipe that stands there by mistake.
        with open(path, encoding="utf-8", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK)) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise HookError(f"secret {key}: {path} is not a regular file", INVALID)
            value = file.read().removesuffix("\n")
    except FileNotFoundError:
        raise HookError(f"secret {key}: {path} does not exist; create it (mode 0400)", INVALID) from None
    except UnicodeDecodeError:  # its words would name a byte of the secret
        raise HookError(f"secret {key}: {path} is no text in UTF-8", INVALID) from None
    except OSError as error:
        raise HookError(f"secret {key}: cannot read {path}: {printable(str(error))}", INVALID) from None
    if not value:
        raise HookError(f"secret {key}: {path} is empty", INVALID)
    if declared["as"] == "env" and not {"\n", "\r", "\0"}.isdisjoint(value):
        raise HookError(
            f"secret {key}: {path} has more than one line, which an environment variable of a container cannot carry; "
            f'set services.aistack.secrets.{key}.as = "file"',
            INVALID,
        )
    return value


def probe_password(manifest: Manifest, service: Service) -> str | None:
    """The password a service's probe logs in with, or None where it needs none. Raises HookError."""
    if service.probe is None or service.probe.secret is None:
        return None
    return read_secret(manifest, service.probe.secret)


def probe_passwords(manifest: Manifest, service: Service) -> list[str | None]:
    """What the probe of a service that runs may log in with: its secret's value now, and the one it was started with.

    The two differ while a new value is not followed yet, or cannot be used. Raises HookError where there is neither.
    """
    key = service.probe.secret if service.probe is not None else None
    if key is None:
        return [None]
    given = given_secret(manifest, service, key)
    try:
        value = read_secret(manifest, key)
    except HookError:
        if given is None:
            raise
        return [given]
    return [value] if given in (None, value) else [value, given]


def given_secret(manifest: Manifest, service: Service, key: str) -> str | None:
    """The value of a secret that the container of a service was last started with; None where it was given none."""
    if service.external or key not in service.secrets:
        return None
    directory = os.path.join(manifest.runtime_dir, service.name)
    try:
        if manifest.secrets.get(key, {}).get("as") == "file":
            with open(os.path.join(directory, "secrets", key), encoding="utf-8", newline="") as file:
                return file.read()
        with open(os.path.join(directory, "env"), encoding="utf-8", newline="") as file:
            lines = file.read().split("\n")
    except (OSError, UnicodeDecodeError):
        return None
    return next((line.removeprefix(f"{key}=") for line in lines if line.startswith(f"{key}=")), None)


def public_environment(manifest: Manifest, service: Service) -> dict[str, str]:
    """What a release of `service` remembers of its environment: everything but secrets."""
    environment = dict(manifest.environment) if service.stack_environment else {}
    environment.update(service.environment)
    return environment


def write_environment(manifest: Manifest, service: Service, environment: dict[str, str]) -> None:
    """Write what the container will see: its `--env-file` and its file secrets, readable by nobody else.

    Raises HookError for a secret that is missing, unreadable or, as a variable, of more than one line.
    """
    directory = service_dir(manifest, service.name)
    files = os.path.join(directory, "secrets")
    _forget_secrets(directory, files)
    values = dict(environment)
    for key in service.secrets:
        value = read_secret(manifest, key)
        if manifest.secrets[key]["as"] == "file":
            uid, gid = owner(service)
            os.makedirs(files, mode=0o755, exist_ok=True)
            write_atomic(os.path.join(files, key), value.encode(), 0o400, uid, gid)
            values[f"{key}_FILE"] = f"/run/secrets/{key}"
        else:
            values[key] = value
    text = "".join(f"{key}={value}\n" for key, value in sorted(values.items()))
    write_atomic(os.path.join(directory, "env"), text.encode(), 0o400)


def _forget_secrets(directory: str, files: str) -> None:
    """Remove the secrets of the last start: a service may name others now, and a start that was cut off left halves."""
    try:
        names = [name for name in os.listdir(directory) if name.startswith("env.") and name.endswith(".new")]
        halves = [os.path.join(directory, name) for name in names]
        old = [os.path.join(files, name) for name in os.listdir(files)] if os.path.isdir(files) else []
        for path in halves + old:
            os.unlink(path)
    except OSError as error:
        raise HookError(f"cannot remove {error.filename}: {error.strerror}") from None


def owner(service: Service) -> tuple[int, int]:
    """The numeric user and group a container runs as; root where the service names none or a name only it knows."""
    user, _, group = (service.user or "0").partition(":")
    uid = int(user) if user.isdigit() else 0
    return uid, int(group) if group.isdigit() else uid
