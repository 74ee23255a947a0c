"""Each diff of patches/ applies to the installed, pinned trainer, and what it is for fails without it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parent.parent
PATCHES = sorted(ROOT.glob("patches/*/*/*.patch"))
NAMES = [patch.stem for patch in PATCHES]
Answers = tuple[dict[str, Any], dict[str, Any]]


def trainer_of(patch: Path) -> tuple[str, Path]:
    """Name and folder of the trainer's package; skips (which CI refuses) where another version is installed."""
    name, wanted = patch.parents[1].name.rsplit("-", 1)
    if version(name) != wanted:
        pytest.skip(f"{patch.parents[1].name} is not installed, but {name} {version(name)}: constraints.txt pins it")
    spec = find_spec(name)  # imports nothing
    assert spec and spec.origin
    return name, Path(spec.origin).parent


def apply(patch: Path, tree: Path) -> str:
    command = ["git", "apply", "-p1", "--verbose", str(patch)]
    # Outside any repository: inside one, git takes paths from its root, and skips in silence those that it ignores.
    outside = {**os.environ, "GIT_CEILING_DIRECTORIES": str(tree.parent)}
    done = subprocess.run(command, cwd=tree, env=outside, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.fixture(scope="module")
def ask(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str, Path], dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("probes")
    # Our plugin stays out: the need shows without it, and the patch suffices without it.
    environment = {**os.environ, "VERL_USE_EXTERNAL_PLUGINS": "none", "CUDA_VISIBLE_DEVICES": ""}
    environment["PYTHONPATH"] = os.pathsep.join([str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")])
    with (folder / "stderr").open("w") as stderr:
        command = [sys.executable, str(ROOT / "tests/patch_probes.py")]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": stderr, "text": True}
        with subprocess.Popen(command, cwd=folder, env=environment, **pipes) as process:

            def asked(name: str, tree: Path) -> dict[str, Any]:
                assert process.stdin and process.stdout
                print(name, tree, file=process.stdin, flush=True)
                line = process.stdout.readline()
                assert line, (folder / "stderr").read_text()[-2000:]
                found: dict[str, Any] = json.loads(line)
                return found

            yield asked
            assert process.stdin
            process.stdin.close()


@pytest.fixture
def both(ask: Callable[[str, Path], dict[str, Any]], tmp_path: Path) -> Callable[[str], Answers]:
    """What a probe finds in the trainer as installed, and in a copy with its patch."""

    def asked(name: str) -> Answers:
        patch = PATCHES[NAMES.index(name)]
        _, package = trainer_of(patch)
        shutil.copytree(package, tmp_path / package.name)
        apply(patch, tmp_path)
        probe = name.replace("-", "_")
        return ask(probe, package.parent), ask(probe, tmp_path)

    return asked


def test_every_patch_says_what_it_is_for():
    assert len(PATCHES) == 5
    index = (ROOT / "patches/README.md").read_text()
    for patch in PATCHES:
        assert patch.stem == patch.parent.name
        readme = (patch.parent / "README.md").read_text()
        trainer, number = patch.parents[1].name.rsplit("-", 1)
        assert f"{trainer} {number}" in readme.splitlines()[2]
        for heading in ("The problem", "What it does", "Why upstream", "Without it"):
            assert f"\n## {heading}\n" in readme
        assert f"{patch.parents[1].name}/{patch.stem}" in index


@pytest.mark.parametrize("folder", sorted({patch.parents[1].name for patch in PATCHES}))
def test_the_patches_of_a_trainer_apply_together(folder: str, tmp_path: Path):
    patches = [patch for patch in PATCHES if patch.parents[1].name == folder]
    _, package = trainer_of(patches[0])
    for patch in patches:
        touched = set(re.findall(r"^\+\+\+ b/(\S+)$", patch.read_text(), re.MULTILINE))
        for path in touched:
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            if not (tmp_path / path).exists():
                shutil.copy(package.parent / path, tmp_path / path)
        said = apply(patch, tmp_path)
        assert said.count("Applied patch") == len(touched)
    for path in tmp_path.rglob("*.py"):
        compile(path.read_text(), str(path), "exec")


def test_verl_starts_actors_beside_a_trl_without_value_heads(both: Callable[[str], Answers]):
    stock, patched = both("trl-import")
    assert "ImportError" in stock["error"] and "AutoModelForCausalLMWithValueHead" in stock["error"]
    assert patched["embeddings"] == 31
    assert "install a trl that has AutoModelForCausalLMWithValueHead" in patched["critic"]


def test_the_reference_moves_on_its_schedule_and_is_restored(both: Callable[[str], Answers]):
    stock, patched = both("reference-update")
    assert "AttributeError" in stock["error"]
    before, first, second, third, copied, loaded = patched["distances"]
    assert before == first > 0 and second == third == loaded
    assert second == pytest.approx(before / 2) and copied == 0.0 and patched["actor_moved"] == 0.0
    assert "none/model_world_size_1_rank_0.pt" in patched["missing"]


def test_the_config_names_the_worker_class(both: Callable[[str], Answers]):
    stock, patched = both("worker-class")
    assert "ConfigCompositionException" in stock["error"] and "worker_class" in stock["error"]
    assert patched["default"] == "ActorRolloutRefWorker" and patched["default_async"] == "DetachActorWorker"
    assert patched["named"] == "Named"
    assert "must be a subclass of ActorRolloutRefWorker" in patched["stranger"]
    assert "must be a subclass of DetachActorWorker" in patched["named_async"]


def test_the_head_runs_where_responses_are(both: Callable[[str], Answers]):
    stock, patched = both("response-logits")
    # 20 prompt tokens and 10 response tokens in three rows of at most 11; columns 3 to 9 hold what any row needs.
    for layout, positions, kept in (("packed", 30, 10), ("padded", 33, 21)):
        assert stock[layout]["only"]["positions"] == stock[layout]["all"]["positions"] == positions
        everywhere, only = patched[layout]["all"], patched[layout]["only"]
        assert everywhere == stock[layout]["all"]
        assert only["positions"] == kept
        for name in ("log_probs", "entropy", "sum_pi_squared", "gradient"):
            assert len(only[name]) == len(everywhere[name])
            assert only[name] == pytest.approx(everywhere[name], abs=1e-5)
    assert "logits_to_keep" not in patched["supervised"]


def test_a_reward_is_handed_the_trainer(both: Callable[[str], Answers]):
    stock, patched = both("reward-trainer")
    for trainer in ("grpo", "rloo"):
        assert not stock[trainer].pop("is_trainer")
        assert patched[trainer].pop("is_trainer")
        # All else is as before: the columns, and the warning about samples that no reward scores.
        assert patched[trainer] == stock[trainer] and patched[trainer]["unscorable"]
