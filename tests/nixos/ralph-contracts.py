"""The live containers keep what they promise each other, and aider speaks with a real llama.cpp too."""
# stack of examples/ralph.nix

# The package is where bundle/install puts it, or in the Python that ralph-contracts.nix brings.
PYTHON = "$(command -v contracts-python3 || echo env PYTHONPATH=/usr/lib/aistack python3)"
CHECK = f"{PYTHON} -m aistack.contracts check"


def address(service: str) -> str:
    """Where a container answers, for the host."""
    networks = machine.succeed(f"podman container inspect --format '{{{{json .NetworkSettings.Networks}}}}' {service}")
    (network,) = json.loads(networks).values()
    port = manifest()["services"][service.removeprefix("aistack-")]["port"]
    return f"http://{network['IPAddress']}:{port}"


machine.wait_for_unit("multi-user.target")
start_ralph()

# Its first run is tried once it has imported aider.
machine.wait_until_succeeds(f"curl --fail --silent {AIDER_WRAPPER[0]}/ready", timeout=180)

for edge, service, key in (
    ("ralph-wiggum-to-aider-wrapper", "aider-wrapper", f" --key-file {AIDER_WRAPPER[1]}"),
    ("hybrid-coordinator-to-ralph-wiggum", "ralph-wiggum", f" --key-file {RALPH[1]}"),
    ("all-to-llama-cpp", "llama-cpp", ""),
):
    with subtest(f"{service} keeps its contract: {edge}"):
        machine.log(machine.succeed(f"{CHECK} --edge {edge} --url {address(f'aistack-{service}')}{key}"))

with subtest("a service that is not there is a failure, and not a skip"):
    code, out = machine.execute(f"{CHECK} --edge all-to-llama-cpp --url http://127.0.0.1:1 2>&1")
    assert code == 3, (code, out)

with subtest(
    "as the catalog has it, aider asks the real llama.cpp; the tiny model cannot write code, and nobody claims it did"
):
    found = manifest()
    entry = found["services"]["aider-wrapper"]
    entry["stackEnvironment"] = True
    entry["environment"] = {
        key: value for key, value in entry["environment"].items() if key not in found["environment"]
    }
    put_manifest(found)
    machine.succeed(f"systemctl restart {unit('aider-wrapper')}")
    before = len(succeed_to_ask(SCRIPTED, "GET", "/control")["requests"])
    done = wait_for_task(submit("Write add().", max_iterations=1, verify=["test -e calc.py"]), "exhausted", timeout=240)
    (call,) = [call for call in iterations(done["task_id"]) if call["counted"]]
    assert (call["error_kind"], call["exit_code"], call["git_commits"]) == ("agent", 1, []), call
    assert "Model: openai/tiny" in call["output"], call
    metrics = machine.succeed(f"curl --fail --silent {address('aistack-llama-cpp')}/metrics").splitlines()
    (read,) = [line.split()[1] for line in metrics if line.startswith("llamacpp:prompt_tokens_total ")]
    assert float(read) > 1000, read
    assert len(succeed_to_ask(SCRIPTED, "GET", "/control")["requests"]) == before
