"""The wheel: built without torch, with and without a compiler, and used from somewhere else."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
pytestmark = pytest.mark.slow

# The finder of this environment's editable install would win over the wheel.
SITECUSTOMIZE = """\
import sys
sys.meta_path[:] = [f for f in sys.meta_path if "editable" not in getattr(f, "__module__", type(f).__module__)]
sys.path[:] = [p for p in sys.path if p != {root!r}]
"""
USE = """\
import torch
from rl_think_ext import kernels
assert kernels.__file__.startswith({where!r}), kernels.__file__
print(kernels.available_backends())
logits, labels = torch.randn(5, 33, requires_grad=True), torch.arange(5)
found = kernels.masked_logprob(logits, labels)
found.sum().backward()
expected = logits.detach().double().log_softmax(-1)[torch.arange(5), labels]
assert (found - expected).abs().max() < 1e-6
"""


def build(folder: Path, **environment: str) -> tuple[Path, float]:
    """The wheel of a copy of the source, out of an environment that has no torch; and the seconds it took."""
    python = folder / "bin/python"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    source = folder / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "build", "out", "dist", "__pycache__"))
    assert subprocess.run([python, "-c", "import torch"], capture_output=True).returncode == 1
    start = time.monotonic()
    done = subprocess.run(
        [python, "-m", "pip", "wheel", "-q", "--no-deps", "-C", "cmake.define.RL_THINK_CUDA=OFF", "-w", folder, source],
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (wheel,) = folder.glob("*.whl")
    return wheel, time.monotonic() - start


def use(wheel: Path, folder: Path) -> subprocess.CompletedProcess[str]:
    """Install it beside this environment's torch and call it from a folder of its own."""
    site = folder / "site"
    subprocess.run([sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", site, wheel], check=True)
    (site / "sitecustomize.py").write_text(SITECUSTOMIZE.format(root=str(ROOT)))
    return subprocess.run(
        [sys.executable, "-c", USE.format(where=str(site))],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(site)},
        capture_output=True,
        text=True,
    )


def test_wheel_is_built_without_torch_and_works_elsewhere(tmp_path: Path) -> None:
    wheel, seconds = build(tmp_path / "with")
    files = zipfile.ZipFile(wheel).infolist()
    # The embedded model is data: 1.2 MiB of float32 that nothing compresses.
    size = sum(file.compress_size for file in files if "/tiny/" not in file.filename)
    print(f"{wheel.name}: {wheel.stat().st_size / 2**20:.2f} MiB, {size / 2**20:.2f} without tiny, in {seconds:.0f} s")
    assert size <= 2**20
    assert not [file.filename for file in files if "csrc" in file.filename]
    # Whatever the repository holds of the package comes along, the settings for hydra among it.
    listed = subprocess.run(["git", "ls-files", "rl_think_ext"], cwd=ROOT, capture_output=True, text=True, check=True)
    wanted = {name for name in listed.stdout.splitlines() if "csrc" not in name and (ROOT / name).is_file()}
    assert "rl_think_ext/verl/config/rl_think/rlp.yaml" in wanted
    assert wanted - {file.filename for file in files} == set()
    done = use(wheel, tmp_path / "with")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "('cpp', 'torch')\n"
    assert "not there" not in done.stderr


def test_f17_wheel_without_a_compiler_uses_torch_and_says_so_once(tmp_path: Path) -> None:
    wheel, _ = build(tmp_path / "without", CXX="/nonexistent/c++")
    assert not [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".so")]
    done = use(wheel, tmp_path / "without")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "('torch',)\n"
    assert done.stderr.count("the compiled kernels are not there") == 1
