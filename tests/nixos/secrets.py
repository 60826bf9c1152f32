# The value of a secret is where somebody named it, and nowhere else.

SECRET = "/etc/aistack/secrets/postgres-password"
KEY = "POSTGRES_PASSWORD"
NAMED = ["app", "postgres"]
OTHERS = ["llama-cpp", "qdrant", "redis"]

# The value is never on a command line of this script: grep reads it from its file.
FIND = f"grep --fixed-strings --file {SECRET} --text"


def files(*folders: str) -> list[str]:
    """The files in some folders, or where their links lead, with the value in them."""
    # 1: there is none. 2: something could not be read, as links that lead nowhere and files that end meanwhile.
    looking = f"{FIND} --dereference-recursive --files-with-matches --devices=skip --no-messages {' '.join(folders)}"
    code, out = machine.execute(f"test -s {SECRET} || exit 3; {looking}")
    assert code in (0, 1, 2), code
    return sorted(out.split())


def has_value(command: str) -> bool:
    """Whether a command prints the value. It may fail."""
    code, _ = machine.execute(f"{{ {command} || test $? -lt 125; }} > /tmp/printed 2>&1; {FIND} --quiet /tmp/printed")
    assert code in (0, 1), f"{command}: {code}"
    assert machine.succeed("stat --format %s /tmp/printed; rm /tmp/printed").strip() != "0", f"{command} said nothing"
    return code == 0


def namespaces(service: str) -> str:
    """What the processes of a container have in common, and with no other."""
    pid = machine.succeed(f"podman container inspect --format '{{{{.State.Pid}}}}' aistack-{service}").strip()
    return machine.succeed(f"readlink /proc/{pid}/ns/mnt").strip()


def check_processes(where: list[str]) -> None:
    """The value is in no command line, and in the environment of those containers' processes only."""
    assert machine.execute(f"{FIND} --files-with-matches --no-messages /proc/[0-9]*/cmdline")[1] == ""
    found = machine.execute(f"{FIND} --files-with-matches --no-messages /proc/[0-9]*/environ")[1].split()
    # One that ended meanwhile has no name space any more, and is none of those that stay.
    links = [machine.execute(f"readlink {file.replace('environ', 'ns/mnt')}")[1].strip() for file in found]
    assert {link for link in links if link} == {namespaces(service) for service in where}, found


def check_inspect(where: list[str]) -> None:
    """podman shows the value for those containers only."""
    shown = [service for service in sorted(SERVICES) if has_value(f"podman container inspect aistack-{service}")]
    assert shown == where, shown
    assert not has_value("podman image inspect $(podman image list --quiet)")


start_good_stack()

with subtest("the containers that name it get it, in a file that is root's alone"):
    assert files("/run/aistack") == [f"/run/aistack/{service}/env" for service in NAMED]
    for service in NAMED:
        value = f"sed 's/^/{KEY}=/' {SECRET}"
        machine.succeed(f"{value} | cmp - <(grep ^{KEY}= /run/aistack/{service}/env)")
    for service in SERVICES:
        modes = machine.succeed(f"stat --format '%a %U %G' /run/aistack/{service} /run/aistack/{service}/env")
        assert modes.splitlines() == ["700 root root", "400 root root"], modes

with subtest("it is in no unit, no manifest, no program, no release, no volume and no log file"):
    program = machine.succeed(f"dirname $(readlink --canonicalize {hook().split()[-1]})").strip()
    scripts = machine.succeed(
        "systemctl show --property ExecStart,ExecStartPre,ExecStop,ExecStopPost 'podman-aistack-*' "
        "| grep --only-matching 'path=[^ ]*' | cut -d= -f2 | sort --unique"
    ).split()
    assert len(scripts) > 3 * len(SERVICES), scripts
    found = files("/etc", "/var/lib/aistack", "/var/log", "/var/tmp", "/root", program, *scripts)
    assert found == [SECRET], found

with subtest("what podman keeps of it is root's alone"):
    storage = "/var/lib/containers/storage"
    kept = files("/run", "/tmp", f"{storage}/overlay-containers", f"{storage}/libpod", f"{storage}/db.sql*")
    assert len(kept) > len(NAMED), kept
    for file in kept:
        owned = machine.succeed(f"namei --modes --owners {file}").splitlines()
        private = [line for line in owned if line.split()[0][4:10] == "------" and line.split()[1] == "root"]
        assert private, f"{file} can be read:\n{owned}"

with subtest("it is not in the journal, in any field of it"):
    assert not has_value("journalctl --output export --all")

with subtest("podman inspect shows it for the containers that name it only"):
    check_inspect(NAMED)

with subtest("no process has it on its command line, and none but theirs in its environment"):
    check_processes(NAMED)

with subtest("aistack tells nobody, whatever it is asked"):
    for command in ("status", "preflight", "releases"):
        assert not has_value(f"aistack {command}"), command
        assert not has_value(f"aistack {command} --json"), command
    assert not has_value("cat /run/aistack/*/verdict.json")
    assert not has_value("cat /etc/aistack/.env")

with subtest("a missing secret stops the start, with its key and its file in the message"):
    machine.succeed(f"systemctl stop {unit('app')} {unit('postgres')}; mv {SECRET} {SECRET}.kept")
    since = cursor()
    for service in NAMED[::-1]:
        machine.fail(f"systemctl start {unit(service)}")
        said = journal(since, f"--unit {unit(service)}")
        assert f"  secret {KEY}: secret missing: {SECRET} does not exist; create it (mode 0400)" in said, said
        assert machine.execute(f"podman container exists aistack-{service}")[0] == 1
    machine.succeed(f"mv {SECRET}.kept {SECRET}")
    assert not has_value("journalctl --output export --all")

with subtest("a secret that is given as a file is in no environment at all"):
    changed = manifest()
    changed["secrets"][KEY]["as"] = "file"
    use_manifest(write_manifest(changed))
    for service in NAMED:
        # What Nix renders for such a secret: one more volume.
        source = machine.succeed(
            f"systemctl show --property ExecStart {unit(service)} | grep --only-matching 'path=[^ ]*' | cut -d= -f2"
        ).strip()
        folder = f"/run/systemd/system/{unit(service)}.d"
        volume = f"--volume=/run/aistack/{service}/secrets/{KEY}:/run/secrets/{KEY}:ro"
        machine.succeed(f'sed "s|\'*--pull=never|{volume} &|" {source} > /run/start-{service}')
        machine.succeed(f"grep -e {volume} /run/start-{service}; chmod +x /run/start-{service}; mkdir -p {folder}")
        machine.succeed(f"printf '[Service]\\nExecStart=\\nExecStart=/run/start-{service}\\n' > {folder}/file.conf")
    machine.succeed("systemctl daemon-reload")
    machine.succeed(f"systemctl reset-failed {unit('postgres')} {unit('app')}")
    machine.succeed(f"systemctl start {unit('app')}")
    for service, owner in (("app", "1000"), ("postgres", "999")):
        env = machine.succeed(f"cat /run/aistack/{service}/env").splitlines()
        assert f"{KEY}_FILE=/run/secrets/{KEY}" in env, env
        mode = machine.succeed(f"stat --format '%a %u %g' /run/aistack/{service}/secrets/{KEY}").strip()
        assert mode == f"400 {owner} {owner}", mode
        machine.succeed(f"podman exec aistack-{service} cat /run/secrets/{KEY} | cmp - <(tr --delete '\\n' < {SECRET})")
    assert files("/run/aistack") == [f"/run/aistack/{service}/secrets/{KEY}" for service in NAMED]
    check_inspect([])
    check_processes([])
    assert not has_value("journalctl --output export --all")
    machine.succeed(APP_SERVES)
