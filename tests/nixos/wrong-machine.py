"""Images that this machine cannot run: for another processor, by their own word or in fact, or for a newer kernel."""

UNIT = unit("app")
ARCHITECTURE = {"x86_64": "amd64", "aarch64": "arm64"}[machine.succeed("uname --machine").strip()]
FOREIGN = {"amd64": "arm64", "arm64": "amd64"}[ARCHITECTURE]

# An ELF program with nothing in it but the number of another processor (elf(5), e_machine).
ELF = """
import struct
number = {"arm64": 183, "amd64": 62}["%s"]
ident = b"\\x7fELF" + bytes([2, 1, 1]) + bytes(9)
header = ident + struct.pack("<HHIQQQIHHHHHH", 2, number, 1, 0x400078, 64, 0, 0, 64, 56, 1, 0, 0, 0)
segment = struct.pack("<IIQQQQQQ", 1, 5, 0, 0x400000, 0x400000, 4096, 4096, 4096)
open("/tmp/build/foreign", "wb").write((header + segment).ljust(4096, bytes(1)))
"""
# What the C library of a newer distribution says on an old kernel.
TOO_OLD = "import sys; print('FATAL: kernel too old', file=sys.stderr, flush=True); sys.exit(127)"


def build(tag: str, text: str, options: str = "") -> None:
    """An image of the foreign program."""
    machine.succeed(f"mkdir -p /tmp/build; cat > /tmp/build/elf.py <<'EOF'\n{ELF % FOREIGN}\nEOF")
    machine.succeed(
        f"python3 /tmp/build/elf.py; chmod 0755 /tmp/build/foreign; printf '{text}' > /tmp/build/Containerfile"
    )
    machine.succeed(f"podman build --quiet {options} --tag {tag} /tmp/build")


machine.wait_for_unit("multi-user.target")
ENTRY = 'COPY foreign /foreign\\nENTRYPOINT ["/foreign"]\\nCMD []\\n'
build("localhost/scenario/foreign:1", f"FROM scratch\\n{ENTRY}", f"--platform linux/{FOREIGN}")
build("localhost/scenario/lies:1", f"FROM {APP_IMAGE}\\n{ENTRY}")
build_image("localhost/scenario/kernel:1", TOO_OLD)
start_good_stack()
good = current("app")
beside = {service: invocation(service) for service in SERVICES if service != "app"}

with subtest("an image for another processor is not even tried: the release that ran runs on, and that is said"):
    declare_image("localhost/scenario/foreign:1")
    since = cursor()
    machine.succeed(f"systemctl restart {UNIT}")
    said = journal(since)
    words = f"it is for linux/{FOREIGN}, and this machine is linux/{ARCHITECTURE}; release {good['id']} "
    assert said.count(f"the declared image {APP_IMAGE} cannot run here: {words}") == 1, said
    machine.succeed(APP_SERVES)
    assert current("app") == good
    found = status("app")
    assert found["state"] == "ready", found
    assert words in found["notice"], found
    assert "ROLLED BACK" not in said

with subtest("where nothing ran before, the start fails at once and names both"):
    machine.succeed(f"systemctl stop {UNIT}; mv /var/lib/aistack/releases.db /var/lib/aistack/kept.db")
    since = cursor()
    forget_starts("app")
    machine.fail(f"systemctl start {UNIT}")
    said = wait_for_journal(since, "app: not rolled back: ")
    assert f"  image {APP_IMAGE}: wrong architecture: it is for linux/{FOREIGN}, and this machine is" in said, said
    assert machine.execute("aistack status app")[0] == 8
    machine.succeed(f"systemctl stop {UNIT}; rm -f /var/lib/aistack/releases.db-*")
    machine.succeed("mv /var/lib/aistack/kept.db /var/lib/aistack/releases.db")

for tag, words in (("lies", "exec format error"), ("kernel", "fatal: kernel too old")):
    with subtest(f"an image that cannot run although it does not say so ({words}) is rolled back, with its last words"):
        declare_image(f"localhost/scenario/{tag}:1")
        since = cursor()
        forget_starts("app")
        machine.execute(f"systemctl restart {UNIT}")
        said = wait_for_journal(since, "app ROLLED BACK")
        machine.wait_for_unit(UNIT)
        machine.succeed(APP_SERVES)
        assert current("app")["id"] == good["id"]
        bad = releases("app")[0]
        assert bad["state"] == "bad", bad
        assert words in bad["reason"].lower(), bad
        (line,) = [line for line in said.splitlines() if "app ROLLED BACK" in line]
        assert words in line.lower(), line
        shown = machine.succeed(f"aistack releases app --log {bad['id']}")
        assert words in shown.lower(), shown

with subtest("at the end every unit is well, and nothing else was touched"):
    assert {service: invocation(service) for service in beside} == beside
    assert not machine.succeed("systemctl --failed --no-legend").strip()
    machine.succeed("aistack status", "aistack health")
