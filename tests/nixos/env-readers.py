"""One .env, four readers: podman, systemd, python-dotenv and a POSIX shell take the same values from it."""

import random
import string

ALPHABET = string.ascii_letters + string.digits + "_./:@%+,=-"
EDGES = [
    "",
    "=",
    "==x",
    "-",
    "--flag=1",
    "%",
    "%h%i%%",
    "a=b=c",
    "+1,-1",
    ".",
    "/",
    "a:b@c",
    "0",
    "00",
    "1e9",
    "true",
    "@",
]
FILE = "/tmp/readers.env"
DUMP = "import json, os; print(json.dumps(dict(os.environ)))"


def put(lines: list[str]) -> None:
    """Write the file that the readers read."""
    machine.succeed(f"cat > {FILE} <<'END-OF-FILE'\n" + "\n".join(lines) + "\nEND-OF-FILE")


def readers(file: str) -> dict[str, str]:
    """The command that prints, as JSON, what each reader makes of a file."""
    python = machine.succeed("command -v python3").strip()
    dotenv = f'import json, sys; from dotenv import dotenv_values; print(json.dumps(dotenv_values("{file}")))'
    return {
        "podman": f"podman run --rm --network none --env-file {file} --entrypoint python3 {APP_IMAGE} -c '{DUMP}'",
        "systemd": f"systemd-run --quiet --pipe --wait --property EnvironmentFile={file} {python} -c '{DUMP}'",
        "python-dotenv": f"env -i {python} -c '{dotenv}'",
        "shell": f"env -i sh -c 'set -a; . {file}; exec {python} -c \"{DUMP}\"'",
    }


def read(file: str, keys: list[str]) -> dict[str, dict[str, str | None] | None]:
    """What each reader makes of the keys of a file; None where it refuses the file."""
    found: dict[str, dict[str, str | None] | None] = {}
    for reader, command in readers(file).items():
        code, out = machine.execute(f"{command} 2>/dev/null")
        values = json.loads(out) if code == 0 else None
        found[reader] = None if values is None else {key: values.get(key) for key in keys}
    return found


machine.start()
machine.wait_for_unit("basic.target")

with subtest("every value of the grammar means the same to all four"):
    chance = random.Random(20261122)
    values = [*EDGES, *(a + b for a in "._/:@%+,=-" for b in ("", "x"))]
    values += ["".join(chance.choices(ALPHABET, k=chance.randint(1, 60))) for _ in range(300)]
    wanted = {f"KEY_{number}": value for number, value in enumerate(values)}
    put([f"{key}={value}" for key, value in wanted.items()])
    for reader, got in read(FILE, list(wanted)).items():
        assert got is not None, f"{reader} refuses the file"
        wrong = {key: (value, got[key]) for key, value in wanted.items() if got[key] != value}
        assert not wrong, f"{reader} reads otherwise (key: written, read): {wrong}"
    machine.log(f"{len(wanted)} values, four readers, no difference")

with subtest("a character on which they disagree is not in the grammar"):
    disagreed = []
    outside = [c for c in map(chr, range(32, 127)) if c not in ALPHABET]
    samples = {}
    for number, character in enumerate(outside):
        samples[f"MID_{number}"] = (character, f"a{character}b")
        samples[f"END_{number}"] = (character, f"a{character}")
    # One file for each, because a shell gives up at the first line that it cannot read.
    for character in outside:
        mine = {key: value for key, (c, value) in samples.items() if c == character}
        put([f"{key}={value}" for key, value in mine.items()])
        answers = [
            machine.execute(f"{command} 2>/dev/null")
            for name, command in readers(FILE).items()
            if name in ("python-dotenv", "shell")
        ]
        parsed = [json.loads(out) if code == 0 else {} for code, out in answers]
        if any(answer.get(key) != value for answer in parsed for key, value in mine.items()):
            disagreed.append(character)
    machine.log(f"disagreed about {''.join(disagreed)!r}, of {''.join(outside)!r} outside the grammar")
    assert set("\"'$\\`&|;<>() ") <= set(disagreed), disagreed

with subtest("the stack's own .env is what the manifest says, to all four"):
    declared = manifest()
    environment = declared["environment"]
    assert len(environment) > 30, environment
    for reader, got in read(declared["envFile"], list(environment)).items():
        assert got == environment, f"{reader}: {got}"

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
