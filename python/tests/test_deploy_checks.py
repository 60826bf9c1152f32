"""What is found out about an image before it runs: its entry point in a mounted tree, and inside.py as a program.

The tree and the Python that runs inside.py are real, podman is a stand-in that mounts the one and prints what the other
said.
"""

from __future__ import annotations

import json
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import fakehost
import pytest

from aistack.deploy import checks
from aistack.deploy.image import Image
from aistack.hooks.manifest import load

if TYPE_CHECKING:
    from collections.abc import Callable

INSIDE = Path(checks.__file__).with_name("inside.py")
BOUND = 60.0  # seconds for anything here

_PODMAN = r"""#!/bin/sh
printf 'podman %s\n' "$*" >> "$FAKE_HOST/calls"
case "$1 $2" in
"image mount") echo "$FAKE_HOST/tree" ;;
run*)
  for word in "$@"; do printf '%s\n' "$word"; done > "$FAKE_HOST/run"
  if [ -f "$FAKE_HOST/fails" ]; then cat "$FAKE_HOST/fails" >&2; exit 127; fi
  echo "noise of the program"; cat "$FAKE_HOST/report" ;;
esac
"""


# --- inside.py, as the image's own Python runs it --------------------------------------------------------------------


def inside(
    tree: Path, *, script: str = "", module: str = "", code: str = "", seconds: int = 5, **environment: str
) -> dict[str, Any]:
    """What inside.py reports of a program, run in its folder."""
    name = str(tree / script) if script else ""
    spec = json.dumps({"script": name, "module": module, "code": code, "seconds": seconds})
    done = subprocess.run(
        [sys.executable, "-c", INSIDE.read_text(encoding="utf-8"), spec],
        cwd=tree,
        env={"PATH": "/usr/bin:/bin", **environment},
        capture_output=True,
        timeout=BOUND,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.decode().strip().rpartition("\n")[2])
    assert isinstance(found, dict)
    return found


def tree(folder: Path, **files: str) -> Path:
    """A folder of programs; NAME="text" is NAME.py, with __ for a slash."""
    for name, text in files.items():
        path = folder / f"{name.replace('__', '/')}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text), encoding="utf-8")
    return folder


def test_a_program_that_can_be_imported(tmp_path: Path) -> None:
    tree(tmp_path, app="import helper\nprint('loud')\n", helper="X = 1\n", package__deep="Y = 1\n")
    assert inside(tmp_path, script="app.py") == {"problems": [], "compiled": 3, "imported": True, "needs": {}}


def test_a_syntax_error_anywhere_beside_it_is_named_and_nothing_is_imported(tmp_path: Path) -> None:
    tree(tmp_path, app="import os; open('ran', 'w')\n", package__deep="x = 1\ndef f(:\n")
    found = inside(tmp_path, script="app.py")
    (problem,) = found["problems"]
    assert problem.startswith(f"{tmp_path}/package/deep.py:2 does not compile: ")
    assert (found["compiled"], found["imported"]) == (1, False)
    assert not (tmp_path / "ran").exists()


def test_what_only_a_whole_compilation_finds_is_found(tmp_path: Path) -> None:
    (problem,) = inside(tree(tmp_path, app="x = 1\nreturn x\n"), script="app.py")["problems"]
    assert problem == f"{tmp_path}/app.py:2 does not compile: 'return' outside function"


def test_an_import_that_fails_is_named_with_its_place(tmp_path: Path) -> None:
    tree(tmp_path, app="import helper\n", helper="import os\n\nimport nowhere\n")
    (problem,) = inside(tmp_path, script="app.py")["problems"]
    assert problem == (
        f"it cannot be imported: ModuleNotFoundError: No module named 'nowhere' ({tmp_path}/helper.py:3)"
    )


def test_what_is_raised_inside_the_library_has_the_last_place_that_is_its_own(tmp_path: Path) -> None:
    (problem,) = inside(tree(tmp_path, app="import json\n\njson.loads('{')\n"), script="app.py")["problems"]
    assert problem.startswith("it cannot be imported: JSONDecodeError: ")
    assert problem.endswith(f"({tmp_path}/app.py:3)")


def test_a_key_that_is_missing_at_import_is_a_problem_of_its_import(tmp_path: Path) -> None:
    tree(tmp_path, app="import os\nX = os.environ['WANTED']\n")
    found = inside(tmp_path, script="app.py")
    assert found["problems"] == [f"it cannot be imported: KeyError: 'WANTED' ({tmp_path}/app.py:2)"]
    assert found["needs"] == {"WANTED": f"{tmp_path}/app.py:2"}
    assert inside(tmp_path, script="app.py", WANTED="1")["problems"] == []


@pytest.mark.parametrize(
    "line",
    [
        "os.environ['KEY']",
        "environ['KEY']",
        "env = os.environ\n    return env['KEY']",
        "import os as system\n    return system.environ['KEY']",
        "os.environ['KEY'] + os.environ['KEY']",
    ],
)
def test_a_key_that_it_cannot_do_without_is_found_where_it_is_only_used_later(tmp_path: Path, line: str) -> None:
    body = line if "return" in line else f"return {line}"
    tree(tmp_path, app=f"import os\nfrom os import environ\ndef later():\n    {body}\n")
    found = inside(tmp_path, script="app.py")
    assert found["problems"] == []
    assert list(found["needs"]) == ["KEY"], found


@pytest.mark.parametrize(
    "text",
    [
        "os.environ.get('KEY')",
        "os.getenv('KEY')",
        "os.environ.setdefault('KEY', 'x'); os.environ['KEY']",
        "os.environ['KEY'] if 'KEY' in os.environ else None",
        "os.environ['KEY'] = 'x'",
        "del os.environ['KEY']",
        "try:\n        os.environ['KEY']\n    except KeyError: pass",
        "other['KEY']",
        "os.environ[name]",
    ],
)
def test_a_key_that_is_asked_for_with_care_is_no_need(tmp_path: Path, text: str) -> None:
    tree(tmp_path, app=f"import os\ndef later(name='', other=None):\n    {text}\n")
    found = inside(tmp_path, script="app.py")
    assert (found["problems"], found["needs"]) == ([], {})


def test_a_key_that_is_needed_while_something_else_fails_is_a_need(tmp_path: Path) -> None:
    text = (
        "import os\ndef later():\n    try:\n        1 / 0\n    except ZeroDivisionError:\n        os.environ['KEY']\n"
    )
    assert list(inside(tree(tmp_path, app=text), script="app.py")["needs"]) == ["KEY"]


def test_serving_at_import_is_stopped_and_counts_as_imported(tmp_path: Path) -> None:
    text = """\
        import socket
        server = socket.create_server(("127.0.0.1", 0))
        open("listened", "w")
        server.accept()
        """
    found = inside(tree(tmp_path, app=text), script="app.py", seconds=30)
    assert (found["problems"], found["imported"]) == ([], True)
    assert not (tmp_path / "listened").exists()


def test_a_server_that_swallows_exceptions_is_stopped_too(tmp_path: Path) -> None:
    text = """\
        import socket
        while True:
            try:
                socket.create_server(("127.0.0.1", 0))
            except Exception:
                pass
        """
    assert inside(tree(tmp_path, app=text), script="app.py", seconds=30)["problems"] == []


def test_an_import_that_hangs_is_bounded(tmp_path: Path) -> None:
    found = inside(tree(tmp_path, app="import time\ntime.sleep(1000)\n"), script="app.py", seconds=1)
    assert (found["problems"], found["imported"]) == ([], True)


def test_threads_that_it_starts_keep_nobody(tmp_path: Path) -> None:
    text = "import threading, time\nthreading.Thread(target=time.sleep, args=(1000,)).start()\n"
    assert inside(tree(tmp_path, app=text), script="app.py")["imported"] is True


@pytest.mark.parametrize(
    ("text", "problems"),
    [
        ("raise SystemExit(3)", ["importing it ends with exit code 3"]),
        ("import sys; sys.exit('no way')", ["importing it ends with exit code no way"]),
        ("import sys; sys.exit()", []),
        ("raise SystemExit(0)", []),
        ("raise KeyboardInterrupt", ["it cannot be imported: KeyboardInterrupt: (HERE/app.py:1)"]),
    ],
)
def test_a_program_that_ends_when_it_is_imported(tmp_path: Path, text: str, problems: list[str]) -> None:
    found = inside(tree(tmp_path, app=text + "\n"), script="app.py")["problems"]
    assert [problem.replace(str(tmp_path), "HERE").replace(":  (", ": (") for problem in found] == problems


def test_what_begins_under_its_guard_is_not_begun(tmp_path: Path) -> None:
    text = "import sys\nif __name__ == '__main__':\n    sys.exit(3)\nassert sys.argv[1:] == []\n"
    assert inside(tree(tmp_path, app=text), script="app.py")["problems"] == []


def test_a_module_is_imported_from_where_it_lies(tmp_path: Path) -> None:
    tree(tmp_path, service____init__="", service__main="from service import other\n", service__other="X = 1\n")
    tree(tmp_path, unrelated="def f(:\n")
    found = inside(tmp_path, module="service.main")
    assert (found["problems"], found["compiled"], found["imported"]) == ([], 3, True)
    (problem,) = inside(tmp_path, module="service.nowhere")["problems"]
    assert problem.startswith("it cannot be imported: ModuleNotFoundError: No module named 'service.nowhere'")


def test_code_is_compiled_and_not_run(tmp_path: Path) -> None:
    found = inside(tmp_path, code="import os\nos.environ['KEY']\nopen('ran', 'w')\n")
    assert found == {
        "problems": [],
        "compiled": 1,
        "imported": False,
        "needs": {"KEY": "the entry point's -c:2"},
    }
    assert not (tmp_path / "ran").exists()
    (problem,) = inside(tmp_path, code="def f(:\n")["problems"]
    assert problem.startswith("the entry point's -c:1 does not compile: ")


def test_nothing_is_written_beside_it(tmp_path: Path) -> None:
    inside(tree(tmp_path, app="import helper\n", helper=""), script="app.py")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["app.py", "helper.py"]


def test_a_program_without_a_suffix_is_compiled_too(tmp_path: Path) -> None:
    (tmp_path / "tool").write_text("#!/usr/bin/env python3\nprint 'x'\n", encoding="utf-8")
    (problem,) = inside(tmp_path, script="tool")["problems"]
    assert problem.startswith(f"{tmp_path}/tool:2 does not compile: ")


# --- the entry point -------------------------------------------------------------------------------------------------


class Tree:
    """An image's files, and what is found out about its entry point."""

    def __init__(self, host: fakehost.FakeHost) -> None:
        """An empty tree with a Python and a shell, and a podman that mounts it."""
        self.host = host
        self.root = host.root / "tree"
        host.root.joinpath("fake-programs", "podman").write_text(_PODMAN, encoding="utf-8")
        self.report()
        for name in ("/usr/bin/python3.13", "/usr/bin/env", "/bin/sh"):
            self.file(name, "\x7fELF")
        self.link("/usr/local/bin/python3", "../../bin/python3.13")

    def file(self, name: str, text: str, mode: int = 0o755) -> None:
        """A file of the image."""
        path = self.root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode())
        path.chmod(mode)

    def link(self, name: str, target: str) -> None:
        """A symbolic link of the image."""
        path = self.root / name.lstrip("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.symlink_to(target)

    def report(self, **changes: Any) -> None:  # noqa: ANN401  (any JSON value)
        """Let inside.py report this."""
        document = {"problems": [], "compiled": 1, "imported": True, "needs": {}, **changes}
        (self.host.root / "report").write_text(json.dumps(document) + "\n", encoding="utf-8")

    def check(self, *entry: str, image: dict[str, Any] | None = None, **service: Any) -> checks.Found:  # noqa: ANN401
        """What is found of an image with this entry point."""
        secrets = service.pop("stack_secrets", {})
        self.host.declare({"app": fakehost.service("app", **service)}, secrets=secrets)
        found: dict[str, Any] = {
            "id": "1" * 64,
            "reference": "x",
            "architecture": "",
            "entrypoint": entry,
            "command": (),
            "environment": {"PATH": "/usr/local/bin:/usr/bin:/bin"},
            "user": "",
            "working_directory": "/srv",
            "ports": (),
        }
        manifest = load()
        return checks.check(
            manifest, manifest.services["app"], Image(**{**found, **(image or {})}), {"REDIS_HOST": "redis"}, 7
        )

    def spec(self) -> dict[str, Any]:
        """What inside.py was asked, with the interpreter."""
        words = (self.host.root / "run").read_text(encoding="utf-8").splitlines()
        entry = next(word.partition("=")[2] for word in words if word.startswith("--entrypoint="))
        return {**json.loads(words[-1]), "interpreter": json.loads(entry)}


@pytest.fixture
def image(host: fakehost.FakeHost) -> Tree:
    """An image's files."""
    return Tree(host)


def no_program(image: Tree) -> bool:
    """Whether nothing was run."""
    return not (image.host.root / "run").exists()


@pytest.mark.parametrize(
    ("prepare", "entry", "problem"),
    [
        (lambda _: None, "/app/app.py", "the entry point /app/app.py is not in the image"),
        (lambda _: None, "program", "the entry point program is not in the image"),
        (lambda i: (i.root / "app").mkdir(), "/app", "the entry point /app is not a file in the image"),
        (
            lambda i: i.file("/app/app.py", "#!/usr/bin/python3\n", 0o644),
            "/app/app.py",
            "the entry point /app/app.py is not executable: chmod +x, or COPY --chmod=755",
        ),
        (
            lambda i: i.file("/app/app.py", "import os\n"),
            "/app/app.py",
            "the entry point /app/app.py is neither a program nor a script with a #! line",
        ),
        (
            lambda i: i.file("/app/app.py", "#!/usr/bin/python3\r\nimport os\r\n"),
            "/app/app.py",
            "the first line of /app/app.py ends in a carriage return, which becomes part of the interpreter's name",
        ),
        (
            lambda i: i.file("/app/app.py", "#!/usr/bin/env python3\r\nimport os\r\n"),
            "/app/app.py",
            "the first line of /app/app.py ends in a carriage return, which becomes part of the interpreter's name",
        ),
        (
            lambda i: i.file("/app/app.py", "#!/opt/python3\n"),
            "/app/app.py",
            "/app/app.py wants /opt/python3, which is not in the image",
        ),
        (
            lambda i: i.file("/app/app.rb", "#!/usr/bin/env ruby\n"),
            "/app/app.rb",
            "/app/app.rb wants ruby, which is not in the image",
        ),
        (
            lambda i: i.link("/app/app.py", "/app/app.py"),
            "/app/app.py",
            "the entry point /app/app.py is not in the image",
        ),
    ],
)
def test_an_entry_point_that_cannot_start(
    image: Tree, prepare: Callable[[Tree], object], entry: str, problem: str
) -> None:
    prepare(image)
    assert image.check(entry).problems == [problem]
    assert no_program(image)
    assert image.host.calls()[-1] == f"podman image unmount {'1' * 64}"


def test_an_image_that_starts_nothing(image: Tree) -> None:
    assert image.check().problems == ["the image has neither an entry point nor a command, and `command` is empty"]


@pytest.mark.parametrize("line", ["#!/usr/bin/python3.13", "#!/usr/bin/env python3", "#! /usr/bin/env  python3 "])
def test_a_python_script_is_looked_into(image: Tree, line: str) -> None:
    image.file("/app/app.py", f"{line}\n")
    found = image.check("/app/app.py")
    assert found.problems == []
    assert found.notes == ["/app/app.py: 1 files compile, and it can be imported"]
    spec = image.spec()
    assert (spec["script"], spec["module"], spec["code"]) == ("/app/app.py", "", "")
    assert spec["interpreter"] == [line.removeprefix("#!").split()[-1]]


def test_env_may_split_its_argument(image: Tree) -> None:
    image.file("/app/app.py", "#!/usr/bin/env -S LANG=C python3 -u\n")
    assert image.check("/app/app.py").problems == []
    assert image.spec()["interpreter"] == ["python3", "-u"]
    image.file("/app/app.py", "#!/usr/bin/env -S nowhere -u\n")
    assert image.check("/app/app.py").problems == ["/app/app.py wants nowhere, which is not in the image"]


def test_links_are_followed_inside_the_image_and_never_out_of_it(image: Tree) -> None:
    image.file("/opt/real/app.py", "#!/usr/local/bin/python3\n")
    image.link("/opt/current", "real")
    image.link("/app", "/opt/current")
    assert image.check("/app/app.py").problems == []
    # On the host that is a file.
    image.link("/bin/host", "../../../../../../../../../../../etc/hostname")
    assert image.check("/bin/host").problems == ["the entry point /bin/host is not in the image"]
    image.link("/bin/passwd", "/etc/passwd")
    assert image.check("/bin/passwd").problems == ["the entry point /bin/passwd is not in the image"]


def test_a_shell_script_is_one_and_is_not_looked_into(image: Tree) -> None:
    image.file("/start", "#!/bin/sh -e\n")
    found = image.check("/start")
    assert (found.problems, found.notes) == ([], ["the entry point /start is a shell script"])
    assert no_program(image)


def test_what_is_relative_is_so_to_the_working_directory(image: Tree) -> None:
    image.file("/srv/app.py", "#!/usr/bin/python3.13\n")
    assert image.check("./app.py").problems == []
    assert image.spec()["script"] == "/srv/app.py"


@pytest.mark.parametrize(
    ("arguments", "asked", "interpreter"),
    [
        (("app.py",), {"script": "/srv/app.py"}, ["python3"]),
        (("-u", "/app/app.py", "-m"), {"script": "/app/app.py"}, ["python3", "-u"]),
        (("-m", "service.main", "--port", "80"), {"module": "service.main"}, ["python3"]),
        (("-I", "-c", "import x"), {"code": "import x"}, ["python3", "-I"]),
    ],
)
def test_what_python_is_given_is_looked_into(
    image: Tree, arguments: tuple[str, ...], asked: dict[str, str], interpreter: list[str]
) -> None:
    assert image.check("python3", *arguments).problems == []
    expected = {"script": "", "module": "", "code": "", **asked}
    spec = image.spec()
    assert {key: spec[key] for key in expected} == expected
    # By its path, as it was found.
    assert [Path(spec["interpreter"][0]).name, *spec["interpreter"][1:]] == interpreter


def test_a_program_that_pip_installed_is_named_by_what_it_serves(image: Tree) -> None:
    image.file("/usr/local/bin/uvicorn", "#!/usr/local/bin/python3\n")
    assert image.check("uvicorn", "service.main:app", "--port=80").problems == []
    spec = image.spec()
    assert (spec["module"], spec["script"]) == ("service.main", "")


def test_the_services_own_command_is_what_counts(image: Tree) -> None:
    image.file("/app/app.py", "#!/usr/bin/python3.13\n")
    found = image.check(image={"command": ("/nowhere",)}, command=["/app/app.py"])
    assert found.problems == []
    assert image.check(image={"command": ("/nowhere",)}).problems == ["the entry point /nowhere is not in the image"]


def test_the_program_runs_without_a_network_without_rights_and_without_secrets(image: Tree) -> None:
    image.file("/app/app.py", "#!/usr/bin/python3.13\n")
    secret = {"file": str(image.host.root / "secret"), "as": "env"}
    image.check(
        "/app/app.py",
        user="1000:1000",
        secrets=["TOKEN", "CERT"],
        stack_secrets={"TOKEN": secret, "CERT": {**secret, "as": "file"}},
    )
    words = (image.host.root / "run").read_text(encoding="utf-8").splitlines()
    for option in (
        *("--rm", "--pull=never", "--network=none", "--read-only", "--cap-drop=all", "--no-healthcheck"),
        *("--label=aistack.deploy=7", "--timeout=120", "--user=1000:1000", "--log-driver=none"),
        *("--env=REDIS_HOST=redis", "--env=TOKEN=validate", "--env=CERT_FILE=validate"),
    ):
        assert option in words, option


def test_a_key_that_it_does_not_get_is_named_with_the_one_that_was_meant(image: Tree) -> None:
    image.file("/app/app.py", "#!/usr/bin/python3.13\n")
    needs = {"REDIS_HOSTS": "/app/app.py:3", "REDIS_HOST": "/app/app.py:4", "PATH": "/app/app.py:5", "QQ": "/a.py:1"}
    image.report(needs=needs)
    assert image.check("/app/app.py").problems == [
        "/a.py:1 needs QQ, which app does not get (services.aistack.services.app.environment)",
        (
            "/app/app.py:3 needs REDIS_HOSTS, which app does not get; did you mean REDIS_HOST? "
            "(services.aistack.services.app.environment)"
        ),
    ]


def test_what_the_program_says_cannot_write_to_the_terminal(image: Tree) -> None:
    image.file("/app/app.py", "#!/usr/bin/python3.13\n")
    image.report(problems=["bad \x1b[31m"])
    assert image.check("/app/app.py").problems == ["bad \\x1b[31m"]


def test_a_python_that_cannot_run_it_is_a_problem(image: Tree) -> None:
    image.file("/app/app.py", "#!/usr/bin/python3.13\n")
    (image.host.root / "fails").write_text("one\nerror: no such library\n", encoding="utf-8")
    assert image.check("/app/app.py").problems == [
        "its Python ended with exit code 127 before it was imported: error: no such library"
    ]


def test_another_port_than_the_images_is_a_note(image: Tree) -> None:
    image.file("/app/app", "\x7fELF")
    found = image.check("/app/app", image={"ports": (80, 443)}, port=8000)
    assert found.problems == []
    assert found.notes == [
        "the entry point /app/app is a program",
        "the image says that it listens on 80, 443, the service is declared on 8000",
    ]
