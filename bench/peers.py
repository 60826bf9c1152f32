"""The same services as others run them: a compose file for podman-compose, and Quadlet units."""

from __future__ import annotations

from dataclasses import dataclass, field

from lab import MOUNT, TINY, Lab

COMPOSE = "/root/compose"
QUADLET = "/etc/containers/systemd"
INTERVAL = 1  # seconds between two checks of health; podman takes no shorter one that works


def connect(port: int) -> str:
    """A bash command that connects. It costs the peers least: no program of its own."""
    return f"exec 3<>/dev/tcp/127.0.0.1/{port}"


def http(port: int, path: str) -> str:
    """A bash command that wants status 200."""
    return f"{connect(port)}; {{ echo GET {path} HTTP/1.0; echo; }} >&3; head -n 1 <&3 | grep -q 200"


@dataclass
class Peer:
    """A container as both peers can declare it."""

    name: str
    image: str
    health: str = field(default_factory=lambda: connect(8000))  # a bash command
    needs: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    environment_file: str = ""
    volumes: list[str] = field(default_factory=list)
    command: list[str] = field(default_factory=list)


def tiny(name: str, *needs: str) -> Peer:
    """The tiny application as a peer."""
    return Peer(name, TINY, needs=list(needs), environment={"NAME": name}, volumes=[MOUNT.partition("=")[2]])


def compose(peers: list[Peer], interval: int = INTERVAL) -> str:
    """The compose file: `depends_on` with `condition: service_healthy`."""
    text = "services:\n"
    for peer in peers:
        text += f"  {peer.name}:\n    image: {peer.image}\n    container_name: compose-{peer.name}\n"
        # As text: podman-compose 1.3.0 loses the quotes of a list.
        test = _quoted(f'bash -c "{peer.health}"')
        text += f"    healthcheck:\n      test: {test}\n"
        text += f"      interval: {interval}s\n      timeout: 5s\n      retries: 60\n"
        if peer.environment:
            text += "    environment:\n" + "".join(f'      {k}: "{v}"\n' for k, v in peer.environment.items())
        if peer.environment_file:
            text += f"    env_file: {peer.environment_file}\n"
        if peer.volumes:
            text += "    volumes:\n" + "".join(f"      - {volume}\n" for volume in peer.volumes)
        if peer.command:
            text += f"    command: {_list(peer.command)}\n"
        if peer.needs:
            text += "    depends_on:\n"
            text += "".join(f"      {name}:\n        condition: service_healthy\n" for name in peer.needs)
    return text


def quadlet(peer: Peer, interval: int = INTERVAL, extra: str = "") -> str:
    """A .container file with `Notify=healthy`, after what it needs."""
    needs = " ".join(f"{name}.service" for name in peer.needs)
    text = f"[Unit]\nStartLimitIntervalSec=0\nRequires={needs}\nAfter={needs}\n" if needs else "[Unit]\n"
    text += f"[Container]\nImage={peer.image}\nContainerName={peer.name}\nNetwork=local-ai\nNotify=healthy\n"
    text += f"HealthCmd=[{', '.join(_quoted(word) for word in ('bash', '-c', peer.health))}]\n"
    text += f"HealthInterval={interval}s\nHealthTimeout=5s\nHealthRetries=60\n"
    text += f"PodmanArgs=--network-alias={peer.name}\n"
    text += "".join(f"Environment={key}={value}\n" for key, value in peer.environment.items())
    if peer.environment_file:
        text += f"EnvironmentFile={peer.environment_file}\n"
    text += "".join(f"Volume={volume}\n" for volume in peer.volumes)
    if peer.command:
        text += f"Exec={' '.join(_quoted(word) for word in peer.command)}\n"
    return f"{text}{extra}[Service]\nTimeoutStartSec=120\nTimeoutStopSec=5\n"


def install(lab: Lab, peers: list[Peer], interval: int = INTERVAL) -> None:
    """Put both into the guest, and start nothing."""
    lab.run(f"rm -rf {COMPOSE} {QUADLET}; mkdir -p {COMPOSE} {QUADLET}")
    lab.run(f"cat > {COMPOSE}/compose.yaml <<'EOF'\n{compose(peers, interval)}EOF")
    for peer in peers:
        lab.run(f"cat > {QUADLET}/{peer.name}.container <<'EOF'\n{quadlet(peer, interval)}EOF")
    lab.run("systemctl daemon-reload")


def up(peers: list[Peer]) -> str:
    """A command that ends when `podman-compose up` has the last of them healthy, which needs all the others.

    Debian 13's podman-compose (1.3.0) has no `up --wait`, and with `--detach` starts the dependents at once; without,
    it makes all containers, and starts each when what it needs is healthy.
    """
    last = f"compose-{peers[-1].name}"
    running = f"podman inspect --format '{{{{.State.Running}}}}' {last}"
    return (
        f"systemd-run --quiet --collect --unit=bench-compose --working-directory={COMPOSE} podman-compose up; "
        f'until test "$({running} 2>/dev/null)" = true; do sleep 0.2; done; '
        f"podman wait --condition=healthy {last}"
    )


def down(lab: Lab) -> None:
    """Remove what podman-compose made."""
    lab.run(f"cd {COMPOSE} && podman-compose down -t 0 >/tmp/compose.log 2>&1")
    lab.run("if systemctl is-active --quiet bench-compose.service; then systemctl stop bench-compose.service; fi")


def stop(lab: Lab, peers: list[Peer]) -> None:
    """Stop the Quadlet units, quickly."""
    lab.run(f"systemctl stop {' '.join(f'{peer.name}.service' for peer in peers)}")


def _list(words: list[str]) -> str:
    return f"[{', '.join(_quoted(word) for word in words)}]"


def _quoted(word: str) -> str:
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'
