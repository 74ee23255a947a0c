"""Resolves the GPU set with pip and compares it with constraints-gpu.txt; `make gpu-resolve`, ARGS=--write anew.

Nothing is installed, and of a wheel only its metadata is read: the index's own file where it serves one (PEP 658), else
the end of the wheel by range requests, which pip calls `fast-deps`. That is some 110 MB, nearly all of it index pages,
where the wheels are 3.9 GB. The pip that Python 3.11 brings downloads the wheels nevertheless, so a newer one is put
into build/ and asked.

The set with pins is what a full resolution without pins gives (`--write` resolves anew, near constraints.txt). A check
fails when pip finds the pins contradictory, when a distribution that would come along has no pin, or, with the Python
of the set, when a pin is of no use.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import tomllib
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parents[1]
PINS, CPU_PINS = ROOT / "constraints-gpu.txt", ROOT / "constraints.txt"
PIP, FOLDER = "pip==26.3", ROOT / "build/gpu-set"
PYTHON = (3, 11)
# verl without [fsdp], which pins trl 0.27, and without [flash-attn-cu130torch211]: of flash-attn 2.8.3 the index has
# source alone, whose metadata cannot be had without torch.
HEADS = ("torch==2.11.0", "vllm==0.24.0", "transformers==5.9.0", "trl==1.16.0", "verl[vllm]==0.9.1")
# Where the two sets differ; all else that both have is one version. vllm 0.24 holds fastapi back, and numpy by numba.
DIFFERENT = {"torch", "transformers", "numpy", "fastapi"}


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def read_pins(path: Path) -> dict[str, str]:
    """Canonical name -> version; raises ValueError for a line that is no pin, and for a second pin of one name."""
    pins: dict[str, str] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        if not line or line.startswith("#"):
            continue
        name, separator, version = line.partition("==")
        if not separator or not re.fullmatch(r"[A-Za-z0-9._-]+", name) or not re.fullmatch(r"[0-9][\w.!+]*", version):
            raise ValueError(f"{path.name}: {line!r} is no pin")
        if canonical(name) in pins:
            raise ValueError(f"{path.name}: {name} is pinned twice")
        pins[canonical(name)] = version
    return pins


def requirements() -> list[str]:
    """What the package asks for, its extras and its build included."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    extras = [text for extra in project["project"]["optional-dependencies"].values() for text in extra]
    return [*project["project"]["dependencies"], *extras, *project["build-system"]["requires"]]


def resolve(constraints: Path) -> dict[str, str]:
    """Name as the distribution spells it -> version, of everything that pip would install."""
    report = FOLDER / "report.json"
    command = [sys.executable, str(newer_pip() / "pip"), "install", "--quiet", "--quiet", "--dry-run"]
    command += ["--ignore-installed", "--use-feature=fast-deps", "--no-input", "--report", str(report)]
    environment = {name: value for name, value in os.environ.items() if name != "PIP_CONSTRAINT"}
    status = subprocess.run([*command, "-c", str(constraints), *HEADS, *requirements()], env=environment).returncode
    if status:
        raise SystemExit(f"pip finds no set of versions under {constraints.name}: its own words stand above")
    found = json.loads(report.read_text(encoding="utf-8"))["install"]
    return {item["metadata"]["name"]: item["metadata"]["version"] for item in found}


def newer_pip() -> Path:
    """The folder of the pip that is asked; it has its name only when it is whole."""
    folder = FOLDER / PIP.replace("==", "-")
    if not folder.is_dir():
        FOLDER.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=FOLDER) as room:
            target = Path(room) / "pip"
            command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(target), PIP]
            subprocess.run(command, check=True)
            target.rename(folder)
    return folder


def differences(pins: Mapping[str, str], resolved: Mapping[str, str], exact: bool = True) -> list[str]:
    """What the file lacks or says otherwise, and with `exact` what it holds for nothing."""
    found = {canonical(name): version for name, version in resolved.items()}
    lines = [f"{name}=={found[name]} has no pin" for name in sorted(found.keys() - pins.keys())]
    both = sorted(found.keys() & pins.keys())
    lines += [
        f"{name} is pinned to {pins[name]}, pip takes {found[name]}" for name in both if pins[name] != found[name]
    ]
    return lines + [f"{name} is pinned for nothing" for name in sorted(pins.keys() - found.keys()) if exact]


def write() -> None:
    """Resolve with the versions of constraints.txt, where the two sets agree, and write the pins under the header."""
    near = FOLDER / "near.txt"
    FOLDER.mkdir(parents=True, exist_ok=True)
    kept = [f"{name}=={version}\n" for name, version in read_pins(CPU_PINS).items() if name not in DIFFERENT]
    near.write_text("".join(kept), encoding="utf-8")
    resolved = resolve(near)
    header = [line for line in PINS.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    pins = [f"{name}=={resolved[name]}" for name in sorted(resolved, key=str.lower)]
    PINS.write_text("\n".join([*header, *pins]) + "\n", encoding="utf-8")
    print(f"{PINS.name}: {len(pins)} pins")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--write", action="store_true", help="resolve anew and write the pins")
    if parser.parse_args().write:
        write()
        return
    lines = differences(read_pins(PINS), resolve(PINS), exact=sys.version_info[:2] == PYTHON)
    if lines:
        raise SystemExit("\n".join([f"{PINS.name} is not what pip resolves:", *lines]))
    print(f"{PINS.name}: {len(read_pins(PINS))} pins fit together")


if __name__ == "__main__":
    main()
