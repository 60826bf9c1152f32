"""The flake's outputs, evaluated for real with Nixpkgs' lib and NixOS and a stand-in for its packages.

tests/flake calls `outputs` of flake.nix. Every output is instantiated; what the host's own tools can build is built.
"""

from __future__ import annotations

import ast
import json
import shutil
from pathlib import Path
from typing import Any

import nixhost
import pytest

ROOT = nixhost.ROOT
SCENARIOS = sorted(
    path.stem
    for path in (ROOT / "tests/nixos").glob("[!_]*.py")
    if "\n# nixos: skip " not in path.read_text(encoding="utf-8")
)
SYSTEMS = ["aarch64-linux", "x86_64-linux"]
SERVICES = ["app", "llama-cpp", "postgres", "qdrant", "redis"]
IMAGES = sorted([*SERVICES, "aider-wrapper", "ralph-wiggum", "scripted-endpoint"])
OF_RALPH = "\n# stack of examples/ralph.nix\n"
RALPH = [name for name in SCENARIOS if OF_RALPH in (ROOT / f"tests/nixos/{name}.py").read_text(encoding="utf-8")]

TOGETHER = 8
"""How many scenarios' machines are evaluated at a time; each takes about 110 MB."""


def manifest() -> dict[str, Any]:
    """The manifest of the stack that has all services."""
    loaded = json.loads((ROOT / "bundle/ralph/etc/aistack/stack.json").read_text(encoding="utf-8"))
    assert isinstance(loaded, dict)
    return loaded


@pytest.fixture(scope="module")
def seen() -> dict[str, Any]:
    """All that these tests look at but the scenarios' machines, from one evaluation."""
    if reason := nixhost.unavailable():
        pytest.skip(reason)
    return nixhost.evaluate(ROOT / "tests/flake", "-A", "seen")


@pytest.fixture(scope="module")
def machines() -> dict[str, Any]:
    """Each scenario's VM test, from evaluations of a few at a time: one of all of them takes six gigabytes."""
    if reason := nixhost.unavailable():
        pytest.skip(reason)
    found: dict[str, Any] = {}
    for first in range(0, len(SCENARIOS), TOGETHER):
        names = " ".join(f'"{name}"' for name in SCENARIOS[first : first + TOGETHER])
        found |= nixhost.evaluate(ROOT / "tests/flake", "-A", "machines", "--arg", "scenarios", f"[ {names} ]")
    return found


def settings(text: str, key: str) -> list[str]:
    """The values of a key of a unit, in order."""
    return [line.partition("=")[2] for line in text.splitlines() if line.startswith(f"{key}=")]


def test_the_lock_pins_the_one_input_to_its_release() -> None:
    lock = json.loads((ROOT / "flake.lock").read_text(encoding="utf-8"))
    assert sorted(lock["nodes"]) == ["nixpkgs", "root"]
    node = lock["nodes"]["nixpkgs"]
    assert node["original"] == {"owner": "NixOS", "ref": "nixos-26.05", "repo": "nixpkgs", "type": "github"}
    assert node["locked"]["rev"] == "8eeec934ae0dbeca3d7868c059568a65c08b2fc3"
    assert node["locked"]["narHash"] == "sha256-lDebytrYdd47IBLwvNOD+6AGeoqZ78CIKlp70hzW280="


def test_outputs_are_those_that_the_readme_promises(seen: dict[str, Any]) -> None:
    assert seen["inputs"] == ["nixpkgs"]
    outputs = seen["outputs"]
    assert sorted(outputs) == [
        *("apps", "checks", "devShells", "formatter", "nixosConfigurations"),
        *("nixosModules", "overlays", "packages", "templates"),
    ]
    for name in ("apps", "checks", "devShells", "formatter", "packages"):
        assert outputs[name] == SYSTEMS, name
    for name in ("nixosModules", "overlays", "templates"):
        assert "default" in outputs[name], name


def test_every_derivation_can_be_instantiated(seen: dict[str, Any], machines: dict[str, Any]) -> None:
    derivations = seen["derivations"]
    assert sorted(derivations["packages"]) == ["bundle", "default", "images", "options"]
    assert sorted(derivations["images"]) == IMAGES
    assert sorted(derivations["checks"]) == [
        *("bundle", "evaluation", "format", "lint", "package", "python", "types"),
        *(f"vm-{name}" for name in SCENARIOS),
    ]
    paths = [
        *(path for group in ("packages", "images", "checks") for path in derivations[group].values() if path),
        *(machine["drvPath"] for machine in machines.values()),
        *(derivations["devShell"], derivations["formatter"], *seen["otherSystem"].values()),
    ]
    assert all(Path(path).is_file() and path.endswith(".drv") for path in paths), paths


def test_the_package_is_named_and_needs_what_its_project_file_says(seen: dict[str, Any]) -> None:
    package = seen["package"]
    version = next(
        node.value.value
        for node in ast.parse((ROOT / "python/aistack/__init__.py").read_text(encoding="utf-8")).body
        if isinstance(node, ast.Assign)
        and isinstance(node.value, ast.Constant)
        and ast.unparse(node.targets[0]) == "__version__"
    )
    assert package["version"] == version
    assert package["meta"]["mainProgram"] == "aistack"
    assert package["meta"]["license"]["spdxId"] == "MIT"
    project = (ROOT / "python/pyproject.toml").read_text(encoding="utf-8")
    (line,) = (line for line in project.splitlines() if line.startswith("dependencies ="))
    assert sorted(package["dependencies"]) == sorted(
        requirement.split(">")[0] for requirement in ast.literal_eval(line.partition("=")[2].strip())
    )


@pytest.mark.parametrize("service", IMAGES)
def test_images_carry_the_reference_names_and_run_as_numbers(seen: dict[str, Any], service: str) -> None:
    image = seen["images"][service]
    entry = manifest()["services"][service]
    assert f"{image['repository']}:{image['tag']}" == entry["image"]["ref"]
    assert f"{entry['port']}/tcp" in image["config"]["ExposedPorts"]
    assert all(part.isdigit() for part in image["config"]["User"].split(":"))
    assert image["config"]["Entrypoint"][0].startswith("/")


def test_the_module_brings_its_own_package_to_a_machine_without_the_overlay(seen: dict[str, Any]) -> None:
    machine = seen["machine"]
    assert machine["package"] == seen["derivations"]["packages"]["default"]
    assert machine["hook"].endswith("/bin/aistack-hook")
    for service in SERVICES:
        text = machine["units"][f"podman-aistack-{service}.service"]["text"]
        assert settings(text, "ExecStartPre")[0] == f"{machine['hook']} start-pre {service}"
        assert settings(text, "ExecStartPost") == [f"{machine['hook']} await-ready {service}"]


def test_on_nixos_ralph_needs_one_line_and_brings_his_images_along(seen: dict[str, Any]) -> None:
    images = seen["ralph"]
    for name in ("aider-wrapper", "ralph-wiggum"):
        assert images[name]["ref"] == f"localhost/aistack-images/{name}:1"
        assert "/nix/store/" in images[name]["stream"]
    assert images["redis"]["stream"] is None


def test_nixos_and_the_bundle_order_and_limit_alike(seen: dict[str, Any]) -> None:
    for path in sorted((ROOT / "bundle/reference/etc/systemd/system").iterdir()):
        rendered = path.read_text(encoding="utf-8")
        there = seen["machine"]["units"][path.name]
        for key in (
            *("After", "Wants", "Requires", "PartOf", "OnFailure", "StartLimitBurst", "StartLimitIntervalSec"),
            *("Restart", "RestartMode", "RestartSec", "TimeoutStartSec", "TimeoutStopSec", "SuccessExitStatus", "Type"),
        ):
            assert settings(rendered, key) == settings(there["text"], key), f"{path.name}: {key}"
        wanted = settings(rendered, "WantedBy")
        assert (wanted[0].split() if wanted else []) == there["wantedBy"], path.name


def test_the_template_is_a_machine_with_a_stack(seen: dict[str, Any]) -> None:
    template = seen["template"]
    assert template["nixpkgs"] == seen["ownNixpkgs"]
    assert template["units"] == template["rendered"]
    assert {f"podman-aistack-{name}.service" for name in SERVICES} <= set(template["units"])


def test_the_demonstration_streams_its_images_and_answers_the_host(seen: dict[str, Any]) -> None:
    demo = seen["demo"]
    services = demo["manifest"]["services"]
    assert sorted(services) == SERVICES
    assert all("/nix/store/" in services[name]["image"]["stream"] for name in SERVICES)
    assert [port["hostPort"] for port in services["app"]["publish"]] == [8000]
    assert [port["host"]["port"] for port in demo["forwardPorts"]] == [8000]
    assert demo["units"]["aistack.target"]["wantedBy"] == ["multi-user.target"]
    assert seen["app"]["type"] == "app"


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_scenario_is_a_vm_test_of_its_stack(machines: dict[str, Any], name: str) -> None:
    test = machines[name]
    assert test["name"] == f"vm-test-run-aistack-{name}"
    assert (ROOT / f"tests/nixos/{name}.py").read_text(encoding="utf-8") in test["testScript"]
    assert test["testScript"].startswith((ROOT / "tests/nixos/_prelude.py").read_text(encoding="utf-8"))
    assert test["testScript"].endswith((ROOT / "tests/nixos/_epilogue.py").read_text(encoding="utf-8"))
    units = test["nodes"]["machine"]
    for service in IMAGES if name in RALPH else SERVICES:
        text = units[f"podman-aistack-{service}.service"]["text"]
        assert settings(text, "OnFailure") == [f"aistack-rollback@{service}.service"]
        assert settings(text, "ExecStartPost")[0].endswith(f"await-ready {service}")
    assert ("podman-aistack-ralph-wiggum.service" in units) is (name in RALPH)
    # The script starts the stack, unless the scenario is about what starts with the machine.
    if not (ROOT / f"tests/nixos/{name}.nix").exists():
        assert units["aistack.target"]["wantedBy"] == []


def test_a_module_without_a_script_is_an_error(tmp_path: Path) -> None:
    if nixhost.unavailable():
        pytest.skip(str(nixhost.unavailable()))
    shutil.copytree(ROOT / "tests/nixos", tmp_path / "nixos")
    (tmp_path / "nixos/forgotten.nix").write_text("{ }", encoding="utf-8")
    done = nixhost.run(
        *("nix-instantiate", "--eval", "--expr"),
        f"builtins.attrNames (import {tmp_path}/nixos {{ lib = import <nixpkgs/lib>; pkgs = {{ }}; }})",
    )
    assert done.returncode != 0
    assert "modules without a test script: forgotten.nix" in done.stderr


def test_the_bundle_is_built_with_its_installer_and_the_python_package(seen: dict[str, Any]) -> None:
    assert seen["derivations"]["packages"]["bundle"]
    reason = nixhost.cannot_build()
    if reason is not None:
        pytest.skip(reason)
    done = nixhost.run(
        "nix-build", "--no-out-link", "--option", "substitute", "false", ROOT / "tests/flake", "-A", "bundle"
    )
    assert done.returncode == 0, done.stderr
    built = Path(done.stdout.strip())
    for name in ("install", "uninstall"):
        assert (built / name).read_bytes() == (ROOT / "bundle" / name).read_bytes()
    for name in ("etc/aistack/stack.json", "etc/aistack/.env"):
        assert (built / "reference" / name).read_bytes() == (ROOT / "bundle/reference" / name).read_bytes()
    assert (built / "python/aistack-hook").is_file()
    sources = {str(path.relative_to(ROOT / "python/aistack")) for path in (ROOT / "python/aistack").rglob("*.py")}
    assert {
        str(path.relative_to(built / "python/aistack")) for path in (built / "python/aistack").rglob("*.py")
    } == sources


def test_nix_itself_accepts_the_flake(tmp_path: Path) -> None:
    """`nix flake show`, pure, with the lock's input replaced by a flake around the stand-in."""
    if nixhost.unavailable():
        pytest.skip(str(nixhost.unavailable()))
    nixpkgs = Path(nixhost.run("nix-instantiate", "--find-file", "nixpkgs").stdout.strip())
    stand_in = tmp_path / "stand-in"
    for name in ("lib", "nixos"):
        shutil.copytree(nixpkgs / name, stand_in / name, symlinks=True)
    for name in ("tests/flake", "nix/portable"):
        shutil.copytree(ROOT / name, stand_in / name)
    (stand_in / "flake.nix").write_text(
        "{ outputs = { self }: removeAttrs (import ./tests/flake/nixpkgs.nix { nixpkgs = self.outPath; })"
        ' [ "outPath" ]; }',
        encoding="utf-8",
    )
    project = tmp_path / "project"
    project.mkdir()
    for name in ("bundle", "examples", "images", "nix", "python", "templates", "tests"):
        shutil.copytree(ROOT / name, project / name, ignore=shutil.ignore_patterns(".*", "__pycache__"))
    for name in ("flake.nix", "flake.lock"):
        shutil.copy(ROOT / name, project / name)
    done = nixhost.run(
        *("nix", "--extra-experimental-features", "nix-command flakes", "flake", "show", "--json"),
        *("--no-write-lock-file", "--override-input", "nixpkgs", f"path:{stand_in}", f"path:{project}"),
    )
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)
    assert shown["packages"]["x86_64-linux"]["default"]["type"] == "derivation"
    assert shown["nixosModules"]["default"]["type"] == "nixos-module"
    assert shown["overlays"]["default"]["type"] == "nixpkgs-overlay"
    assert shown["templates"]["default"]["type"] == "template"
    assert shown["apps"]["x86_64-linux"]["demo"]["type"] == "app"
