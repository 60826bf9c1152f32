# A rendered stack is installed on a running host, installed again after changes, and taken away.
# nixos: skip it is about bundle/install, which hosts without NixOS use

SOURCES = "/usr/src/aistack"
INSTALL = f"{SOURCES}/bundle/install"
UNINSTALL = f"{SOURCES}/bundle/uninstall"
REFERENCE = f"{SOURCES}/bundle/reference"
# What a running system writes whatever we do, and podman's own settings and storage.
VOLATILE = ["/dev", "/proc", "/sys", "/tmp", "/usr/src", "/var/cache", "/var/lib/systemd", "/var/log"]
VOLATILE += ["/etc/containers", "/var/lib/containers"]


def host_files() -> set[str]:
    """Every file and directory of the host, apart from what comes and goes by itself."""
    pruned = " -o ".join(f"-path {path}" for path in VOLATILE)
    found = machine.succeed(f"find / -xdev \\( {pruned} \\) -prune -o -printf '%y %p\\n'")
    return set(found.splitlines())


def provide() -> None:
    """Give the host what is the administrator's to give: the model and the secret."""
    machine.succeed(
        "install -D -m 0644 /tmp/kept/tiny.gguf /var/lib/aistack/models/tiny.gguf",
        "install -D -m 0400 /tmp/kept/password /etc/aistack/secrets/postgres-password",
    )


with subtest("systemd finds nothing to say about the units"):
    units = machine.succeed("grep '^/etc/systemd/system/' /var/lib/aistack/installed-files").split()
    names = [path.rpartition("/")[2].replace("@.", "@app.") for path in units]
    assert len(names) > len(SERVICES)
    assert machine.succeed(f"systemd-analyze verify {' '.join(names)} 2>&1").strip() == ""

with subtest("taken away with its data, nothing is left"):
    machine.succeed(
        "mkdir /tmp/kept",
        "cp /var/lib/aistack/models/tiny.gguf /tmp/kept/",
        "cp /etc/aistack/secrets/postgres-password /tmp/kept/password",
        f"{UNINSTALL} --purge >&2",
    )
    clean = host_files()
    assert not [line for line in clean if "aistack" in line]

with subtest("a host that is not ready is told so, and the stack is not said to be up"):
    code, out = machine.execute(f"{INSTALL} --start 2>&1", timeout=120)
    assert code == 8, out
    assert "podman-aistack-postgres.service is not running" in out, out
    machine.succeed(f"{UNINSTALL} --purge >&2")
    left = host_files() - clean
    assert not left, left

with subtest("one command installs and starts the stack"):
    provide()
    machine.succeed(f"{INSTALL} --start >&2", timeout=120)
    machine.succeed(f"{APP_SERVES} >&2")
    assert machine.succeed("systemctl is-enabled aistack.target").strip() == "enabled"

with subtest("installing the same again restarts nothing"):
    before = running_units()
    machine.succeed(f"{INSTALL} --start >&2")
    assert running_units() == before

with subtest("a service that was stopped by hand is started again, when asked to"):
    machine.succeed(f"systemctl stop {unit('app')}", f"{INSTALL} >&2")
    assert active_state("app") == "inactive"
    machine.succeed(f"{INSTALL} --start >&2")
    assert active_state("app") == "active"
    before = running_units()

with subtest("a changed unit is restarted, when asked to, and no other"):
    machine.succeed(
        f"cp -r {REFERENCE} /tmp/newer",
        "sed -i 's/^Description=.*/Description=changed/' /tmp/newer/etc/systemd/system/podman-aistack-redis.service",
        f"{INSTALL} /tmp/newer >&2",
    )
    assert running_units() == before
    assert "would restart podman-aistack-redis.service" in machine.succeed(f"{INSTALL} --dry-run --start /tmp/newer")
    machine.succeed(f"{INSTALL} --start /tmp/newer >&2", timeout=120)
    after = running_units()
    assert [service for service in SERVICES if after[service] != before[service]] == ["redis"], (before, after)

with subtest("a service that a newer bundle no longer has is stopped and forgotten"):
    machine.succeed(
        f"rm /tmp/newer/etc/systemd/system/{unit('app')}",
        "rm -r /tmp/newer/usr/lib/aistack/libexec/podman-aistack-app",
        f"sed -i 's/{unit('app')} //' /tmp/newer/etc/systemd/system/aistack-recover.service",
        f"{INSTALL} /tmp/newer >&2",
    )
    machine.fail("podman container exists aistack-app")
    assert machine.succeed("systemctl list-units --all --no-legend --plain podman-aistack-app.service").strip() == ""
    machine.succeed("test ! -e /etc/systemd/system/aistack.target.wants/podman-aistack-app.service")
    assert active_state("redis") == "active"

with subtest("taken away, it stops, and its data stays for another time"):
    machine.succeed(f"{UNINSTALL} >&2", timeout=120)
    for pattern in ("aistack*", "podman-aistack*"):
        assert machine.succeed(f"systemctl list-units --all --no-legend --plain '{pattern}'").strip() == ""
    assert machine.succeed("podman ps --all --quiet").strip() == ""
    machine.fail("podman network exists local-ai")
    machine.succeed("test -s /var/lib/aistack/releases.db -a -s /etc/aistack/secrets/postgres-password")
    machine.succeed("test ! -e /run/aistack -a ! -e /usr/bin/aistack -a ! -e /usr/lib/aistack")
    machine.succeed(f"{INSTALL} --start >&2", timeout=120)
    assert releases("postgres"), "the release journal did not survive"

with subtest("taken away with its data, a used stack leaves nothing either"):
    machine.succeed(f"{UNINSTALL} --purge >&2", timeout=120)
    left = host_files() - clean
    assert not left, left
    names = machine.succeed("podman images --format '{{.Repository}}'").split()
    assert not [name for name in names if name.startswith("localhost/aistack/")], names
    # The images themselves are not ours alone.
    assert "localhost/aistack-images/app" in names, names
    assert machine.succeed("systemctl list-units --failed --no-legend --plain").strip() == ""
