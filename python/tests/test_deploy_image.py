"""The image that is to be deployed, its container's options, and what attempts come to.

podman is a stand-in; what Nix renders is the reference rendering.
"""

from __future__ import annotations

import json
import platform
import re
import shlex
from pathlib import Path
from typing import Any

import fakehost
import pytest

from aistack.deploy import container, image, metrics
from aistack.deploy.failure import Refused
from aistack.hooks.deploys import DEPLOYED, DOWN, INCOMING, INTERRUPTED, REFUSED, ROLLED_BACK, Attempt
from aistack.hooks.manifest import load

REFERENCE = Path(__file__).parents[2] / "bundle/reference"
OWN = {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine())
ID = "a" * 64

# Images are lines NAME<tab>ID; the registry has those of `registry`; what `image inspect` shows is `inspect`.
_PODMAN = r"""#!/bin/sh
printf 'podman %s\n' "$*" >> "$FAKE_HOST/calls"
for last in "$@"; do :; done
case "$1 $2" in
"image list") cat "$FAKE_HOST/images" ;;
"image inspect")
  if [ "$3" = --format ]; then
    awk -F '\t' -v n="$last" '$1 == n || $2 == n {print $2; found = 1; exit} END {exit !found}' "$FAKE_HOST/images"
  else cat "$FAKE_HOST/inspect"
  fi ;;
pull*)
  grep -qxF "$last" "$FAKE_HOST/registry" || { echo "Error: $last: no such thing" >&2; exit 125; }
  echo "Getting it"; cat "$FAKE_HOST/pulled" ;;
build*)
  while [ "$1" != --iidfile ]; do shift; done
  cat "$FAKE_HOST/says"
  [ ! -f "$FAKE_HOST/build-fails" ] || exit 1
  cat "$FAKE_HOST/pulled" > "$2" ;;
esac
"""


@pytest.fixture
def podman(host: fakehost.FakeHost) -> fakehost.FakeHost:
    """A podman that has registry.example/app:1, in a world whose registry has app:1, app:2 and app."""
    host.root.joinpath("fake-programs", "podman").write_text(_PODMAN, encoding="utf-8")
    files = {
        "images": f"registry.example/app:1\t{ID}\nregistry.example/app:latest\t{ID}\nlocalhost/x:1\t{ID}\n",
        "registry": "registry.example/app:1\nregistry.example/app:2\nregistry.example/app\noci-archive:/srv/app.tar\n",
        "pulled": f"{ID}\n",
        "says": "",
    }
    for name, text in files.items():
        host.root.joinpath(name).write_text(text, encoding="utf-8")
    inspected(host)
    return host


def inspected(host: fakehost.FakeHost, architecture: str = "", **config: Any) -> None:  # noqa: ANN401  (any JSON value)
    """Let `podman image inspect` show this."""
    document = [{"Id": f"sha256:{ID}", "Architecture": architecture, "Config": config or None}]
    host.root.joinpath("inspect").write_text(json.dumps(document), encoding="utf-8")


def pulls(host: fakehost.FakeHost) -> list[str]:
    """The references that were pulled."""
    return [call.split()[-1] for call in host.calls() if call.startswith("podman pull")]


def test_an_image_that_is_here_is_not_pulled(podman: fakehost.FakeHost) -> None:
    found = image.pull("registry.example/app:1")
    assert (found.id, found.reference) == (ID, "registry.example/app:1")
    assert pulls(podman) == []


@pytest.mark.parametrize(
    "reference",
    ["registry.example/app:2", "registry.example/app:latest", "registry.example/app", "oci-archive:/srv/app.tar"],
)
def test_what_is_not_here_or_moves_is_pulled(podman: fakehost.FakeHost, reference: str) -> None:
    podman.root.joinpath("registry").write_text(f"{reference}\n", encoding="utf-8")
    assert image.pull(reference).id == ID
    assert pulls(podman) == [reference]


def test_a_tag_that_moves_is_what_is_here_where_the_registry_is_out_of_reach(podman: fakehost.FakeHost) -> None:
    podman.root.joinpath("registry").write_text("", encoding="utf-8")
    assert image.pull("registry.example/app:latest").id == ID
    assert pulls(podman) == ["registry.example/app:latest"]


@pytest.mark.parametrize("reference", ["registry.example/app:3", "docker-archive:/srv/broken.tar"])
@pytest.mark.usefixtures("podman")
def test_what_cannot_be_had_is_refused(reference: str) -> None:
    with pytest.raises(Refused, match=f"image {re.escape(reference)} cannot be had: .*no such thing"):
        image.pull(reference)


def test_what_is_local_is_looked_for_nowhere_else(podman: fakehost.FakeHost) -> None:
    assert image.pull("localhost/x:1").id == ID
    with pytest.raises(Refused, match="image localhost/y:1 is not in podman's storage"):
        image.pull("localhost/y:1")
    with pytest.raises(Refused, match="image localhost/y is not in podman's storage"):
        image.pull("localhost/y")
    assert pulls(podman) == []


def test_what_podman_knows_of_an_image(podman: fakehost.FakeHost) -> None:
    inspected(
        podman,
        Entrypoint=["/app", "-x"],
        Cmd=["serve"],
        Env=["PATH=/bin", "EQUAL=a=b", "EMPTY="],
        User="7",
        WorkingDir="/srv",
        ExposedPorts={"80/tcp": {}, "53/udp": {}, "$PORT": {}},
    )
    found = image.inspect(ID, "x")
    assert (found.id, found.entrypoint, found.command) == (ID, ("/app", "-x"), ("serve",))
    assert found.environment == {"PATH": "/bin", "EQUAL": "a=b", "EMPTY": ""}
    assert (found.user, found.working_directory, found.ports) == ("7", "/srv", (80, 53))


def test_an_image_that_says_nothing_of_itself(podman: fakehost.FakeHost) -> None:
    inspected(podman)
    found = image.inspect(ID, "x")
    assert (found.entrypoint, found.command, found.environment) == ((), (), {})
    assert (found.working_directory, found.ports) == ("/", ())


@pytest.mark.skipif(OWN is None, reason="nobody knows what podman calls this machine")
def test_an_image_for_another_machine_is_refused(podman: fakehost.FakeHost) -> None:
    inspected(podman, architecture=str(OWN))
    assert image.inspect(ID, "x").architecture == OWN
    inspected(podman, architecture="s390x")
    with pytest.raises(Refused, match=f"image x is for s390x, this machine is {OWN}"):
        image.inspect(ID, "x")


@pytest.mark.parametrize("said", ["", "[]", "[{}, {}]"])
def test_a_podman_that_does_not_know_it_is_refused(podman: fakehost.FakeHost, said: str) -> None:
    podman.root.joinpath("inspect").write_text(said, encoding="utf-8")
    with pytest.raises(Refused, match="podman cannot inspect image x"):
        image.inspect(ID, "x")


def test_a_build_is_the_image_it_gave(podman: fakehost.FakeHost) -> None:
    assert image.build(podman.root, "localhost/built:1").id == ID
    (call,) = [call for call in podman.calls() if call.startswith("podman build")]
    assert call.startswith("podman build --tag localhost/built:1 --iidfile ")
    assert call.endswith(f" {podman.root}")


def test_a_build_that_fails_is_refused_with_what_it_said(podman: fakehost.FakeHost) -> None:
    lines = [f"STEP {number}" for number in range(30)] + ["Error: building: exit status 1", "trailing"]
    podman.root.joinpath("says").write_text("\n".join(lines), encoding="utf-8")
    podman.root.joinpath("build-fails").touch()
    with pytest.raises(Refused, match="failed: Error: building: exit status 1") as caught:
        image.build(podman.root, "localhost/built:1")
    assert caught.value.detail == lines[-15:]
    assert caught.value.hint == f"podman build {podman.root}"


# --- the options of a container --------------------------------------------------------------------------------------

# What says where a container is and what it is called, who looks after it, and what a deployment gives it in its own
# way: an environment, mounts, an end of its own.
PLACE = {
    *("--rm", "--name", "--log-driver", "--cidfile", "--cgroups", "--sdnotify", "-d", "--replace", "--env-file"),
    *("--network", "--network-alias", "-p", "-v", "--stop-timeout"),
}
WITH_VALUE = {"--env-file", "-p", "-v", "-u"}


def rendered(name: str) -> list[str]:
    """The options of `podman run` that Nix rendered for a service, but for those of its place."""
    script = (REFERENCE / f"usr/lib/aistack/libexec/podman-aistack-{name}/start").read_text(encoding="utf-8")
    words = shlex.split(script[script.index("exec podman") :].replace("\\\n", " "))[3:]
    found = []
    while words[0].startswith("-"):
        word = words.pop(0)
        value = words.pop(0) if word in WITH_VALUE else None
        if word.partition("=")[0] not in PLACE:
            found.append(f"--user={value}" if word == "-u" else word)
    assert words[0] == f"localhost/aistack/{name}:live"
    return found


SERVICES = sorted(json.loads((REFERENCE / "etc/aistack/stack.json").read_text(encoding="utf-8"))["services"])


@pytest.mark.parametrize("name", SERVICES)
def test_a_container_under_test_has_the_options_of_the_real_one(name: str) -> None:
    service = load(str(REFERENCE / "etc/aistack/stack.json")).services[name]
    assert sorted(container.settings(service)) == sorted(rendered(name))


def test_every_setting_of_a_service_is_an_option(host: fakehost.FakeHost) -> None:
    service = fakehost.service(
        "app",
        user="7:8",
        hardening={
            "noNewPrivileges": False,
            "capDrop": ["all"],
            "capAdd": ["CHOWN", "KILL"],
            "readOnly": True,
            "tmpfs": ["/srv/tmp", "/run:size=1m"],
        },
        resources={"memory": "1g", "cpus": 1.5, "pids": 100},
        devices=["/dev/dri"],
        extraOptions=["--shm-size=1g"],
    )
    host.declare({"app": service})
    assert container.settings(load().services["app"]) == [
        *("--hostname=app", "--no-healthcheck", "--pull=never", "--user=7:8", "--cap-drop=all", "--cap-add=CHOWN"),
        *("--cap-add=KILL", "--read-only", "--tmpfs=/srv/tmp", "--tmpfs=/run:size=1m", "--memory=1g", "--cpus=1.5"),
        *("--pids-limit=100", "--device=/dev/dri", "--shm-size=1g"),
    ]


def test_a_container_ends_by_itself_and_bears_its_label(podman: fakehost.FakeHost) -> None:
    podman.declare({"app": fakehost.service("app", command=["serve"])})
    secrets = podman.root / "run" / "app" / "secrets"
    secrets.mkdir(parents=True)
    (secrets / "KEY").touch()
    container.run(
        load().services["app"],
        image=ID,
        deployment=7,
        networks=["net"],
        alias="app",
        runtime_dir=str(podman.root / "run"),
        mounts=["--mount=x"],
        lifetime=99.6,
    )
    words = podman.calls()[-1].split()
    for word in (
        *("--label=aistack.deploy=7", "--timeout=100", "--stop-timeout=10", "--network=net", "--network-alias=app"),
        *(f"--env-file={podman.root}/run/app/env", f"--volume={secrets}/KEY:/run/secrets/KEY:ro", "--mount=x"),
    ):
        assert word in words, word
    assert words[-2:] == [ID, "serve"]


# --- what attempts come to -------------------------------------------------------------------------------------------


def attempt(number: int, service: str, outcome: str, seconds: float = 1.0, unavailable: float | None = None) -> Attempt:
    """An attempt that ended; with the outcome "" one that did not."""
    ended = None if not outcome else 2.0
    phases = json.dumps({"build": seconds / 2, "test": seconds / 2})
    return Attempt(
        (
            number,
            service,
            "x",
            "restart",
            None,
            None,
            "plan",
            1.0,
            phases,
            1.0,
            ended,
            outcome,
            0,
            "",
            unavailable,
            "{}",
        )
    )


HISTORY = [
    attempt(9, "db", ROLLED_BACK, 40.0, 2.0),
    attempt(1, "app", DEPLOYED, 10.0, 0.5),
    attempt(2, "app", REFUSED, 3.0),
    attempt(4, "app", ROLLED_BACK, 20.0, 1.0),
    attempt(3, "db", DEPLOYED, 12.0, 0.25),
    attempt(5, "app", DEPLOYED, 30.0, 0.25),
    attempt(6, "app", "", 1000.0),
    attempt(7, INCOMING, INTERRUPTED, 500.0),
]


def test_figures_are_of_changes_and_not_of_attempts() -> None:
    found = metrics.summarize(HISTORY)
    # app: at once, then at the third try; db: at once, then not at all so far.
    assert (found.attempts, found.changes, found.first_try) == (6, 4, 2)
    assert found.cycles == pytest.approx((1 + 3 + 1) / 3)
    assert found.outcomes == {
        DEPLOYED: 3,
        REFUSED: 1,
        "test-failed": 0,
        ROLLED_BACK: 2,
        DOWN: 0,
        INTERRUPTED: 0,
    }
    assert found.lost == pytest.approx(63.0)
    assert found.unavailable == pytest.approx(4.0)
    assert found.median == pytest.approx(12.0)
    assert metrics.data(found)["first_try_rate"] == pytest.approx(0.5)
    assert metrics.rows(found)[0][1] == "50 % (2 of 4)"


def test_nothing_is_no_figure() -> None:
    found = metrics.summarize([])
    assert metrics.data(found)["first_try_rate"] is None
    assert [row[1] for row in metrics.rows(found)][:2] == ["- (0 of 0)", "-"]
    assert metrics.summarize([attempt(1, INCOMING, INTERRUPTED)]) == found


_SAMPLE = re.compile(r'([a-z_]+)\{((?:[a-z]+="[^"\\\n]*",?)+)\} (-?[0-9.e+-]+)')


def test_what_prometheus_reads_is_in_its_format() -> None:
    text = metrics.prometheus(HISTORY)
    assert text.endswith("\n")
    typed: dict[str, str] = {}
    helped: set[str] = set()
    values: dict[tuple[str, str], float] = {}
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            _, _, name, kind = line.split()
            assert name not in typed
            typed[name] = kind
        elif line.startswith("# HELP "):
            helped.add(line.split()[2])
        else:
            match = _SAMPLE.fullmatch(line)
            assert match is not None, line
            assert match[1] in typed
            assert (match[1], match[2]) not in values
            values[match[1], match[2]] = float(match[3])
    assert helped == set(typed)
    assert set(typed.values()) == {"counter"}
    assert all(name.endswith("_total") for name in typed)
    assert values["aistack_deploy_attempts_total", 'service="app",outcome="deployed"'] == 2
    assert values["aistack_deploy_changes_total", 'service="db"'] == 2
    assert values["aistack_deploy_lost_seconds_total", 'service="app"'] == 23
    assert not [labels for _, labels in values if "incoming" in labels]
