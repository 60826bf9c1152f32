"""podman and systemd as far as a deployment needs them, for tests that kill it: a program, called by the name of
either.

Everything is in files below $FAKE_HOST, and what systemd does goes on in processes of its own, as it does when the
program that asked for it dies. The hooks that units call are the real ones. With $FAKE_KILL = "NUMBER PID" the process
PID is killed before call NUMBER, counted over all calls of either program that PID's own children make.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time

ROOT = os.environ["FAKE_HOST"]
HOOK = [os.environ["FAKE_PYTHON"], "-I", "-S", os.environ["FAKE_HOOK"]]
PROBATION = float(os.environ.get("FAKE_PROBATION", "0.2"))  # seconds
BUILT = "2" * 64  # the image that every directory is built to
STARTS = 3  # StartLimitBurst=


def path(*parts: str) -> str:
    """A file of the host."""
    return os.path.join(ROOT, *parts)


def write(name: str, text: str) -> None:
    """Write a file of the host as a whole."""
    new = f"{path(name)}.{os.getpid()}"
    with open(new, "w", encoding="utf-8") as file:
        file.write(text)
    os.replace(new, path(name))


def read(name: str) -> str:
    """Read a file of the host; empty if there is none."""
    try:
        with open(path(name), encoding="utf-8") as file:
            return file.read()
    except FileNotFoundError:
        return ""


class Locked:
    """One at a time."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None:
        self.file = os.open(path(f"{self.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC)
        fcntl.flock(self.file, fcntl.LOCK_EX)

    def __exit__(self, *_: object) -> None:
        os.close(self.file)


def count_and_kill() -> None:
    """Count this call, and kill whom $FAKE_KILL names when its turn has come."""
    if "FAKE_KILL" not in os.environ:
        return
    number, pid = map(int, os.environ["FAKE_KILL"].split())
    with Locked("count"):
        count = int(read("count") or "0") + 1
        write("count", str(count))
    if count == number:
        os.kill(pid, signal.SIGKILL)


# --- podman ----------------------------------------------------------------------------------------------------------


def images() -> dict[str, str]:
    """Every tag with its image."""
    return dict(line.split("\t") for line in read("images").splitlines())


def find(reference: str) -> str | None:
    """The id of an image."""
    known = images()
    return known.get(reference) or next((i for i in known.values() if i == reference.removeprefix("sha256:")), None)


def container(name: str) -> dict[str, object] | None:
    """A container."""
    text = read(f"containers/{name}.json") if "/" not in name else ""
    return json.loads(text) if text else None


def behaviour(image: str) -> str:
    """What an image does: good, never-ready, fails-live (not in its isolated test), or ready-once (and then not)."""
    return read(f"behaviours/{image}") or "good"


def answers(name: str, image: str) -> bool:
    """Whether a container answers its probe now."""
    kind = behaviour(image)
    if kind == "ready-once" and name == "aistack-app":
        return asked_before(name) == 0
    return kind in {"good", "ready-once"} or (kind == "fails-live" and name != "aistack-app")


def asked_before(name: str) -> int:
    """How often a container's probe was asked since it was started; counts this time."""
    with Locked(f"asked-{name}"):
        found = container(name) or {}
        count = int(str(found.get("Asked", 0)))
        write(f"containers/{name}.json", json.dumps({**found, "Asked": count + 1}))
    return count


def run_container(name: str, image: str, label: str, network: str) -> None:
    """Start a container."""
    found = {"Id": f"{name:x<64}", "Name": name, "Image": image, "Label": label, "Network": network, "Running": True}
    write(f"containers/{name}.json", json.dumps(found))


def option(words: list[str], name: str) -> str:
    """The value of --name=value."""
    return next((word.partition("=")[2] for word in words if word.startswith(f"{name}=")), "")


def name_images(words: list[str]) -> None:
    """Give an image names, or take them away; all that is built is the same image."""
    with Locked("images"):
        known = images()
        if words[0] == "build":
            known[words[words.index("--tag") + 1]] = BUILT
            with open(words[words.index("--iidfile") + 1], "w", encoding="ascii") as file:
                file.write(f"sha256:{BUILT}")
        elif words[0] == "tag":
            known.update(dict.fromkeys(words[2:], str(find(words[1]))))
        else:
            known = {tag: image for tag, image in known.items() if tag not in words[2:]}
        write("images", "".join(f"{tag}\t{image}\n" for tag, image in known.items()))


def podman(words: list[str]) -> int:
    """Do what podman would."""
    what = " ".join(words[:2])
    last = words[-1]
    if what == "image list":
        sys.stdout.write(read("images"))
    elif what == "image inspect":
        found = find(last)
        if found is None:
            return 1
        document = {
            "Id": found,
            "Architecture": "",
            "Config": {"Entrypoint": ["/program"], "Env": ["PATH=/"], "ExposedPorts": {}},
        }
        sys.stdout.write(f"{found}\n" if "--format" in words else json.dumps([document]))
    elif what == "image mount":
        sys.stdout.write(path("root") + "\n")
    elif words[0] in {"tag", "untag", "build"}:
        name_images(words)
    elif words[0] == "run":
        image = next(word for word in words if find(word) is not None and not word.startswith("--"))
        run_container(option(words, "--name"), str(find(image)), option(words, "--label"), option(words, "--network"))
    elif words[0] == "rm":
        for name in [word for word in words[1:] if container(word) is not None]:
            os.unlink(path(f"containers/{name}.json"))
    elif words[0] == "exec":
        asked = next((one for one in map(container, words[1:]) if one is not None), None)
        return 0 if asked is not None and answers(str(asked["Name"]), str(asked["Image"])) else 1
    elif what == "container inspect":
        one = container(last)
        if one is None:
            return 125
        if "--format" in words:
            sys.stdout.write("0 true\n" if "Conmon" in " ".join(words) else f"{one['Id']}\n")
        else:
            sys.stdout.write(json.dumps([{"State": {"Running": True, "ExitCode": 0, "Pid": 0}}]))
    elif what == "network create":
        write(f"networks/{last}", option(words, "--label"))
    elif what == "network inspect":
        sys.stdout.write(json.dumps([{"name": last, "subnets": [{"gateway": "127.0.0.1"}]}]))
    elif what == "network rm":
        for name in [word for word in words[2:] if os.path.exists(path("networks", word))]:
            os.unlink(path("networks", name))
    elif what == "network ls":
        sys.stdout.write("".join(f"{name}\n" for name in os.listdir(path("networks")) if read(f"networks/{name}")))
    elif words[0] == "ps":
        names = [name.removesuffix(".json") for name in os.listdir(path("containers")) if name.endswith(".json")]
        sys.stdout.write("".join(f"{name}\n" for name in names if (container(name) or {}).get("Label")))
    return 0


# --- systemd ---------------------------------------------------------------------------------------------------------


def unit_file(unit: str, active: str, restarts: int = 0) -> None:
    """Let a unit be in a state."""
    sub = {"active": "running", "failed": "failed", "activating": "start"}.get(active, "dead")
    result = "exit-code" if active == "failed" else "success"
    fields = {"Id": unit, "LoadState": "loaded", "ActiveState": active, "SubState": sub, "Result": result}
    write(f"units/{unit}", "".join(f"{k}={v}\n" for k, v in {**fields, "NRestarts": str(restarts)}.items()))


def hook(verb: str, argument: str) -> int:
    """Run a hook as a unit does, with nobody to kill."""
    environment = {key: value for key, value in os.environ.items() if key != "FAKE_KILL"}
    return subprocess.run([*HOOK, verb, argument], env=environment, check=False).returncode


def start_service(name: str) -> bool:
    """A start of a service with its retries, and what follows its failure."""
    unit = f"podman-aistack-{name}.service"
    for number in range(STARTS):
        unit_file(unit, "activating", number)
        podman(["rm", f"aistack-{name}"])
        if hook("start-pre", name) != 0:
            continue
        run_container(f"aistack-{name}", str(find(f"localhost/aistack/{name}:live")), "", "net")
        if hook("await-ready", name) == 0:
            unit_file(unit, "active", number)
            return True
    unit_file(unit, "failed", STARTS)
    detached(["job", "rollback", name])
    return False


def job(words: list[str]) -> int:
    """What systemd does by itself: one job of a unit after the other."""
    verb, name = words
    with Locked(f"job-{verb}-{name}"):
        if verb == "service":
            return 0 if start_service(name) else 1
        if verb == "bless":
            time.sleep(PROBATION)
        hook(verb, name)
    return 0


def detached(words: list[str]) -> subprocess.Popen[bytes]:
    """Start a process that lives on whoever dies."""
    log = open(path("log"), "ab")  # noqa: SIM115  (the child's)
    environment = {key: value for key, value in os.environ.items() if key != "FAKE_KILL"}
    command = [sys.executable, "-I", "-S", __file__, *words]
    return subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)


def systemctl(words: list[str]) -> int:
    """Do what systemctl would."""
    verb, last = words[0], words[-1]
    if verb == "show":
        for unit in words[words.index("--") + 1 :]:
            idle = f"Id={unit}\nLoadState=loaded\nActiveState=inactive\nSubState=dead\nResult=success\nNRestarts=0\n"
            sys.stdout.write((read(f"units/{unit}") or idle) + "\n")
    elif verb in {"start", "restart"}:
        if last.startswith("podman-aistack-"):
            process = detached(["job", "service", last.removeprefix("podman-aistack-").removesuffix(".service")])
            return 0 if "--no-block" in words else process.wait()
        if last.startswith("aistack-rollback@"):
            return detached(["job", "rollback", last.removeprefix("aistack-rollback@").removesuffix(".service")]).wait()
        if last.startswith("aistack-bless@"):
            detached(["job", "bless", last.removeprefix("aistack-bless@").removesuffix(".timer")])
    return 0


def main() -> int:
    """Be the program that was called."""
    if sys.argv[1:2] == ["job"]:
        return job(sys.argv[2:])
    program, words = sys.argv[1], sys.argv[2:]
    count_and_kill()
    return {"podman": podman, "systemctl": systemctl, "journalctl": len}[program](words)


sys.exit(main())
