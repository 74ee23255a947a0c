"""With no compiled module, a broken one, or other instructions than the machine's best (F17)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from kernel_grid import INSTRUCTIONS

from rl_think_ext.kernels import native

USE = """\
import warnings
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    import torch
    from rl_think_ext.kernels import available_backends, linear_masked_logprob, logprob_partials, masked_logprob
    x, y = torch.zeros(2, 4, requires_grad=True), torch.tensor([0, 3])
    for _ in range(3):
        masked_logprob(x, y).sum().backward()
        linear_masked_logprob(torch.zeros(2, 3), torch.zeros(4, 3), y)
        logprob_partials(x, y)
    ours = [str(w.message) for w in said if "compiled kernels" in str(w.message)]
print(available_backends())
print(len(ours), *ours)
try:
    masked_logprob(x, y, backend="cpp")
except ValueError as error:
    print(error)
"""
# Stands in for the module, ahead of every other finder.
HIDES = """\
import importlib.machinery, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "rl_think_ext.kernels._native":
            {found}
sys.meta_path.insert(0, Finder())
"""
MISSING = {
    "not built": HIDES.format(found="raise ModuleNotFoundError('No module named ' + repr(name), name=name)"),
    "does not link": HIDES.format(found="raise ImportError('undefined symbol: _ZN3abc')"),
    "cannot be read": HIDES.format(found="raise OSError('Input/output error')"),
}


def run(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = os.environ | environment
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=120)


@pytest.mark.parametrize("how", MISSING)
def test_f17_falls_back_with_one_warning(how: str) -> None:
    done = run(MISSING[how] + USE)
    assert done.returncode == 0, done.stderr
    backends, said, explicit = done.stdout.splitlines()
    assert backends == "('torch',)"
    assert said.startswith("1 the compiled kernels are not there (")
    assert "Install a C++ compiler" in said
    assert explicit == "backend is 'auto' or one of ('torch',) here, got 'cpp'"


def test_f17_a_broken_file_is_a_missing_module(tmp_path: Path) -> None:
    broken = tmp_path / "_native.so"
    broken.write_bytes(b"\x7fELF" + bytes(100))
    found = f"return importlib.util.spec_from_file_location(name, {str(broken)!r})"
    done = run("import importlib.util\n" + HIDES.format(found=found) + USE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1].startswith("1 the compiled kernels are not there (")


def test_f17_nothing_is_said_where_the_module_is_there() -> None:
    done = run(USE)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:2] == ["('cpp', 'torch')", "0"]


@pytest.mark.parametrize("name", INSTRUCTIONS)
def test_instructions_are_chosen_by_the_environment(name: str) -> None:
    done = run("from rl_think_ext.kernels import native; print(native.module().isa())", RL_THINK_ISA=name)
    assert done.stdout == f"{name}\n", done.stderr


def test_instructions_that_there_are_not_are_named() -> None:
    done = run("from rl_think_ext.kernels import available_backends; available_backends()", RL_THINK_ISA="avx3")
    assert done.returncode == 1
    assert "ValueError: RL_THINK_ISA is one of avx512_bf16, avx512, avx2, scalar that this machine has, got 'avx3'" in (
        done.stderr
    )
    assert run("import rl_think_ext.kernels as k; k.available_backends()", RL_THINK_ISA="").returncode == 0


def test_f17_one_binary_for_every_torch() -> None:
    module = native.module()
    assert module is not None
    needed = subprocess.run(["ldd", module.__file__], capture_output=True, text=True, check=True).stdout
    assert "torch" not in needed and "c10" not in needed and "libcuda" not in needed
    assert ".abi3." in module.__file__ or "cpython" in module.__file__
    if shutil.which("nm"):
        symbols = subprocess.run(["nm", "-DC", module.__file__], capture_output=True, text=True, check=True).stdout
        assert "at::" not in symbols and "c10::" not in symbols and "torch" not in symbols
    assert Path(module.__file__).stat().st_size < 2**20
