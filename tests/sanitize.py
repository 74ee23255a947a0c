"""Runs the tests of the kernels with the compiled module under AddressSanitizer and UBSan; `make sanitize`.

The module is built anew, with the sanitizers in it, and laid into a copy of the package that the tests then import;
every instruction set of this machine is used (the tests go through them). Any report fails: the sanitizers end the
process at the first one. Leaks are not looked for: Python and torch keep what they have until the end.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
TESTS = ("test_kernels.py", "test_kernels_grid.py", "test_kernels_hazards.py", "test_kernels_memory.py")
TESTS += ("test_kernels_autograd.py", "test_kernels_properties.py")
OPTIONS = {
    "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1:strict_string_checks=1:allocator_may_return_null=1",
    "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
}
# The finder of an editable install would win over PYTHONPATH.
SITECUSTOMIZE = """\
import sys
def editable(finder):
    return getattr(finder, "__module__", type(finder).__module__).startswith("_editable_")
sys.meta_path[:] = [f for f in sys.meta_path if not editable(f)]
sys.path[:] = [p for p in sys.path if p != {root!r}]
"""


def build(folder: Path) -> Path:
    """A tree whose rl_think_ext holds the sanitized module."""
    wheels, tree = folder / "wheels", folder / "tree"
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(wheels), str(ROOT)]
    for setting in ("RL_THINK_CUDA=OFF", "RL_THINK_SANITIZE=address,undefined"):
        command += ["-C", f"cmake.define.{setting}"]
    command += ["-C", f"build-dir={folder / 'build'}", "-C", "install.strip=false"]
    subprocess.run(command, check=True)
    (wheel,) = wheels.glob("*.whl")
    subprocess.run([sys.executable, "-m", "zipfile", "-e", str(wheel), str(tree)], check=True)
    (tree / "sitecustomize.py").write_text(SITECUSTOMIZE.format(root=str(ROOT)), encoding="utf-8")
    shutil.copytree(ROOT / "tests", tree / "tests", ignore=shutil.ignore_patterns("mutants", "__pycache__"))
    shutil.copy2(ROOT / "pyproject.toml", tree)
    return tree


def library(name: str) -> str:
    found = subprocess.run(
        ["g++", f"-print-file-name={name}"], capture_output=True, text=True, check=True
    ).stdout.strip()
    if not Path(found).is_absolute():
        raise SystemExit(f"no {name} here: install the sanitizers of g++")
    return str(Path(found).resolve())


def environment(tree: Path) -> dict[str, str]:
    # The module is loaded by a Python without sanitizers: their runtime has to be there before anything else.
    preload = ":".join([library("libasan.so"), library("libubsan.so"), library("libstdc++.so.6")])
    return os.environ | OPTIONS | {
        "LD_PRELOAD": preload,
        "PYTHONPATH": str(tree),
        "PYTHONDONTWRITEBYTECODE": "1",
        # Python's own allocator hides an overrun inside its arenas.
        "PYTHONMALLOC": "malloc",
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "2"),
    }  # fmt: skip


def check_that_it_bites(env: dict[str, str], tree: Path) -> None:
    """A read behind the end of a label has to be reported: otherwise nothing below means anything."""
    code = (
        "import ctypes, torch\n"
        "from rl_think_ext.kernels import native\n"
        "module = native.module()\n"
        f"assert module.__file__.startswith({str(tree)!r}), module.__file__\n"
        "x = torch.zeros(3, 1001); y = torch.zeros(3, dtype=torch.long); out = torch.zeros(8, 4)\n"
        "print('loaded', flush=True)\n"
        "module.forward(0, x.data_ptr(), 1, 1001, 0, 1 << 20, y.data_ptr(), 3, 0, 0, 0, 1.0, 0.0,\n"
        "               *(out[i].data_ptr() for i in range(4)), 1)\n"
        "print('not noticed')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=env, cwd=tree, capture_output=True, text=True)
    if "loaded" not in done.stdout or done.returncode == 0 or "AddressSanitizer" not in done.stderr:
        raise SystemExit(f"the sanitizers do not work here:\n{done.stdout}{done.stderr[-3000:]}")


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("pytest", nargs="*", help="arguments for pytest instead of the kernels' tests")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(prefix="sanitize-") as name:
        tree = build(Path(name).resolve())
        env = environment(tree)
        check_that_it_bites(env, tree)
        tests = args.pytest or [f"tests/{test}" for test in TESTS]
        # -s: a report goes to the terminal, not into pytest's memory that dies with it.
        command = [sys.executable, "-m", "pytest", "-q", "-s", "-p", "no:cacheprovider", "-m", "not slow", *tests]
        return subprocess.run(command, env=env, cwd=tree).returncode


if __name__ == "__main__":
    sys.exit(main())
