"""The runner of the mutants, on a toy tree whose package bears our name: an editable install must not win over it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

RUNNER = Path(__file__).parent / "mutants" / "run.py"
CODE = "def double(x):\n    return 2 * x\n"
TESTS = """\
import subprocess, sys
import pytest

def test_strong():
    from rl_think_ext.toy import double
    assert double(3) == 6

def test_weak():
    from rl_think_ext.toy import double
    assert double(0) == 0

def test_child():
    child = "import os; os.chdir('/'); from rl_think_ext.toy import double; print(double(3))"
    assert subprocess.check_output([sys.executable, "-c", child], text=True) == "6\\n"

def test_compiled():
    import rl_think_ext, pathlib
    (module,) = (pathlib.Path(rl_think_ext.__file__).parent / "kernels").glob("toy.so")
    assert module.read_text() == "six"

@pytest.mark.skip(reason="absent: toy")
def test_skipped(): ...

def test_red():
    assert False
"""


def patch(test: str, old: str, new: str) -> str:
    return (
        f"# test: tests/test_toy.py::{test}\n# takes out: the factor\n"
        "--- a/rl_think_ext/toy.py\n+++ b/rl_think_ext/toy.py\n@@ -1,2 +1,2 @@\n"
        f" def double(x):\n-{old}\n+{new}\n"
    )


# A build that copies a source into the wheel stands in for a compiler.
BACKEND = """\
import zipfile
def build_wheel(wheel_directory, config_settings=None, metadata_directory=None):
    text = open("rl_think_ext/kernels/csrc/toy.cpp").read().strip()
    if text == "broken":
        raise SystemExit("toy.cpp: it does not compile")
    name, metadata = "rl_think_ext-0-py3-none-any.whl", "Metadata-Version: 2.1\\nName: rl_think_ext\\nVersion: 0\\n"
    with zipfile.ZipFile(f"{wheel_directory}/{name}", "w") as wheel:
        wheel.writestr("rl_think_ext/kernels/toy.so", text)
        wheel.writestr("rl_think_ext-0.dist-info/METADATA", metadata)
        wheel.writestr("rl_think_ext-0.dist-info/WHEEL", "Wheel-Version: 1.0\\nTag: py3-none-any\\n")
        wheel.writestr("rl_think_ext-0.dist-info/RECORD", "")
    return name
"""
PROJECT = """\
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
[project]
name = "rl_think_ext"
version = "0"
"""


def compiled(new: str) -> str:
    path = "rl_think_ext/kernels/csrc/toy.cpp"
    return (
        "# test: tests/test_toy.py::test_compiled\n# takes out: the compiled six\n"
        f"--- a/{path}\n+++ b/{path}\n@@ -1 +1 @@\n-six\n+{new}\n"
    )


FACTOR = ("    return 2 * x", "    return x")
MUTANTS = {
    "child": patch("test_child", *FACTOR),
    "elsewhere": patch("test_strong", "    return 3 * x", "    return x"),
    "imports": patch("test_strong", "    return 2 * x", "    import no_such_module"),
    "missing": patch("test_nowhere", *FACTOR),
    "red": patch("test_red", *FACTOR),
    "skipped": patch("test_skipped", *FACTOR),
    "strong": patch("test_strong", *FACTOR),
    "syntax": patch("test_strong", "    return 2 * x", "    return ("),
    "hangs": patch("test_strong", "    return 2 * x", "    __import__('time').sleep(600)"),
    "weak": patch("test_weak", *FACTOR),
    "compiled": compiled("five"),
    "uncompilable": compiled("broken"),
}


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("toy")
    files = {"rl_think_ext/__init__.py": "", "rl_think_ext/toy.py": CODE, "tests/test_toy.py": TESTS}
    files |= {"pyproject.toml": PROJECT, "backend.py": BACKEND}
    files |= {"rl_think_ext/kernels/csrc/toy.cpp": "six\n", "rl_think_ext/kernels/toy.so": "six"}
    files |= {f"tests/mutants/{name}.patch": text for name, text in MUTANTS.items()}
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, encoding="utf-8")
    subprocess.run(["git", "init", "--quiet", str(root)], check=True)
    return root


def run(toy: Path, *args: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(RUNNER), "--root", str(toy), "--cold", *args]
    return subprocess.run(command, capture_output=True, text=True)


def verdicts(toy: Path, *names: str, timeout: int = 120) -> tuple[dict[str, str], int]:
    result = run(toy, f"--timeout={timeout}", *(f"--only={name}" for name in names))
    rows = [line.split("  ") for line in result.stdout.splitlines()[: len(names)]]
    return {row[0].strip(): next(filter(None, row[1:])).strip() for row in rows}, result.returncode


def test_killed_mutants_pass_and_the_tree_is_left_alone(toy: Path) -> None:
    assert verdicts(toy, "strong", "child") == ({"strong": "killed", "child": "killed"}, 0)
    assert (toy / "rl_think_ext" / "toy.py").read_text(encoding="utf-8") == CODE


def test_anything_but_a_kill_fails(toy: Path) -> None:
    expected = {
        "strong": "killed",
        "weak": "SURVIVED",
        "elsewhere": "DOES NOT APPLY",
        "missing": "RED WITHOUT IT",
        "red": "RED WITHOUT IT",
        "skipped": "RED WITHOUT IT",
        "imports": "BROKEN",
        "syntax": "BROKEN",
    }
    assert verdicts(toy, *expected) == (expected, 1)


def test_one_survivor_fails(toy: Path) -> None:
    assert verdicts(toy, "weak") == ({"weak": "SURVIVED"}, 1)


@pytest.mark.slow
def test_a_test_that_hangs_is_not_a_kill(toy: Path) -> None:
    assert verdicts(toy, "hangs", timeout=20) == ({"hangs": "TIMED OUT"}, 1)


def test_a_patch_of_compiled_sources_builds_its_copy(toy: Path) -> None:
    assert verdicts(toy, "compiled", "uncompilable") == ({"compiled": "killed", "uncompilable": "DOES NOT BUILD"}, 1)
    assert (toy / "rl_think_ext" / "kernels" / "toy.so").read_text() == "six"


def test_list_runs_nothing(toy: Path) -> None:
    result = run(toy, "--list")
    assert result.returncode == 0
    assert "weak: the factor (tests/test_toy.py::test_weak)" in result.stdout


def test_shares_are_all_of_them_and_none_twice() -> None:
    names = [
        subprocess.run([sys.executable, RUNNER, "--list", *share], capture_output=True, text=True).stdout.splitlines()
        for share in (["--share", "0/3"], ["--share", "1/3"], ["--share", "2/3"], [])
    ]
    assert sorted(names[0] + names[1] + names[2]) == sorted(names[3]) and all(names)
    refused = subprocess.run([sys.executable, RUNNER, "--list", "--share", "3/3"], capture_output=True, text=True)
    assert refused.returncode == 2 and "for example 0/3" in refused.stderr


def test_a_wrong_name_gets_the_nearest(toy: Path) -> None:
    assert "did you mean 'strong'" in run(toy, "--only=stron").stderr


def test_a_patch_without_its_two_lines_is_named(tmp_path: Path) -> None:
    (tmp_path / "tests" / "mutants").mkdir(parents=True)
    assert "no mutants in" in run(tmp_path).stderr
    (tmp_path / "tests" / "mutants" / "bare.patch").write_text("--- a\n", encoding="utf-8")
    assert "bare.patch: line 1 is `# test: ...`" in run(tmp_path).stderr
