"""Settings that would silently make it not-RLP are refused or warned about; what reaches vLLM is checked without it."""

import dataclasses
import warnings
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
import yaml
from datasets import Dataset

from rl_think_ext.cli.demo import SETTINGS
from rl_think_ext.errors import UserError
from rl_think_ext.template import CLOSE_TAG, TagIds
from rl_think_ext.trl import ThinkGRPOConfig, checks, host, launch, trainer
from rl_think_ext.trl.rows import load_rows

SINGLE, SEVERAL = TagIds((1,), (2,)), TagIds((1, 2), (3, 4))


def config(tmp_path, **values):
    base = {"use_cpu": True, "bf16": False, "report_to": "none", "save_strategy": "no"}
    return ThinkGRPOConfig(str(tmp_path), **{**base, **values})


def test_our_defaults_are_rlp(tmp_path):
    assert checks.check_settings(config(tmp_path)) == []


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("scale_rewards", "group"),
        ("loss_type", "dapo"),
        ("importance_sampling_level", "sequence"),
        ("multi_objective_aggregation", "normalize_then_sum"),
        ("remove_unused_columns", True),
    ],
)
def test_setting_that_is_not_rlp_is_refused_with_the_reason(tmp_path, name, value):
    with pytest.raises(UserError, match=f"{name}: .* is not RLP: .*Say `{name}: "):
        checks.check_settings(config(tmp_path, **{name: value}))


@pytest.mark.parametrize(
    ("name", "value"),
    [("beta", 0.01), ("delta", 2.0), ("top_entropy_quantile", 0.5), ("mask_truncated_completions", True)],
)
def test_setting_that_differs_is_warned_about(tmp_path, name, value):
    found = checks.check_settings(config(tmp_path, **{name: value}))
    assert any(text.startswith(f"{name}: ") and "differs from RLP" in text for text in found)


def test_a_group_of_one_is_refused(tmp_path):
    args = config(tmp_path)
    args.num_generations = 1
    with pytest.raises(UserError, match="num_generations is at least 2"):
        checks.check_settings(args)


def test_hazard_14_checkpoint_inside_a_generation_cycle_is_warned_about(tmp_path):
    cycle = {"num_iterations": 2, "steps_per_generation": 4, "gradient_accumulation_steps": 2, "save_strategy": "steps"}
    assert any(
        "no multiple of the 4 steps" in text for text in checks.check_settings(config(tmp_path, **cycle, save_steps=6))
    )
    assert checks.check_settings(config(tmp_path, **cycle, save_steps=8)) == []


def test_hazard_19_vllm_importance_sampling_is_warned_about(tmp_path):
    found = checks.check_settings(config(tmp_path, use_vllm=True))
    assert any("drops whole long thoughts and is not eq. 8" in text for text in found)
    assert checks.check_settings(config(tmp_path, use_vllm=True, vllm_importance_sampling_correction=False)) == []


def test_hazard_19_share_of_dropped_thoughts_is_told_by_length():
    mask = torch.tensor([[1, 0, 0], [1, 1, 0], [1, 1, 1], [1, 1, 1]])
    ratio = torch.tensor([[1.0], [0.9], [0.0], [1.1]])
    assert trainer.dropped_by_length(ratio, mask) == {"short": 0.0, "long": 0.5}
    by_token = torch.tensor([[0.0, 5, 5], [1, 0, 5], [0, 0, 0], [0, 0, 1]])
    assert trainer.dropped_by_length(by_token, mask) == {"short": 0.5, "long": 0.5}


def test_hazard_22_bf16_on_a_cpu_is_refused(tmp_path):
    with pytest.raises(UserError, match="bf16: false"):
        checks.check_settings(config(tmp_path, bf16=True))


@pytest.mark.parametrize("name", ["trl", "train"])
def test_hazard_22_recipe_and_demo_say_bf16_false_and_agree(name):
    with open(f"recipes/rlp/tiny/{name}.yaml") as file:
        recipe = yaml.safe_load(file)
    assert recipe["bf16"] is False
    shared = {key: value for key, value in SETTINGS.items() if key in recipe}
    assert shared == {key: recipe[key] for key in shared}
    assert set(SETTINGS) <= set(recipe)


# --- stops ------------------------------------------------------------------------------------------------------------


def host_with(**values):
    args = SimpleNamespace(generation_kwargs=values.pop("generation_kwargs", None))
    return SimpleNamespace(**{"use_vllm": False, "eos_token_ids": [0], "args": args, **values})


def test_transformers_path_needs_the_closing_id():
    checks.check_stop(host_with(eos_token_ids=[0, 2]), SINGLE)
    with pytest.raises(UserError, match=r"add 2 to `eos_token_id`"):
        checks.check_stop(host_with(), SINGLE)
    with pytest.raises(UserError, match="2 tokens here, and the transformers path stops at single ids only"):
        checks.check_stop(host_with(eos_token_ids=[0, 3, 4]), SEVERAL)


@pytest.mark.parametrize(("tags", "wanted"), [(SINGLE, "stop_token_ids: \\[2\\]"), (SEVERAL, 'stop: \\["</think>"\\]')])
def test_vllm_path_needs_a_stop(tags, wanted):
    with pytest.raises(UserError, match=wanted):
        checks.check_stop(host_with(use_vllm=True), tags)


def test_our_trainer_tells_vllm_what_it_needs(tmp_path):
    args = config(tmp_path, use_vllm=True, generation_kwargs={"stop_token_ids": [9], "seed": 1})
    trainer._tell_vllm_to_stop(args, SINGLE)
    assert args.generation_kwargs == {"stop_token_ids": [2, 9], "seed": 1}
    checks.check_stop(host_with(use_vllm=True, generation_kwargs=args.generation_kwargs), SINGLE)
    args = config(tmp_path, use_vllm=True)
    trainer._tell_vllm_to_stop(args, SEVERAL)
    assert args.generation_kwargs == {"stop": [CLOSE_TAG], "include_stop_str_in_output": True}
    checks.check_stop(host_with(use_vllm=True, generation_kwargs=args.generation_kwargs), SEVERAL)


# --- host -------------------------------------------------------------------------------------------------------------


def test_f43_untested_trl_is_warned_about():
    assert "tested 1.16" in host.check_version("1.17.0")
    assert host.check_version("1.16.0") is None
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        host.check_host()


def test_log_metric_without_a_trainer_says_what_to_do():
    with pytest.raises(UserError, match="ThinkGRPOTrainer"):
        host.trainer_of(lambda name, value: None)


def test_think_config_differs_from_grpo_in_two_defaults_and_an_option_that_is_off(tmp_path):
    from trl import GRPOConfig

    ours, theirs = (
        {f.name: f.default for f in dataclasses.fields(kind) if f.default is not dataclasses.MISSING}
        for kind in (ThinkGRPOConfig, GRPOConfig)
    )
    assert {name for name in theirs if ours[name] != theirs[name]} == {"loss_type", "scale_rewards"}
    assert {name: ours[name] for name in ours.keys() - theirs.keys()} == {"logprob_kernel": False}


def test_ranks_that_look_at_the_output_folder_together_do_not_disturb_one_another(tmp_path):
    """One name for all ranks' probes ended a run of two now and then: the second found its file gone."""
    folder = str(tmp_path / "out")
    with ThreadPoolExecutor(8) as pool:
        for _ in pool.map(lambda _: launch.writable(folder), range(1000)):
            pass
    assert list((tmp_path / "out").iterdir()) == []


@pytest.mark.parametrize("second", ["rows", "elsewhere/rows"])
def test_a_folder_with_a_readme_of_somebody_elses_is_never_read_out_of_the_cache(tmp_path, monkeypatch, second):
    """`datasets` knows such a folder by its name and the README's lines alone."""
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    readme = "---\nconfigs:\n- config_name: default\n  data_files:\n  - split: train\n    path: train.parquet\n---\n"
    for name, target in (("rows", "one"), (second, "other")):
        folder = tmp_path / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "README.md").write_text(readme)
        Dataset.from_list([{"prompt": "p<think>", "context": "p", "target": target}]).to_parquet(
            folder / "train.parquet"
        )
        assert load_rows(str(folder))["train"]["target"] == [target]
