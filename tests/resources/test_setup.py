"""resources/setup.sh on machines that lack things, played by scripts on its PATH."""

import os
import subprocess
from pathlib import Path

import pytest

from tests import ROOT

SETUP = ROOT / "resources" / "setup.sh"
LIBRARIES = ["libportaudio.so.2", "libGL.so.1", "libEGL.so.1", "libxkbcommon.so.0", "libdbus-1.so.3"]
LIBRARIES += ["libfontconfig.so.1", "libglib-2.0.so.0", "libxcb-cursor.so.0", "libxkbcommon-x11.so.0"]
LIBRARIES += ["libxcb-icccm.so.4", "libxcb-keysyms.so.1", "libxcb-shape.so.0", "libX11-xcb.so.1"]
WINDOW = "libgl1 libegl1 libxkbcommon0 libdbus-1-3 libfontconfig1 libglib2.0-0 libxcb-cursor0 libxkbcommon-x11-0"
WINDOW += " libxcb-icccm4 libxcb-keysyms1 libxcb-shape0 libx11-xcb1"

PYTHON = """#!/bin/sh
echo "$(basename "$0") $*" >>"$LOG"
case "$*" in
    *'import ensurepip'*) [ ! -e "$HERE/no-ensurepip" ] ;;
    *version_info\\[:2\\]*) echo 3.13 ;;
    -c*) [ ! -e "$HERE/wrong-version" ] ;;
    '-m venv'*) mkdir -p "$4/bin" && touch "$4/pyvenv.cfg" && cp "$0" "$4/bin/python" ;;
    *'pip install'*) [ ! -e "$HERE/no-network" ] || { echo 'ERROR: no network'; exit 1; }
        echo 'Downloading torch-2.whl (1 MB)' ;;
esac
"""
APT = """#!/bin/sh
echo "apt-get $*" >>"$LOG"
case "$*" in *install*) rm -f "$HERE/no-ensurepip"; [ ! -e "$HERE/apt-fails" ] ;; esac
"""
DPKG = """#!/bin/sh
for package; do :; done
[ ! -e "$HERE/no-$package" ] && printf 'install ok installed'
"""


class Machine:
    """A copy of the project's two files that matter, and a PATH whose commands say what this machine has."""

    def __init__(self, folder: Path) -> None:
        self.here = folder
        self.root = folder / "a project"
        self.log = folder / "log"
        (self.root / "resources").mkdir(parents=True)
        # Without the one place where the script would find the real machine's Python.
        script = SETUP.read_text(encoding="utf-8").replace(" /usr/bin/python3;", ";")
        (self.root / "resources" / "setup.sh").write_text(script, encoding="utf-8")
        (self.root / "pyproject.toml").write_text("[project]\n")
        (folder / "bin").mkdir()
        for name in ("python3.13", "python3.12", "python3.11", "python3"):
            self.command(name, PYTHON)
        self.command("apt-get", APT)
        self.command("dpkg-query", DPKG)
        self.command("sudo", "#!/bin/sh\nexit 1\n")
        self.become(0)
        self.has(LIBRARIES)

    def command(self, name: str, script: str) -> None:
        path = self.here / "bin" / name
        path.write_text(script)
        path.chmod(0o755)

    def become(self, user: int) -> None:
        self.command("id", f"#!/bin/sh\necho {user}\n")

    def has(self, libraries: list[str]) -> None:
        lines = "\n".join(f"\t{name} (libc6,x86-64) => /lib/{name}" for name in libraries)
        self.command("ldconfig", f"#!/bin/sh\necho '{lines}'\n")

    def lacks(self, what: str) -> None:
        (self.here / what).touch()

    def setup(self, *arguments: str, venv: str | None = None) -> subprocess.CompletedProcess[str]:
        self.log.write_text("")
        variables = {"PATH": f"{self.here / 'bin'}:{os.environ['PATH']}", "LOG": self.log, "HERE": self.here}
        return subprocess.run(
            ["sh", self.root / "resources" / "setup.sh", *arguments],
            env={**variables, **({"UNDERTONE_VENV": venv} if venv else {})},
            cwd=self.here,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
        )

    def did(self, what: str) -> bool:
        return what in self.log.read_text()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_a_complete_machine_gets_an_environment_and_no_packages(machine):
    done = machine.setup()
    assert done.returncode == 0, done.stderr
    assert machine.did(f"-e {machine.root}\n")
    assert not machine.did("apt-get")
    assert "Downloading torch" in done.stderr
    assert done.stdout == ""


def test_a_second_run_installs_nothing_until_pyproject_changes(machine):
    machine.setup("test")
    assert machine.did(f"-e {machine.root}[test]\n")
    for arguments in ([], ["test"]):
        assert machine.setup(*arguments).returncode == 0
        assert not machine.did("pip install")
    (machine.root / "pyproject.toml").write_text("[project]\nname = 'changed'\n")
    machine.setup()
    assert machine.did("pip install")


def test_tests_need_more_than_the_program(machine):
    machine.setup()
    machine.setup("test")
    assert machine.did("[test]")


def test_a_failed_installation_is_told_and_tried_again(machine):
    machine.lacks("no-network")
    failed = machine.setup()
    assert failed.returncode == 3
    assert "ERROR: no network" in failed.stderr
    (machine.here / "no-network").unlink()
    assert machine.setup().returncode == 0
    assert machine.did("pip install")


def test_missing_libraries_are_installed_by_root(machine):
    machine.has(LIBRARIES[2:])
    assert machine.setup("test").returncode == 0
    assert machine.did("install --no-install-recommends -y libportaudio2\n")
    assert machine.did("install --no-install-recommends -y libgl1\n")


def test_the_sound_stack_is_installed_for_the_tests_alone(machine):
    machine.lacks("no-pulseaudio")
    machine.lacks("no-libasound2-plugins")
    assert machine.setup().returncode == 0
    assert not machine.did("apt-get")
    assert machine.setup("test").returncode == 0
    assert machine.did("install --no-install-recommends -y pulseaudio libasound2-plugins\n")


def test_without_the_windows_libraries_the_rest_is_installed(machine):
    machine.has(LIBRARIES[:1])
    machine.lacks("apt-fails")
    done = machine.setup()
    assert done.returncode == 0
    assert machine.did(f"install --no-install-recommends -y {WINDOW}\n")
    assert "without them only the window is missing" in done.stderr
    assert machine.setup("test").returncode == 3


def test_a_user_without_rights_is_told_the_command(machine):
    machine.become(1000)
    machine.has([])
    program = machine.setup()
    assert program.returncode == 0
    assert "run: sudo apt-get install --no-install-recommends -y libportaudio2\n" in program.stderr
    tests = machine.setup("test")
    assert tests.returncode == 3
    assert f"-y {WINDOW}\n" in tests.stderr
    assert not machine.did("apt-get")


def test_a_failing_apt_is_tried_with_fresh_lists_and_then_explained(machine):
    machine.has([])
    machine.lacks("apt-fails")
    done = machine.setup("test")
    assert done.returncode == 3
    assert machine.did("apt-get update")
    assert "that failed; run: apt-get update && apt-get install" in done.stderr


def test_ensurepip_is_installed_for_this_python(machine):
    machine.lacks("no-ensurepip")
    done = machine.setup()
    assert done.returncode == 0, done.stderr
    assert machine.did("-y python3.13-venv\n")


def test_a_user_without_ensurepip_is_told_the_command(machine):
    machine.become(1000)
    machine.lacks("no-ensurepip")
    done = machine.setup()
    assert done.returncode == 3
    assert "run: sudo apt-get install --no-install-recommends -y python3.13-venv\n" in done.stderr


def test_a_machine_without_a_fitting_python_asks_apt_and_then_the_user(machine):
    machine.lacks("wrong-version")
    done = machine.setup()
    assert done.returncode == 3
    assert machine.did("-y python3 python3-venv\n")
    assert "no Python 3.11, 3.12 or 3.13 found" in done.stderr


def test_a_half_made_environment_is_made_anew(machine):
    broken = machine.root / ".venv"
    (broken / "bin").mkdir(parents=True)
    (broken / "pyvenv.cfg").touch()
    assert machine.setup().returncode == 0
    assert machine.did("-m venv --clear")


def test_a_folder_that_is_no_environment_is_left_alone(machine):
    precious = machine.here / "precious"
    precious.mkdir()
    (precious / "thesis.txt").write_text("all of it")
    done = machine.setup(venv="precious")
    assert done.returncode == 3
    assert "no virtual environment" in done.stderr
    assert (precious / "thesis.txt").exists()


def test_the_environment_may_lie_elsewhere(machine):
    assert machine.setup(venv="else where/venv").returncode == 0
    assert (machine.here / "else where/venv/bin/python").exists()
    assert not (machine.root / ".venv").exists()


def test_an_environment_of_a_wrong_python_is_refused(machine):
    machine.setup()
    machine.lacks("wrong-version")
    done = machine.setup()
    assert done.returncode == 3
    assert "remove it and repeat" in done.stderr


def test_an_unknown_word_is_bad_usage(machine):
    assert machine.setup("tset").returncode == 2
