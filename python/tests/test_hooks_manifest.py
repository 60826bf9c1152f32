"""The hooks' reader of the manifest: everything that is not a whole one is one line and exit code 2."""

from __future__ import annotations

import copy
import json
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fakehost
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from aistack.hooks import manifest, runtime
from aistack.hooks.errors import DEPENDENCY_MISSING, DONE, INVALID, HookError
from aistack.hooks.main import main

if TYPE_CHECKING:
    from collections.abc import Iterator

Place = tuple[str | int, ...]

# What the hooks leave to the command line's complete check: they use none of it.
UNUSED = {
    ("network", "dns"),
    ("rollback", "policy"),
    *(
        ("services", name, *place)
        for name in ("app", "far")
        for place in (
            ("devices",),
            ("extraOptions",),
            ("resources",),
            ("resources", "cpus"),
            ("resources", "memory"),
            ("resources", "pids"),
            ("hardening", "noNewPrivileges"),
            ("hardening", "readOnly"),
            ("hardening", "tmpfs"),
        )
    ),
}
# Keys whose names are the declaration itself: without one the stack is another, not malformed.
NAMES = {
    ("environment", "REDIS_HOST"),
    ("environmentOptions", "REDIS_HOST"),
    ("environmentOptions", "LIMIT"),
    ("overridable", "LIMIT"),
    ("services", "app", "environment", "MODE"),
    ("services", "app"),
}


def whole(root: Path) -> dict[str, Any]:
    """Return a manifest in which every list has something and every object is there."""
    app = fakehost.service(
        "app",
        port=8000,
        publish=[{"address": "127.0.0.1", "hostPort": 1, "containerPort": 8000, "protocol": "tcp"}],
        dependsOn=["redis", "far"],
        wants=["redis"],
        probe=fakehost.probe("exec", None, command=["check"], secret="KEY"),  # noqa: S106
        preflight={
            "files": [{"path": "/etc/passwd", "what": "file"}],
            "freeDisk": [{"path": "/", "megabytes": 0}],
            "devices": ["/dev/null"],
        },
        environment={"MODE": "test"},
        secrets=["KEY"],
        volumes=["/srv:/data"],
        command=["sh", "-c", "one\ntwo"],
        user="1000:1000",
    )
    app["hardening"] |= {"capDrop": ["all"], "capAdd": ["CHOWN"]}
    document = fakehost.manifest(
        root, {"app": app, "redis": fakehost.service("redis"), "far": fakehost.external(fakehost.free_port())}
    )
    document["secrets"] = {"KEY": {"file": str(root / "key"), "as": "file"}}
    document["startup"]["timeoutSeconds"] = 0
    document["environment"]["LIMIT"] = "10"
    document["environmentOptions"]["LIMIT"] = "services.aistack.environment.LIMIT"
    document["overridable"] = {
        "LIMIT": {
            "type": "int",
            "min": 1,
            "max": 20,
            "option": "services.aistack.environment.LIMIT",
            "keys": ["LIMIT"],
        }
    }
    return document


def places(value: object, at: Place = ()) -> Iterator[Place]:
    """Every place below `value`."""
    items: list[tuple[str | int, object]] = []
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list):
        items = list(enumerate(value))
    for key, inner in items:
        yield (*at, key)
        yield from places(inner, (*at, key))


def holder(document: Any, place: Place) -> Any:  # noqa: ANN401  (any JSON value)
    """Return the object or list that `place` is in."""
    for key in place[:-1]:
        document = document[key]
    return document


def used_by_nobody(place: Place) -> bool:
    """Whether no hook reads what is there."""
    return any(place[:length] in UNUSED for length in range(1, len(place) + 1))


# One container and one external service: a second container would only repeat the first.
ALL = sorted((place for place in places(whole(Path("/x"))) if place[:2] != ("services", "redis")), key=str)
_BAD: list[object] = [
    None,
    True,
    -1,
    0,
    1.5,
    float("inf"),
    float("nan"),
    10**400,
    "",
    "\0",
    "a\nb",
    "../x",
    "\ud800",
    "\x1b[2J",
]
_BAD += [[], {}, [None], [[]], {"x": None}, {"../x": {}}, "9" * 5000]


@pytest.fixture
def path(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where this process reads its manifest."""
    # In memory where there is such a place: hundreds of starts wait for the disk otherwise.
    memory = Path("/dev/shm")  # noqa: S108  (a fresh directory is made below it)
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        root = Path(folder)
        (root / "key").write_text("secret\n")
        monkeypatch.setenv("AISTACK_MANIFEST", str(root / "stack.json"))
        monkeypatch.delenv("AISTACK_DEBUG", raising=False)
        yield root / "stack.json"


def load(path: Path, text: str | bytes) -> manifest.Manifest | str:
    """Return the manifest of a text, or the line that says why there is none."""
    path.write_bytes(text if isinstance(text, bytes) else text.encode(errors="surrogatepass"))
    try:
        return manifest.load(str(path))
    except HookError as error:
        caught = error
    assert caught.code == INVALID
    assert str(caught).isprintable(), ascii(str(caught))
    assert str(path) in str(caught)
    return str(caught)


def test_a_whole_manifest_is_read(path: Path) -> None:
    found = load(path, json.dumps(whole(path.parent)))
    assert isinstance(found, manifest.Manifest)
    app = found.services["app"]
    assert (app.name, app.depends_on, app.user, app.cap_drop) == ("app", ["redis", "far"], "1000:1000", ["all"])
    assert found.services["far"].external
    assert not app.external


def test_the_rendered_reference_is_read() -> None:
    reference = Path(__file__).parents[2] / "bundle/reference/etc/aistack/stack.json"
    assert set(manifest.load(str(reference)).services) >= {"postgres", "redis", "qdrant", "llama-cpp", "app"}


@pytest.mark.parametrize("place", [place for place in ALL if isinstance(place[-1], str)], ids=str)
def test_a_missing_key(path: Path, place: Place) -> None:
    document = whole(path.parent)
    del holder(document, place)[place[-1]]
    found = load(path, json.dumps(document))
    if place in UNUSED | NAMES:
        assert isinstance(found, manifest.Manifest)
    elif place == ("secrets", "KEY"):
        assert isinstance(found, manifest.Manifest)  # the start says which option names its file
    elif place == ("services", "far"):
        assert "which is not a service" in str(found)
    else:
        assert f"{'.'.join(str(part) for part in place[-1:])} " in str(found)
        assert "is malformed: " in str(found) or place == ("schemaVersion",)


@pytest.mark.parametrize("place", [place for place in ALL if not used_by_nobody(place)], ids=str)
def test_a_wrong_value_never_surprises_a_start(
    path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], place: Place
) -> None:
    def answer(command: list[str], _: float) -> tuple[int, str, str]:
        images = "".join(f"registry.example/{name}:1\t{name * 9}\n" for name in ("app", "redis"))
        return 0, images if command[:3] == ["podman", "image", "list"] else "", ""

    monkeypatch.setattr(runtime, "run", answer)
    accepted: list[str] = []
    for bad in _BAD:
        document = whole(path.parent)
        holder(document, place)[place[-1]] = bad
        text = json.dumps(document)
        if isinstance(load(path, text), manifest.Manifest):
            accepted.append(text)
    # The strangest of those that a reader can let pass is the last one.
    for text in accepted[-1:]:
        path.write_text(text)
        code = main(["start-pre", "app"])
        said = capsys.readouterr().err
        assert "unexpected" not in said, said
        assert code in {DONE, INVALID, DEPENDENCY_MISSING} or "cannot" in said, said


@pytest.mark.parametrize(
    ("place", "bad", "words"),
    [
        (("network",), [], "network is not an object"),
        (("network", "name"), "../net", "network.name is not a name of letters, digits, dots, dashes and underscores"),
        (("network", "interface"), "-rf", "network.interface is not a name of letters"),
        (("network", "subnet"), "10.89.100/24", "network.subnet is not a subnet of IPv4"),
        (("network", "subnet"), "10.89.100.0/33", "network.subnet is not a subnet of IPv4"),
        (("network", "subnet"), "10.89.256.0/24", "network.subnet is not a subnet of IPv4"),
        (("startup", "dependencyCheck"), "yes", "startup.dependencyCheck is not true or false"),
        (("startup", "timeoutSeconds"), "30", "startup.timeoutSeconds is not a number of seconds"),
        (("rollback", "retain"), True, "rollback.retain is not a whole number"),
        (("rollback", "retain"), 1.0, "rollback.retain is not a whole number"),
        (("stateDir",), "var/lib", "stateDir is not an absolute path"),
        (("secrets", "KEY", "as"), "both", "secrets.KEY.as is none of env, file"),
        (("secrets", "../KEY"), {"file": "/x", "as": "env"}, "secrets has a key '../KEY', which is not a name of"),
        (("services", "../app"), {}, "services has a key '../app', which is not a name of lower-case letters"),
        (("services", "-rf"), {}, "services has a key '-rf', which is not a name of"),
        (("services", "a\nb"), {}, r"services has a key 'a\nb', which is not a name of"),
        (("services", "x" * 64), {}, "which is not a name of"),
        (("services", "app", "dependsOn"), ["redi"], "services.app.dependsOn names redi, which is not a service"),
        (("services", "app", "unit"), None, "services.app is not external, and has no unit"),
        (("services", "app", "image"), None, "services.app is not external, and has no image"),
        (("services", "app", "port"), 65536, "services.app.port is not a port"),
        (("services", "app", "publish", 0, "protocol"), "sctp", "services.app.publish[0].protocol is none of tcp, udp"),
        (("services", "app", "publish", 0, "hostPort"), 0, "services.app.publish[0].hostPort is not a port"),
        (("services", "app", "probe", "kind"), "ping", "services.app.probe.kind is none of exec, http,"),
        (("services", "app", "probe", "command"), [], "services.app.probe.command is empty"),
        (("services", "app", "probe", "timeoutSeconds"), 0, "timeoutSeconds is not a number of seconds above 0"),
        (("services", "app", "probe", "timeoutSeconds"), 1e300, "timeoutSeconds is not a number of seconds above 0"),
        (("services", "app", "environment", "MODE"), "a\nB=c", "services.app.environment.MODE is not text on one line"),
        (("services", "app", "environment", "A=B"), "c", "services.app.environment has a key 'A=B', which is not"),
        (("services", "app", "user"), "root", "services.app.user is not a numeric user, or user:group"),
        (("services", "app", "user"), "4294967295", "services.app.user is not a numeric user, or user:group"),
        (("services", "app", "volumes"), "/srv:/data", "services.app.volumes is not a list"),
        (("services", "app", "command"), ["\0"], "services.app.command[0] is not text"),
        (("services", "app", "preflight", "freeDisk", 0, "megabytes"), -1, "megabytes is not a whole number"),
        (("services", "redis", "probe"), fakehost.probe("redis", None), "services.redis.probe.port is missing"),
        (("overridable", "LIMIT", "type"), "float", "overridable.LIMIT.type is none of bool, int, string"),
        (("overridable", "LIMIT", "max"), "20", "overridable.LIMIT.max is not an integer"),
        (("overridable", "LIMIT", "min"), True, "overridable.LIMIT.min is not an integer"),
        (("overridable", "LIMIT", "keys"), [], "overridable.LIMIT.keys is not the same for all of them"),
        (("overridable", "LIMIT", "keys"), ["LIMIT", "X"], "overridable.LIMIT.keys is not the same for all of them"),
        (("overridable", "REDIS_PORT"), {}, "overridable.REDIS_PORT.type is missing"),
        (("environment",), {}, "overridable.LIMIT is not a key of environment"),
        (("selfHealing", "enable"), "no", "selfHealing.enable is not true or false"),
    ],
)
def test_the_line_names_the_place_and_what_is_wrong(path: Path, place: Place, bad: object, words: str) -> None:
    document = whole(path.parent)
    holder(document, place)[place[-1]] = bad
    assert words in str(load(path, json.dumps(document)))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "is not JSON"),
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ('{"schemaVersion": ' + "9" * 5000 + "}", "is not JSON"),
        (b"\xff\xfe", "cannot read the manifest"),
        ("[]", "has schemaVersion None, this program reads 1"),
        ("{}", "has schemaVersion None, this program reads 1"),
        ('{"schemaVersion": 2}', "has schemaVersion 2, this program reads 1"),
        ('{"schemaVersion": true}', "has schemaVersion True, this program reads 1"),
        ('{"schemaVersion": "1\\u001b[2J"}', "has schemaVersion '1"),
        ('{"schemaVersion": 1}', "is malformed: stateDir is missing"),
    ],
)
def test_what_is_no_manifest_at_all(path: Path, text: str | bytes, words: str) -> None:
    assert words in str(load(path, text))


def test_no_manifest(path: Path) -> None:
    with pytest.raises(HookError, match=r"no manifest at .*stack\.json: is the stack installed\?") as caught:
        manifest.load(str(path))
    assert caught.value.code == INVALID


def test_a_manifest_that_cannot_be_read(path: Path) -> None:
    path.mkdir()
    with pytest.raises(HookError, match=r"cannot read the manifest .*Is a directory") as caught:
        manifest.load(str(path))
    assert caught.value.code == INVALID


_JSON: st.SearchStrategy[object] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)
_fuzz = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@_fuzz
@given(document=_JSON)
def test_any_json(path: Path, document: object) -> None:
    assert isinstance(load(path, json.dumps(document)), str)


@_fuzz
@given(text=st.binary())
def test_any_bytes(path: Path, text: bytes) -> None:
    assert isinstance(load(path, text), str)


@_fuzz
@given(places=st.lists(st.sampled_from(ALL), min_size=1, max_size=3), values=st.lists(_JSON, min_size=3, max_size=3))
def test_any_value_in_any_place(path: Path, places: list[Place], values: list[object]) -> None:
    document = whole(path.parent)
    for place, value in zip(places, values, strict=False):
        try:
            holder(document, place)[place[-1]] = copy.deepcopy(value)
        except (KeyError, IndexError, TypeError):
            continue  # another change took the place away
    load(path, json.dumps(document))


# --- what is asked of it ---------------------------------------------------------------------------------------------


def chain(root: Path, **needs: list[str]) -> manifest.Manifest:
    """Return a stack of these services and their hard dependencies."""
    services = {name: fakehost.service(name, dependsOn=names) for name, names in needs.items()}
    return manifest.Manifest(fakehost.manifest(root, services), "stack.json")


def test_dependents_and_their_closure(tmp_path: Path) -> None:
    stack = chain(tmp_path, db=[], aidb=["db"], hub=["aidb", "db"], aider=[], ralph=["aider"], web=["hub"])
    assert stack.dependents("db") == ["aidb", "hub"]
    assert stack.closure("db") == ["aidb", "hub", "web"]
    assert stack.closure("web") == []


def test_a_cycle_has_an_end(tmp_path: Path) -> None:
    stack = chain(tmp_path, a=["c"], b=["a"], c=["b"])
    assert stack.closure("a") == ["b", "c"]


def test_an_unknown_service_is_told_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(HookError, match=r"no service is called 'redi'; declared in stack\.json: app, db") as caught:
        chain(tmp_path, db=[], app=["db"]).service("redi")
    assert caught.value.code == INVALID


def test_an_external_service_has_no_container(tmp_path: Path) -> None:
    stack = manifest.Manifest(fakehost.manifest(tmp_path, {"db": fakehost.external(5432)}), "stack.json")
    with pytest.raises(HookError, match=r"db runs at 127\.0\.0\.1:5432, outside this stack") as caught:
        stack.container_service("db")
    assert caught.value.code == INVALID
