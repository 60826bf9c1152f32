"""One .env, four readers: podman, systemd, python-dotenv and a POSIX shell take the same values from it."""

import random
import shlex
import string

# The grammar of nix/lib/env.nix: `isKey` and `isValue`.
KEY_START = string.ascii_uppercase
KEY_REST = string.ascii_uppercase + string.digits + "_"
ALPHABET = string.ascii_letters + string.digits + "_./:@%+,=-"

# Every reader takes these as they are, too. A shell would still expand them where it uses a value without quotes, and
# after a blank # begins a comment.
LEFT_OUT_ALL_THE_SAME = "!#*?[]^{}"

# Of `isShellOwn`: what cannot be set, or is something else at once.
SHELL_OWN = ["BASHOPTS", "EPOCHSECONDS", "EUID", "GROUPS", "LINENO", "OPTIND", "PPID", "RANDOM", "SECONDS", "UID"]

EDGES = [
    *("", "=", "==x", "-", "--flag=1", "%", "%h%i%%", "%%", "a=b=c", "+1,-1", ".", "..", "/", "//", "a:b@c", ":", "::"),
    *("0", "00", "-0", "1e9", "true", "false", "null", "@", "@@", ",", "http://h:1/p%20q,r=s+t@u-v_w.x", "x" * 3000),
]

READ = """
import json, os, shutil, subprocess, sys
from dotenv import dotenv_values

image, *files = sys.argv[1:]
dump = 'import os, sys; sys.stdout.buffer.write(b"".join(k + b"=" + v + b"\\\\0" for k, v in os.environb.items()))'
env = shutil.which("env")


def run(*command):
    done = subprocess.run(command, stdout=subprocess.PIPE)
    pairs = (part.partition(b"=") for part in done.stdout.split(b"\\0")[:-1])
    return {key.decode("latin-1"): value.decode("latin-1") for key, _, value in pairs}


def shell(program):
    # Each file by itself: a shell gives up at the first line that it cannot read.
    found = {}
    for file in files:
        found |= run(env, "-i", program, "-c", 'set -a; . "$0"; exec "$1" -0', file, env)
    return found


podman = [part for file in files for part in ("--env-file", file)]
systemd = [part for file in files for part in ("--property", f"EnvironmentFile={file}")]
json.dump(
    {
        "podman": run("podman", "run", "--rm", "--network=none", *podman, "--entrypoint=python3", image, "-c", dump),
        "systemd": run("systemd-run", "--quiet", "--pipe", "--wait", *systemd, env, "-0"),
        "python-dotenv": {key: value for file in files for key, value in dotenv_values(file).items()},
        "dash": shell("dash"),
        "bash": shell("bash"),
    },
    sys.stdout,
)
"""


def read(*paths: str) -> dict[str, dict[str, str | None]]:
    """What each reader makes of some files."""
    found = json.loads(machine.succeed(f"python3 -c {shlex.quote(READ)} {APP_IMAGE} {' '.join(paths)}"))
    assert isinstance(found, dict)
    return found


def write(folder: str, contents: list[dict[str, str]]) -> list[str]:
    """Write files of keys and values; returns their paths."""
    script = f"rm -rf {folder}; mkdir {folder}\n"
    paths = [f"{folder}/{number}.env" for number in range(len(contents))]
    for path, content in zip(paths, contents, strict=True):
        lines = "\n".join(f"{key}={value}" for key, value in content.items())
        script += f"cat > {path} <<'END-OF-FILE'\n# Values\n\n{lines}\nEND-OF-FILE\n"
    machine.succeed(script)
    return paths


def wrong(read_: dict[str, dict[str, str | None]], wanted: dict[str, str]) -> dict[str, list[str]]:
    """The keys that a reader reads otherwise, by reader."""
    differing = {
        reader: [key for key, value in wanted.items() if values.get(key) != value] for reader, values in read_.items()
    }
    return {reader: keys for reader, keys in differing.items() if keys}


machine.start()
machine.wait_for_unit("basic.target")

with subtest("every key and value of the grammar means the same to all of them, byte for byte"):
    chance = random.Random(20261122)
    values = [*EDGES, *(a + b for a in ALPHABET for b in ("", "x", a))]
    values += ["".join(chance.choices(ALPHABET, k=chance.randint(1, 80))) for _ in range(300)]
    wanted: dict[str, str] = {}
    for value in values:
        length = chance.randint(3, 30)
        key = chance.choice(KEY_START) + "".join(chance.choices(KEY_REST, k=length))
        assert key not in wanted
        wanted[key] = value
    wanted |= {"A": "1", "Z_": "2", "A__0": "3"}
    differing = wrong(read(*write("/tmp/readers", [wanted])), wanted)
    assert not differing, {reader: [f"{key}={wanted[key]}" for key in keys[:10]] for reader, keys in differing.items()}
    machine.log(f"{len(wanted)} keys, no difference")

with subtest("every other character means something else to one of them, or is left out for a reason that is known"):
    outside = [character for character in map(chr, range(32, 127)) if character not in ALPHABET]
    cases = [
        {f"K_{ord(character)}_{number}": value}
        for character in outside
        for number, value in enumerate(
            (character, f"a{character}", f"{character}a", f"a{character}b", f"{character}a{character}b")
        )
    ]
    answers = read(*write("/tmp/readers", cases))
    everything = {key: value for case in cases for key, value in case.items()}
    differing = wrong(answers, everything)
    about = {chr(int(key.split("_")[1])) for keys in differing.values() for key in keys}
    for reader, keys in differing.items():
        own = sorted({chr(int(key.split("_")[1])) for key in keys})
        machine.log(f"{reader} takes otherwise: {''.join(own)!r}")
    assert set(outside) - about == set(LEFT_OUT_ALL_THE_SAME), (sorted(about), sorted(set(outside) - about))

with subtest("a shell's own variables, which evaluation refuses, would not mean the same to all of them"):
    own_cases = [{key: "x9"} for key in SHELL_OWN]
    differing = wrong(read(*write("/tmp/readers", own_cases)), dict.fromkeys(SHELL_OWN, "x9"))
    assert set(differing["bash"]) == set(SHELL_OWN), differing
    assert "OPTIND" in differing["dash"], differing

with subtest("the stack's own .env is what the manifest says, to all of them"):
    declared = manifest()
    environment = declared["environment"]
    assert len(environment) > 30, environment
    answers = read(declared["envFile"])
    assert not wrong(answers, environment), wrong(answers, environment)
    assert answers["python-dotenv"] == environment, answers["python-dotenv"]

with subtest("and it has every key of the plan, and no password"):
    plan = {
        "POSTGRES": "HOST PORT DB USER",
        "REDIS": "HOST PORT",
        "QDRANT": "HOST PORT",
        "LLAMA_CPP": "HOST PORT MODEL_FILE",
        "AIDB": "HOST PORT",
        "HYBRID_COORDINATOR": "HOST PORT",
        "RALPH_MAX_ITERATIONS": "DEFAULT SIMPLE MEDIUM COMPLEX",
        "RALPH": "ADAPTIVE_ITERATIONS LOOP_ENABLED EXIT_CODE_BLOCK",
        "CONTINUOUS_LEARNING": "ENABLED",
        "LEARNING_PROCESSING": "INTERVAL",
        "PATTERN_EXTRACTION": "ENABLED",
        "STARTUP": "DEPENDENCY_CHECK TIMEOUT_SECONDS",
        "TELEMETRY": "PATH",
        "OTEL_TRACING": "ENABLED",
        "ADAPTIVE_ITERATION": "LIMITS",
        "SELF_HEALING": "ENABLED",
    }
    keys = [f"{prefix}_{ending}" for prefix, endings in plan.items() for ending in endings.split()]
    missing = sorted(set(keys) - set(environment))
    assert not missing, missing
    assert environment["RALPH_ADAPTIVE_ITERATIONS"] == environment["ADAPTIVE_ITERATION_LIMITS"]
    assert "POSTGRES_PASSWORD" not in environment
