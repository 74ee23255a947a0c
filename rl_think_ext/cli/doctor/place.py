"""The machine and what is installed on it: Python, versions against the tested set, backends, compiler, devices."""

from __future__ import annotations

import os
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rl_think_ext.cli.doctor.case import Case, Finding

PACKAGE = "rl_think_ext"
TESTED = Path(__file__).parent / "tested.txt"
# Where constraints-gpu.txt differs from constraints.txt.
GPU_SET = Path(__file__).parent / "tested_gpu.txt"
EXTRAS = ("trl", "data", "verl")
# Distributions whose module has another name.
_MODULES = {"pyyaml": "yaml", "transferqueue": "transfer_queue"}
_COMPILERS = ("c++", "g++", "clang++")


def check_python(case: Case) -> Iterator[Finding]:
    """Python within what the package asks for."""
    from packaging.specifiers import SpecifierSet

    wanted = metadata.metadata(PACKAGE)["Requires-Python"]
    here = platform.python_version()
    if not SpecifierSet(wanted).contains(here, prereleases=True):
        yield Finding("broken", "Python", f"Python {here} is not {wanted}.", f"Make an environment with {wanted}.")
        return
    yield Finding("ok", "Python", f"Python {here} on {platform.system()} {platform.machine()}, {os.cpu_count()} cores.")


def check_versions(case: Case) -> Iterator[Finding]:
    """Each distribution against the supported range and the tested version; those that agree share one line."""
    tested, agree, words = tested_versions(), [], "As tested"
    if (version("torch") or "").partition("+")[0] == gpu_versions()["torch"]:
        tested, words = {**tested, **gpu_versions()}, "As in the set for GPUs (constraints-gpu.txt)"
    for name, (extra, ranges) in sorted(requirements().items()):
        here = version(name)
        if name == "verl" and here not in (None, tested[name]):
            continue  # verl's own check says it, with what to do
        if here is None:
            yield from _missing(name, extra, ranges, needed=case.path is not None)
        elif not ranges.contains(here, prereleases=True):
            # F43: who trains with TRL alone is not hurt by verl, and verl's own check names the tested version.
            state = "warn" if extra == "verl" else "broken"
            found = f"{name} {here} is outside the supported range {ranges}."
            yield Finding(state, name, found, f"Install one inside it: pip install '{name}{ranges}'.")  # type: ignore[arg-type]
        elif name in tested and here.partition("+")[0] != tested[name]:
            found = f"{name} {here} is supported, but {tested[name]} is the tested version."
            todo = f"If numbers look strange: pip install '{name}=={tested[name]}'."
            yield Finding("warn", name, found, todo)
        else:
            agree.append(f"{name} {here}")
    if agree:
        yield Finding("ok", "tested set", f"{words}: {', '.join(agree)}.")
    yield from _vllm()


def _missing(name: str, extra: str, ranges: Any, needed: bool) -> Iterator[Finding]:
    if not extra:
        todo = f"pip install '{name}{ranges}'"
        yield Finding("broken", name, f"{name} is not installed, and nothing works without it.", todo)
    elif extra == "trl" and needed:
        todo = f"pip install '{PACKAGE}[trl]'"
        yield Finding("broken", name, f"{name} is not installed, and this run needs it.", todo)
    else:
        found = f"{name} of the extra `{extra}` is not installed."
        yield Finding("absent", name, found, f"Where it is needed: pip install '{PACKAGE}[{extra}]'.")


def _vllm() -> Iterator[Finding]:
    """vLLM is an extra of trl, with trl's own range."""
    here, ranges = version("vllm"), _ranges("trl", "vllm").get("vllm")
    if here is None:
        todo = "Only for `use_vllm: true`: pip install 'trl[vllm]'."
        yield Finding("absent", "vllm", "vllm is not installed; sampling goes through transformers.", todo)
    elif ranges is not None and not ranges.contains(here, prereleases=True):
        found = f"vllm {here} is outside the range {ranges} that trl {version('trl')} supports."
        yield Finding("warn", "vllm", found, "Install trl[vllm] anew, or say `use_vllm: false`.")
    else:
        yield Finding("ok", "vllm", f"vllm {here} is there.")


def check_backends(case: Case) -> Iterator[Finding]:
    """The backends of masked_logprob, and one call of the best."""
    import torch

    from rl_think_ext import kernels
    from rl_think_ext.kernels import native

    backends = kernels.available_backends()
    value = kernels.masked_logprob(torch.zeros(1, 4), torch.tensor([1]))
    assert abs(float(value) + 1.3863) < 1e-3, value  # type: ignore[arg-type]
    if native.module() is None:
        found = (
            f"The compiled kernels are not there ({native.problem()}): masked_logprob works, more slowly, with torch."
        )
        yield Finding("warn", "backends", found, "Have a C++ compiler (the next line) and install rl_think_ext anew.")
        return
    isa = native.module().isa()
    yield Finding("ok", "backends", f"masked_logprob works, with {', '.join(backends)}; the CPU's kernels use {isa}.")
    if torch.cuda.is_available() and not native.module().has_cuda:
        found = "The kernels were compiled without CUDA: on the GPU masked_logprob works, more slowly, with torch."
        todo = "Put nvcc on the PATH and reinstall rl_think_ext from its source with -C cmake.define.RL_THINK_CUDA=ON."
        yield Finding("warn", "backends", found, todo)


def check_compiler(case: Case) -> Iterator[Finding]:
    """A C++ compiler, as the build looks for one; it matters where the kernels are not compiled."""
    from rl_think_ext.kernels import native

    names = [name for name in (os.environ.get("CXX"), *_COMPILERS) if name]
    at = next((place for name in names if (place := shutil.which(name))), None)
    if at:
        yield Finding("ok", "compiler", f"A C++ compiler is there ({Path(at).name}).")
        return
    found = f"No C++ compiler is found (looked for {', '.join(names)})"
    if native.module() is not None:
        yield Finding("ok", "compiler", f"{found}; the kernels are compiled already.")
        return
    todo = "To have one: apt install g++ (Debian, Ubuntu), or name it in CXX."
    yield Finding("warn", "compiler", f"{found}: the kernels cannot be compiled.", todo)


def check_devices(case: Case) -> Iterator[Finding]:
    """Accelerators that torch sees, and those that it does not."""
    import torch

    if torch.cuda.is_available():
        names = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
        yield Finding("ok", "devices", f"torch {torch.__version__} sees {len(names)} × {names[0]}.")
    elif nvidia_devices():
        built = f"for CUDA {torch.version.cuda}" if torch.version.cuda else "without CUDA"
        found = f"There is an NVIDIA device, but torch {torch.__version__}, built {built}, cannot use it."
        yield Finding("warn", "devices", found, "Install torch from https://pytorch.org for this driver's CUDA.")
    else:
        yield Finding("ok", "devices", f"No NVIDIA device: torch {torch.__version__} computes on the CPU.")


def nvidia_devices() -> list[Path]:
    """The device files of NVIDIA's driver."""
    return sorted(Path("/dev").glob("nvidia[0-9]*"))


def tested_versions() -> Mapping[str, str]:
    """The tested version of what this package asks for, by distribution: the lines of constraints.txt that matter."""
    return _pins(TESTED)


def gpu_versions() -> Mapping[str, str]:
    """The version in the set for GPUs, of what has another one there."""
    return _pins(GPU_SET)


def _pins(path: Path) -> Mapping[str, str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    return {name.lower(): number for name, _, number in (ln.partition("==") for ln in lines) if number}


@cache
def requirements() -> Mapping[str, tuple[str, Any]]:
    """(extra or "", range) by distribution, out of this package's own metadata; an earlier extra wins."""
    found: dict[str, tuple[str, Any]] = {}
    for extra in ("", *EXTRAS):
        for name, ranges in _ranges(PACKAGE, extra).items():
            found.setdefault(name, (extra, ranges))
    return found


def _ranges(package: str, extra: str) -> dict[str, Any]:
    """The version ranges that a package asks for, with one of its extras or without any."""
    from packaging.requirements import Requirement

    try:
        asked = [Requirement(text) for text in metadata.requires(package) or ()]
    except metadata.PackageNotFoundError:
        return {}
    base = {r.name.lower() for r in asked if r.marker is None or r.marker.evaluate({"extra": ""})}
    wanted = [r for r in asked if r.marker is None or r.marker.evaluate({"extra": extra})]
    return {r.name.lower(): r.specifier for r in wanted if not extra or r.name.lower() not in base}


def version(name: str) -> str | None:
    """The version of a distribution whose module can be found, or None."""
    try:
        number = metadata.version(name)
    except metadata.PackageNotFoundError:
        return None
    module = _MODULES.get(name, name)
    if module in sys.modules and sys.modules[module] is not None:
        return number
    return number if find_spec(module) else None
