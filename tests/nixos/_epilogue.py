"""After every scenario: `aistack status` says what systemd and podman say, and nothing is left behind.

Both runners put this file after each script, whatever that leaves: a stack that serves, one that is stopped or down, or
none at all. It waits, for a bounded time, until nothing is on its way any more.
"""

from datetime import datetime

SETTLES = 120  # seconds; longer than any start, retry or rollback of the reference stack takes
OUR_UNITS = "'podman-aistack-*' 'aistack-*'"
# What systemd has to say of a unit's ActiveState for each of status's words, once nothing is on its way.
WORDS = {
    "ready": "active",
    "degraded": "active",
    "waiting": "failed",
    "failed": "failed",
    "stopped": "inactive",
}


def shown_units() -> dict[str, dict[str, str]]:
    """What systemd knows of every unit of the stack that it has in memory, and of those that failed, by name."""
    wanted = "Id,ActiveState,SubState,Result,MainPID,InvocationID,NRestarts,Job,StateChangeTimestampMonotonic"
    names = "systemctl list-units --all --plain --no-legend --full"
    listed = machine.succeed(f"{{ {names} {OUR_UNITS}; {names} --state failed; }} | awk '{{ print $1 }}' | sort -u")
    found: dict[str, dict[str, str]] = {}
    if listed.split():
        shown = machine.succeed(f"systemctl show --property {wanted} -- {' '.join(listed.split())}")
        for block in shown.strip().split("\n\n"):
            fields = dict(line.partition("=")[::2] for line in block.splitlines())
            found[fields["Id"]] = fields
    return found


def on_their_way(units: dict[str, dict[str, str]]) -> list[str]:
    """The units that change by themselves within moments: they start, stop, roll back, check, or wait to do so."""
    helpers = ("aistack-rollback@", "aistack-bless@", "aistack-retry@", "aistack-health-")
    return [
        f"{name} is {fields['ActiveState']}"
        for name, fields in units.items()
        if fields["ActiveState"] not in ("active", "inactive", "failed")
        or fields.get("Job", "0") not in ("", "0")
        or (name.startswith(helpers) and name.endswith(".service") and fields["ActiveState"] == "active")
    ]


def stack_containers() -> dict[str, dict[str, Any]] | None:
    """Every container that is called as the stack calls its own; None where one went away while podman was asked."""
    code, out = machine.execute(
        "podman ps --all --quiet --filter name=^aistack- | xargs --no-run-if-empty podman container inspect"
    )
    if code != 0:
        return None
    found = json.loads(out) if out.strip() else []
    return {container["Name"]: container for container in found}


def settled() -> tuple[dict[str, dict[str, str]], dict[str, dict[str, Any]], dict[str, Any], int]:
    """Units, containers, and what status says with its exit code: of one moment in which nothing was on its way."""
    deadline = time.monotonic() + SETTLES
    while True:
        before = shown_units()
        moving = on_their_way(before)
        if not moving:
            code, out = machine.execute("aistack status --json")
            containers = stack_containers()
            if containers is not None and shown_units() == before:
                return before, containers, json.loads(out), code
        assert time.monotonic() < deadline, f"after {SETTLES} s things are still on their way: {moving}"
        time.sleep(0.2)


def judged_unhealthy(service: str) -> bool:
    """Whether the health checks have judged the container of a service that runs now, and found it unhealthy."""
    _, out = machine.execute(
        f"cat /run/aistack/{service}/verdict.json /run/aistack/{service}/health.json | jq --slurp ."
    )
    found = json.loads(out) if out.strip() else []
    return len(found) == 2 and found[1]["state"] == "unhealthy" and found[0].get("readyAt") == found[1]["start"]


def check_service(
    row: dict[str, Any], units: dict[str, dict[str, str]], containers: dict[str, dict[str, Any]], *, judged: bool
) -> None:
    """Status's row of one service against its unit, its container, and the helpers that belong to it.

    `judged` is whether the health checks count it as unhealthy.
    """
    name, state, told, release = row["service"], row["state"], row["unit"], row["release"]
    seen = units.get(unit(name), {"ActiveState": "inactive", "SubState": "dead", "Result": "success", "MainPID": "0"})
    container = containers.get(f"aistack-{name}")
    what = f"{name}: {row}\nsystemd: {seen}\npodman: {container and (container['Image'], container['State'])}"

    words = (told["active"], told["sub"], told["result"])
    assert words == (seen["ActiveState"], seen["SubState"], seen["Result"]), f"status has other words than {what}"
    assert WORDS.get(state) == seen["ActiveState"], f"status calls it {state}: {what}"
    assert (state == "degraded") == (judged and seen["ActiveState"] == "active"), f"health says otherwise: {what}"
    assert state == "stopped" or (row["reason"] is None) == (state == "ready"), f"it wants a reason, or has one: {what}"

    timer = units.get(f"aistack-bless@{name}.timer", {}).get("ActiveState") == "active"
    retry = units.get(f"aistack-retry@{name}.timer", {}).get("ActiveState") == "active"
    if WORDS[state] != "active":
        assert container is None, f"a container without its unit: {what}"
        assert not timer, f"a probation without its service: {what}"
        assert not retry or WORDS[state] == "failed", f"it was stopped, and its next start is due: {what}"
        return
    assert container is not None, f"a unit without its container: {what}"
    assert container["State"]["Status"] == "running", f"it serves, and its container does not run: {what}"
    assert str(container["State"]["ConmonPid"]) == seen["MainPID"], f"another's container: {what}"
    if release is None:
        # The file was lost, or set aside: what runs goes on without, and its next start records it anew.
        assert releases(name) == [], f"nobody knows what runs: {what}"
        return
    assert container["Image"].removeprefix("sha256:") == release["image_id"], f"another image runs: {what}"
    assert release["state"] in ("probation", "good"), f"it serves with a release that is {release['state']}: {what}"
    assert timer == (release["state"] == "probation"), f"its probation has no end, or had one already: {what}"


def check_failed_units(rows: list[dict[str, Any]], units: dict[str, dict[str, str]]) -> None:
    """The units that systemd calls failed are those that status says so of, and the rollbacks that could not help."""
    failed = {name for name, fields in units.items() if fields["ActiveState"] == "failed"}
    down = {row["service"] for row in rows if WORDS.get(row["state"]) == "failed"}
    helpers = {f"aistack-rollback@{name}.service" for name in down}
    assert failed - helpers == {unit(name) for name in down}, f"failed units: {sorted(failed)}, status: {rows}"


def check_journal(rows: list[dict[str, Any]]) -> None:
    """Each release that is bad is spoken of in the journal, with the reason that is on record."""
    said = machine.execute("journalctl --output cat --no-pager --quiet | grep -F 'release '")[1].splitlines()
    # What is older than all it has is no fault of the stack's: journald starts anew when its file is damaged.
    oldest = machine.succeed("journalctl --lines +1 --output short-iso-precise --no-pager --quiet").split()[0]
    since = datetime.fromisoformat(oldest)
    own = {row["service"] for row in rows}
    for release in releases():
        known = release["service"] in own and datetime.fromisoformat(release["changed"]) > since
        if known and release["state"] == "bad":
            named = [line for line in said if f"release {release['id']} (" in line and release["service"] in line]
            assert any(release["reason"] in line for line in named), f"nothing explains {release}:\n{named}"


def check_end() -> None:
    """What every scenario has to leave behind: one truth, whomever one asks."""
    assert machine.is_up(), "the scenario left the machine off: let it boot, so that one can look at it"
    if machine.execute("test -e /etc/aistack/stack.json")[0] != 0:
        assert stack_containers() == {}, "the stack is not installed, and has containers"
        assert shown_units() == {}, "the stack is not installed, and has units"
        return
    units, containers, document, code = settled()
    rows = document["services"]
    own = [row for row in rows if row["external"] is None]
    for row in own:
        check_service(row, units, containers, judged=judged_unhealthy(row["service"]))
    assert set(containers) <= {f"aistack-{row['service']}" for row in own}, f"whose are they? {sorted(containers)}"
    check_failed_units(own, units)
    states = {row["state"] for row in rows}
    assert code == document["exit_code"], f"status ends with {code} and says {document['exit_code']}"
    assert (code == 0) == (states == {"ready"} and not document["problems"]), document
    assert (code == 8) >= bool(states & {"failed", "stopped"}), document
    if machine.execute("test -e /var/lib/aistack/releases.db")[0] == 0:
        check_journal(own)


with subtest("at the end status, systemd and podman agree, and nothing is left behind"):
    check_end()
