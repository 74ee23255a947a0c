"""The two sets of versions: well-formed, enough for the package, and consistent as far as can be seen offline.

That pip finds the GPU set consistent in full is `make gpu-resolve`, which needs an index.
"""

from __future__ import annotations

from importlib import metadata
from pathlib import Path

import gpu_set
import pytest
from packaging.requirements import Requirement

from rl_think_ext.cli.doctor import place
from rl_think_ext.cli.doctor.case import Case

SETS = {path.name: path for path in (gpu_set.CPU_PINS, gpu_set.PINS)}
# Where the sets are for.
MARKERS = {"python_version": "3.11", "sys_platform": "linux", "platform_machine": "x86_64"}


def unmet(requirement: str, pins: dict[str, str], extra: str = "") -> str | None:
    """What a requirement says that the pins do not keep, or None."""
    asked = Requirement(requirement)
    if asked.marker and not asked.marker.evaluate({**MARKERS, "extra": extra}):
        return None
    version = pins.get(gpu_set.canonical(asked.name))
    return None if version and asked.specifier.contains(version, prereleases=True) else f"{requirement}: {version}"


@pytest.mark.parametrize("name", SETS)
def test_a_set_pins_what_the_package_asks_for(name: str):
    pins = gpu_set.read_pins(SETS[name])
    assert [found for text in gpu_set.requirements() if (found := unmet(text, pins))] == []


def test_the_gpu_set_is_the_one_that_was_asked_for():
    pins = gpu_set.read_pins(gpu_set.PINS)
    assert [found for head in gpu_set.HEADS if (found := unmet(head, pins))] == []
    # verl's [fsdp] and [megatron] would pin trl 0.27 and compile these; the header says how flash-attn comes on top.
    assert not pins.keys() & {"flash-attn", "liger-kernel", "cupy-cuda13x", "megatron-core"}


def test_flash_attention_comes_on_top_in_the_version_that_verl_asks_for():
    pytest.importorskip("verl")
    (asked,) = [text for text in metadata.requires("verl") or () if text.startswith("flash-attn==")]
    wanted = str(Requirement(asked.partition(";")[0]))
    page = (gpu_set.ROOT / "docs/verl.md").read_text(encoding="utf-8")
    for text in (gpu_set.PINS.read_text(encoding="utf-8"), page):
        assert f"--no-build-isolation {wanted}" in text
        for override in ("model.override_config.attn_implementation=sdpa", "model.use_remove_padding=false"):
            assert override in text


def test_the_two_sets_differ_where_they_must_and_nowhere_else():
    cpu, gpu = (gpu_set.read_pins(path) for path in SETS.values())
    assert {name for name in cpu.keys() & gpu.keys() if cpu[name] != gpu[name]} == gpu_set.DIFFERENT
    assert cpu.keys() - gpu.keys() == set()


def test_what_is_installed_as_pinned_finds_its_requirements_in_the_gpu_set():
    pins, checked = gpu_set.read_pins(gpu_set.PINS), 0
    for distribution in metadata.distributions():
        name = gpu_set.canonical(distribution.name)
        if pins.get(name) != distribution.version:
            continue
        extras = ("vllm", "verl-core") if name == "verl" else ("",)
        for extra in extras:
            for text in distribution.requires or ():
                if not text.startswith("verl["):
                    assert unmet(text, pins, extra) is None, f"{name} asks for {text}"
        checked += 1
    assert checked > 100


def test_what_pip_resolves_is_compared_both_ways():
    pins = {"torch": "2.11.0", "numpy": "2.3.5", "left-over": "1.0"}
    resolved = {"torch": "2.11.0", "NumPy": "2.4.0", "New_Thing": "0.1"}
    assert gpu_set.differences(pins, resolved) == [
        "new-thing==0.1 has no pin",
        "numpy is pinned to 2.3.5, pip takes 2.4.0",
        "left-over is pinned for nothing",
    ]
    assert gpu_set.differences(pins, resolved, exact=False)[-1] == "numpy is pinned to 2.3.5, pip takes 2.4.0"
    assert gpu_set.differences({"torch": "2.11.0"}, {"torch": "2.11.0"}) == []


def test_a_pip_that_was_not_fetched_in_full_is_fetched_again(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    def fetch(command: list[str], check: bool) -> None:
        (Path(command[command.index("--target") + 1]) / "pip").mkdir(parents=True)
        calls.append(command)
        if len(calls) == 1:
            raise KeyboardInterrupt

    calls: list[list[str]] = []
    monkeypatch.setattr(gpu_set, "FOLDER", tmp_path / "gpu-set")
    monkeypatch.setattr(gpu_set.subprocess, "run", fetch)
    with pytest.raises(KeyboardInterrupt):
        gpu_set.newer_pip()
    assert list((tmp_path / "gpu-set").iterdir()) == []
    assert (gpu_set.newer_pip() / "pip").is_dir()
    assert gpu_set.newer_pip().is_dir() and len(calls) == 2


@pytest.mark.parametrize("line", ["torch>=2.11", "torch==2.11.0 ; python_version < '4'", "-e .", "torch==2.11.*"])
def test_a_line_that_is_no_pin_is_refused(line: str, tmp_path: Path):
    (tmp_path / "set.txt").write_text(f"# a set\n{line}\n")
    with pytest.raises(ValueError, match="is no pin"):
        gpu_set.read_pins(tmp_path / "set.txt")
    (tmp_path / "set.txt").write_text("a_b==1\nA-b==2\n")
    with pytest.raises(ValueError, match="pinned twice"):
        gpu_set.read_pins(tmp_path / "set.txt")


def test_doctor_knows_the_gpu_set(monkeypatch: pytest.MonkeyPatch):
    cpu, gpu = (gpu_set.read_pins(path) for path in SETS.values())
    assert place.gpu_versions() == {name: gpu[name] for name in gpu_set.DIFFERENT}
    monkeypatch.setattr(place, "version", lambda name: gpu.get(gpu_set.canonical(name)))
    findings = list(place.check_versions(Case()))
    assert [finding for finding in findings if finding.state != "ok"] == []
    assert any("As in the set for GPUs" in finding.found and "torch 2.11.0" in finding.found for finding in findings)
    # A mixture is no set: torch of one with transformers of the other.
    monkeypatch.setattr(place, "version", {**gpu, "transformers": cpu["transformers"]}.get)
    mixed = [finding.found for finding in place.check_versions(Case()) if finding.state == "warn"]
    assert mixed == [f"transformers {cpu['transformers']} is supported, but 5.9.0 is the tested version."]
