"""aistack doctor: nothing to say of a healthy stack; of a broken one each fault, and a command that mends it."""

SECRET = manifest()["secrets"]["POSTGRES_PASSWORD"]["file"]
JOURNAL = f"{manifest()['stateDir']}/releases.db"
TIMER = f"aistack-health-{manifest()['services']['app']['probe']['intervalSeconds']}.timer"
SUMS = "/usr/lib/aistack/SHA256SUMS"

Finding = tuple[str, str, str, str]


def doctor() -> tuple[int, list[Finding]]:
    """The exit code, and what was found that is not ok: mark, area, words, fix."""
    code, out = machine.execute("aistack doctor --json")
    document = json.loads(out)
    assert document["exit_code"] == code, document
    found = [one for one in document["findings"] if one["mark"] != "ok"]
    return code, [(one["mark"], one["area"], one["what"], one["fix"]) for one in found]


def finds(*expected: Finding) -> None:
    """Exactly these are found: what was mended before is not among them any more."""
    code, found = doctor()
    assert found == list(expected), f"expected {expected}\nfound {found}"
    assert code == (8 if any(mark == "fail" for mark, *_ in expected) else 0), code


def mend(*findings: Finding) -> None:
    """Run the fixes as they are printed."""
    for _, _, what, fix in findings:
        machine.log(f"{what}: {fix}")
        machine.succeed(fix, timeout=120)


machine.wait_for_unit("multi-user.target")

with subtest("a stack that does not run is said to be stopped, and nothing else"):
    finds(("warn", "units", "the stack is stopped", "systemctl start aistack.target"))

start_good_stack()

with subtest("a healthy stack: every line is ok"):
    code, shown = machine.execute("aistack doctor 2>/dev/null")
    assert code == 0, shown
    lines = shown.splitlines()
    assert all(line.startswith("ok ") for line in lines), shown
    assert len({line.split()[1] for line in lines}) == 13, shown

with subtest("a name server that died"):
    machine.succeed("kill -KILL $(pgrep aardvark-dns)")
    code, found = doctor()
    assert code == 8
    network = [one for one in found if one[1] == "network"]
    assert any("name server dead" in one[2] for one in network), found
    assert {(mark, fix) for mark, _, _, fix in network} == {("fail", "aistack network repair")}, found
    network = network[:1]
    mend(*network)

with subtest("the journal of releases cut to nothing"):
    machine.succeed(f"rm -f {JOURNAL}-wal {JOURNAL}-shm; truncate --size 0 {JOURNAL}")
    words = (
        f"{JOURNAL} is damaged (it is empty: what history it had is gone); running services are not touched. "
        f"Keep a copy and let the next start begin a new one: mv {JOURNAL} {JOURNAL}.damaged"
    )
    units = " ".join(unit(service) for service in sorted(SERVICES))
    emptied = ("fail", "releases", words, f"systemctl restart {units}")
    finds(emptied)
    mend(emptied)

with subtest("many faults at once: a line for each, and its fix"):
    release = current("redis")
    image, short = release["image_id"], release["image_id"][:12]
    live, kept = "localhost/aistack/redis:live", f"localhost/aistack/redis:{short}"
    redis = f"release {release['id']} ({release['image_ref']}, image {short})"
    machine.succeed(
        f"chmod 0644 {SECRET}",
        f"podman untag {image} {live} {kept}",
        f"systemctl stop {unit('app')} {TIMER}",
    )
    faults = [
        (
            "fail",
            "units",
            f"{TIMER} is not armed (inactive)",
            f"systemctl restart {TIMER}",
        ),
        (
            "fail",
            "secrets",
            f"secret POSTGRES_PASSWORD: everybody may use {SECRET} (mode 0644)",
            f"chmod 0400 {SECRET}",
        ),
        ("fail", "services", "app is stopped", f"systemctl start {unit('app')}"),
        ("warn", "images", f"redis: the tag {live} is missing", f"podman tag {short} {live}"),
        (
            "warn",
            "images",
            f"redis: the tag {kept}, which keeps the image of {redis}, is missing",
            f"podman tag {short} {kept}",
        ),
    ]
    finds(*faults)
    _, shown = machine.execute("aistack doctor 2>/dev/null")
    lines = [" ".join(line.split()) for line in shown.splitlines()]
    for mark, area, what, fix in faults:
        assert lines[lines.index(f"{mark} {area} {what}") + 1] == f"fix: {fix}", shown
    mend(*faults)

if machine.execute(f"test -e {SUMS}")[0] == 0:
    with subtest("installed files that somebody edited or removed, and a unit that somebody disabled"):
        (again,) = machine.succeed(f"sed -n 's/^# Installed by: //p' {SUMS}").splitlines()
        edited = f"/etc/systemd/system/{unit('redis')}"
        removed = "/usr/lib/aistack/libexec/podman-aistack-redis/pre-stop"
        machine.succeed(
            f"systemctl disable {unit('qdrant')}",
            f"sed -i 's/^Description=.*/Description=edited/' {edited}",
            f"rm {removed}",
        )
        files = [
            ("fail", "files", f"{edited} was edited since it was installed", again),
            ("fail", "files", f"{removed} is missing", again),
        ]
        disabled = (
            "fail",
            "units",
            f"{unit('qdrant')} is not enabled: it is not started at boot",
            f"systemctl enable {unit('qdrant')}",
        )
        old = (
            "warn",
            "units",
            f"{unit('redis')} was changed on disk, and systemd uses the old one",
            "systemctl daemon-reload",
        )
        code, found = doctor()
        assert sorted(found) == sorted([*files, disabled, old]), found
        mend(disabled, old)
        finds(*files)
        mend(files[0])

with subtest("all of it is mended"):
    finds()

with subtest("a podman that does not answer: that is said, and the rest is checked"):
    machine.succeed("mkdir -p /tmp/bin; printf '#!/bin/sh\\nexit 1\\n' > /tmp/bin/podman; chmod +x /tmp/bin/podman")
    code, shown = machine.execute("PATH=/tmp/bin:$PATH aistack doctor 2>&1")
    assert code == 8, shown
    assert "Traceback" not in shown, shown
    assert "could not be checked: podman info failed" in shown, shown
    assert "secret POSTGRES_PASSWORD is there" in shown, shown

with subtest("a manifest that is no use: exit code 2, and one line"):
    machine.succeed("echo '{' > /tmp/stack.json")
    code, shown = machine.execute("AISTACK_MANIFEST=/tmp/stack.json aistack doctor 2>&1")
    assert code == 2, shown
    assert shown.count("\n") == 1, shown
    assert "is not JSON" in shown, shown
