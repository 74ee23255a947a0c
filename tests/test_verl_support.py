"""Every line of docs/verl.md's support table: what is refused says so by name, what works has a test that shows it."""

import re
import shlex
import subprocess
from types import SimpleNamespace
from typing import NamedTuple

import pytest
from docs_runner import ROOT, blocks, commands
from verl.trainer.ppo.v1.trainer_sync import PPOTrainerSync
from verl_compose import check, compose, datasets

from rl_think_ext.data import rlmt, rlp, rlpt
from rl_think_ext.errors import UserError
from rl_think_ext.scoring.load import load_tokenizer
from rl_think_ext.verl import RLMTTrainer, RLPTrainer, RLPTTrainer, ThinkTrainer
from rl_think_ext.verl.resolved import DoorConfig

PAGE = ROOT / "docs/verl.md"
SBATCH = ROOT / "examples/slurm/verl.sbatch"
TINY = ROOT / "recipes/rlmt/tiny/models"
METHODS = ("rlp", "rlmt", "rlpt")
# Which tests show that a line works, of each method: a name in one of these files, and what has to stand in the test.
RUNS = "test_verl_runs.py::test_"
TWO_RANKS = f"{RUNS}rlmt_trains_on_two_ranks_with_a_reward_model_behind_a_server_that_loses_some"
JUDGED_TWICE = f"{RUNS}rlpt_trains_on_two_ranks_with_a_judge_behind_a_server_that_loses_some"
RULE = f"{RUNS}rlpt_trains_with_the_rule_judge_and_lambda"
SHOWN = {
    "FSDP2": {
        "rlp": [f"{RUNS}rlp_resumes_to_the_bit_and_not_without_its_averages"],
        "rlmt": [f"{RUNS}rlmt_trains_with_a_reward_model_in_its_own_process"],
        "rlpt": [RULE],
    },
    "FSDP2 on two ranks, of two nodes": {
        "rlp": [f"{RUNS}rlp_on_two_ranks_with_an_average_that_follows_at_once"],
        "rlmt": [TWO_RANKS],
        "rlpt": [JUDGED_TWICE],
    },
    "GRPO": {"rlmt": [f"{RUNS}rlmt_trains_with_a_reward_model_in_its_own_process"], "rlpt": [RULE]},
    "RLOO": {
        "rlp": ["test_verl_door.py::test_our_advantage_is_verls_rloo"],
        "rlmt": ["test_verl_door.py::test_advantages_are_those_of_the_batch_without_the_unscorable"],
        "rlpt": [JUDGED_TWICE, "test_adapters_rlpt.py::test_rewards_and_advantages_are_the_same_by_all_three_ways"],
    },
    "PPO with a critic": {"rlmt": [f"{RUNS}rlmt_trains_by_ppo_with_a_critic"]},
    "LoRA": {
        "rlp": [
            "test_verl_worker.py::test_with_an_adapter_the_average_is_the_adapters",
            "test_verl_worker.py::test_an_adapter_and_its_average_are_saved_and_taken_up_by_another_worker",
        ]
    },
    "our kernels in the log-probs": {
        "rlp": ["test_verl_rlp.py::test_kernel_and_verls_function_agree_with_their_gradients"],
        "rlmt": ["test_verl_support.py::test_kernels_are_put_in_place_for_every_method"],
        "rlpt": ["test_verl_support.py::test_kernels_are_put_in_place_for_every_method"],
    },
    "verl's reward model service": {
        "rlmt": [f"{RUNS}rlmt_trains_with_a_reward_model_in_verls_own_service"],
        "rlpt": [f"{RUNS}rlpt_trains_with_a_judge_in_verls_own_service"],
    },
    "reward model over HTTP": {"rlmt": [TWO_RANKS]},
    "judge over HTTP": {"rlpt": [JUDGED_TWICE]},
    "judge in the reward worker": {"rlpt": [RULE]},
    "KL in the loss": {"rlmt": [f"{RUNS}rlmt_trains_with_a_reward_model_in_its_own_process"]},
}
# What a line needs beside its own word to be composed here, where neither vLLM nor a second model is installed.
ALSO = {
    "LoRA": {"": ["actor_rollout_ref.rollout.name=sglang"]},
    "PPO with a critic": {"": [f"critic.model.path={TINY / 'policy'}", "critic.use_dynamic_bsz=true"]},
    "KL in the reward": {"": ["actor_rollout_ref.ref.log_prob_use_dynamic_bsz=true"]},
    "verl's reward model service": {
        "rlmt": [
            f"reward.reward_model.model_path={TINY / 'reward'}",
            "reward.reward_model.rollout.name=vllm",
            "reward.custom_reward_function.path=pkg://rl_think_ext.verl.rlmt_reward",
            "reward.custom_reward_function.name=rlmt",
        ],
        "rlpt": [
            f"reward.reward_model.model_path={TINY / 'reward'}",
            "reward.reward_model.rollout.name=vllm",
            "reward.custom_reward_function.path=pkg://rl_think_ext.verl.rlpt_reward",
            "reward.custom_reward_function.name=rlpt",
            "rl_think.rlpt.judge=server",
        ],
    },
    "judge over HTTP": {"rlpt": ["rl_think.rlpt.judge=server", "rl_think.rlpt.judge_model=judge"]},
}


class Line(NamedTuple):
    """What is supported or not, the override that asks for it (or nothing), and the verdict for each method."""

    name: str
    said: str
    verdicts: dict[str, str]


def lines_of(text):
    """The rows of the table under the page's last heading."""
    table = text[text.index("## What works, and what does not") :]
    rows = [
        [cell.strip() for cell in row.strip("|").split("|")] for row in re.findall(r"^\|.*\|$", table, re.MULTILINE)
    ]
    assert rows[0] == ["what", "said by", "RLP", "RLMT", "RLPT"]
    return [
        Line(name, said.strip("`") if said.startswith("`") else "", dict(zip(METHODS, verdicts, strict=True)))
        for name, said, *verdicts in rows[2:]
    ]


LINES = lines_of(PAGE.read_text(encoding="utf-8"))
CASES = [pytest.param(line, method, id=f"{line.name}-{method}") for line in LINES for method in METHODS]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """What a run of each method says on this machine: models, data of the builders, batches."""
    from rl_think_ext.tiny.text import save_text_model

    root = tmp_path_factory.mktemp("runs")
    save_text_model(root / "tiny", 32, 1)
    (root / "texts").mkdir()
    for i in range(8):
        (root / f"texts/{i}.txt").write_text(f"The first sentence is number {i}. The second one follows it. It ends.")
    (root / "prompts.jsonl").write_text("".join(f'{{"prompt": "Write {i} lines."}}\n' for i in range(8)))
    rlp.build(rlp.RLPDataConfig(input=str(root / "texts"), output=str(root / "rlp"), tokenizer=str(root / "tiny")))
    rlmt.build(rlmt.RLMTDataConfig(input=str(root / "prompts.jsonl"), output=str(root / "rlmt")))
    segments = {"input": str(root / "texts"), "output": str(root / "rlpt"), "min_segment_chars": 8}
    rlpt.build(rlpt.RLPTDataConfig(**segments, rules=False, dedup="none"))
    both = [
        "hydra.searchpath=[pkg://rl_think_ext.verl.config]",
        "actor_rollout_ref.rollout.name=vllm",
        "actor_rollout_ref.actor.use_dynamic_bsz=true",
        "actor_rollout_ref.actor.ppo_mini_batch_size=8",
        "data.train_batch_size=8",
        "trainer.val_before_train=false",
        f"trainer.default_local_dir={root / 'out'}",
    ]
    model = {"rlp": root / "tiny", "rlmt": TINY / "policy", "rlpt": TINY / "policy"}
    own = {
        "rlp": [],
        "rlmt": [f"rl_think.rlmt.reward_model={TINY / 'reward'}", "reward.num_workers=1"],
        "rlpt": ["rl_think.rlpt.judge=rule"],
    }
    return {
        method: [
            *both,
            f"+rl_think={method}",
            f"data.train_files={root / method}",
            f"actor_rollout_ref.model.path={model[method]}",
            *own[method],
        ]
        for method in METHODS
    }


def start(overrides, processor=None):
    """A run up to where Ray would start its workers; the warnings."""
    config = compose(*overrides)
    _, warnings = check(config)
    datasets(config, load_tokenizer(config.actor_rollout_ref.model.path), processor)
    return warnings


@pytest.mark.parametrize("method", METHODS)
def test_the_shipped_configuration_starts(runs, method):
    start(runs[method])


@pytest.mark.parametrize(("line", "method"), CASES)
def test_a_line_of_the_table_says_what_happens(runs, line, method):
    verdict, also = line.verdicts[method], ALSO.get(line.name, {})
    overrides = [*runs[method], *filter(None, [line.said]), *also.get("", []), *also.get(method, [])]
    if verdict == "–":
        assert method not in re.split(r"\W+", line.said)
    elif verdict.startswith("refused: "):
        with pytest.raises(UserError) as error:
            start(overrides, processor=None if line.said else object())
        key = verdict.removeprefix("refused: ").strip("`")
        assert key in str(error.value), f"the page names {key}, the error says: {error.value}"
    else:
        warnings = start(overrides)
        if verdict.endswith("warned"):
            key = line.said.partition("=")[0]
            assert any(warning.startswith(key) for warning in warnings), warnings
        assert verdict.removesuffix(", warned") in ("works", "not run"), verdict
        if verdict.startswith("works"):
            for name in SHOWN[line.name][method]:
                assert exists(name), f"{line.name}: there is no {name}"


def exists(name):
    """Whether a test of that file and name is there."""
    file, _, function = name.partition("::")
    return re.search(rf"^def {function}\b", (ROOT / "tests" / file).read_text(), re.MULTILINE) is not None


def test_every_line_that_works_has_a_test_and_no_other_has():
    works = {(line.name, method) for line in LINES for method in METHODS if line.verdicts[method].startswith("works")}
    assert works == {(name, method) for name, shown in SHOWN.items() for method in shown}
    assert set(ALSO) <= {line.name for line in LINES}


@pytest.mark.parametrize("word", ["Megatron", "asynchronous", "LoRA", "several turns", "packing", "Ulysses", "FSDP1"])
def test_what_people_ask_for_has_a_line(word):
    assert any(word in line.name for line in LINES)


def test_a_line_that_is_not_true_is_found(runs):
    text = "## What works, and what does not\n| what | said by | RLP | RLMT | RLPT |\n|---|---|---|---|---|\n"
    (line,) = lines_of(text + "| Megatron | `model_engine=megatron` | works | refused: `model_engine` | not run |\n")
    verdicts = {"rlp": "works", "rlmt": "refused: `model_engine`", "rlpt": "not run"}
    assert line == Line("Megatron", "model_engine=megatron", verdicts)
    with pytest.raises(UserError, match="model_engine"):
        test_a_line_of_the_table_says_what_happens(runs, line, "rlp")
    with pytest.raises(pytest.fail.Exception):
        test_a_line_of_the_table_says_what_happens(runs, line, "rlmt")


@pytest.mark.parametrize("kernel", [True, False])
@pytest.mark.parametrize("kind", [RLPTrainer, RLMTTrainer, RLPTTrainer])
def test_kernels_are_put_in_place_for_every_method(monkeypatch, kind, kernel):
    monkeypatch.setattr(PPOTrainerSync, "_load_checkpoint", lambda self: asked.append("checkpoint"))
    asked = []
    trainer = kind.__new__(kind)
    trainer.door = DoorConfig(logprob_kernel=kernel)
    trainer.actor_rollout_wg = SimpleNamespace(think_kernel=lambda: asked.append("kernel"))
    ThinkTrainer._load_checkpoint(trainer)
    assert asked == (["kernel"] if kernel else []) + ["checkpoint"]


# --- the page's commands --------------------------------------------------------------------------------------------


def test_the_page_shows_every_kind_of_run():
    shown = [" ".join(words) for block in blocks(PAGE) if block.language == "sh" for words in commands(block)]
    kinds = ("+rl_think=rlp", "rlmt.reward_model=", "rlmt.server=http", "adv_estimator=gae", "trainer.nnodes=4")
    for kind in (*kinds, "rlpt.server=http"):
        assert any(kind in line for line in shown), kind


def test_the_slurm_script_is_one_and_asks_for_a_run(runs):
    """Its shell is sound, and its last command is composed with what Slurm would put in."""
    subprocess.run(["bash", "-n", SBATCH], check=True)
    text = SBATCH.read_text().replace("\\\n", " ")
    (line,) = [line for line in text.splitlines() if "verl.trainer.main_ppo" in line]
    given = shlex.split(line.partition("verl.trainer.main_ppo")[2])
    folder = next(word for word in runs["rlp"] if word.startswith("data.train_files=")).partition("=")[2]
    model = next(word for word in runs["rlp"] if "model.path=" in word).partition("=")[2]
    values = {"$address": "10.0.0.1:6379", "$SLURM_NNODES": "4", "$MODEL": model, "$SHARED/data/rlp": folder}
    for name, value in values.items():
        given = [word.replace(name, value) for word in given]
    assert any(word.startswith("data.val_files=") for word in given)
    start([*given, "trainer.val_before_train=false", "trainer.test_freq=-1"])
