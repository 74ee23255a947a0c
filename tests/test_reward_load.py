"""Loading a reward model: all of its weights whatever runs around it, nobody's code, and clear words for the rest."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from reward_models import (
    chat,
    config,
    conversations,
    reward_network,
    reward_tokenizer,
    save_reward_model,
    stock_score,
    values,
)
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.integrations import deepspeed as zero3

from rl_think_ext.errors import UserError
from rl_think_ext.methods.rlmt import RLMTConfig
from rl_think_ext.scoring.reward_load import check_weights, load_weights, num_parameters, without_zero3
from rl_think_ext.scoring.reward_model import LocalRewardModel, load_reward_model

VOCAB = 31


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_reward_model(tmp_path_factory.mktemp("reward") / "model")


class Plan:
    """What a trainer under DeepSpeed ZeRO-3 leaves for `from_pretrained` to find."""

    config: ClassVar[dict[str, Any]] = {}

    def is_zero3(self) -> bool:
        return True


@pytest.fixture
def zero3_run(monkeypatch: pytest.MonkeyPatch) -> Iterator[Plan]:
    """A ZeRO-3 run: who makes a model in it gets empty weights, as deepspeed.zero.Init makes them."""
    import sys
    import types

    class Init:
        def __init__(self, **kwargs: Any) -> None: ...

        def __enter__(self) -> None:
            self.made = nn.Parameter.__new__
            nn.Parameter.__new__ = lambda cls, data=None, requires_grad=True: self.made(cls, torch.empty(0))  # type: ignore[method-assign,assignment]

        def __exit__(self, *error: object) -> None:
            nn.Parameter.__new__ = self.made  # type: ignore[method-assign]

    # The wire of this fault: the library is not installed where the tests run.
    package = types.ModuleType("deepspeed")
    package.zero = types.SimpleNamespace(Init=Init)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "deepspeed", package)
    plan = Plan()
    zero3.set_hf_deepspeed_config(plan)
    yield plan
    zero3.unset_hf_deepspeed_config()


def test_hazard_12_whole_weights_on_every_rank_of_an_fsdp_run(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch import distributed
    from transformers.integrations import is_fsdp_enabled

    # Accelerate's own default for FSDP: only the first rank of a machine reads weights, the others hold zeros.
    environment = {"ACCELERATE_USE_FSDP": "true", "FSDP_CPU_RAM_EFFICIENT_LOADING": "true", "LOCAL_RANK": "1"}
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    chats = conversations(3)
    wanted = [stock_score(folder, one) for one in chats]
    distributed.init_process_group("gloo", store=distributed.HashStore(), rank=0, world_size=1)
    try:
        assert is_fsdp_enabled()
        assert values(LocalRewardModel(config(folder))(chats)) == pytest.approx(wanted, abs=1e-5)
        assert is_fsdp_enabled(), "the policy's plan is back"
    finally:
        distributed.destroy_process_group()


def test_hazard_12_whole_weights_inside_a_zero3_run(folder: Path, zero3_run: Plan) -> None:
    chats = conversations(3)
    assert zero3.is_deepspeed_zero3_enabled()
    model = load_reward_model(config(folder))
    try:
        found = values(model(chats))
    except Exception as error:  # noqa: BLE001 - what splits weights fails in many ways
        pytest.fail(f"loading was split: {error}")
    assert zero3.is_deepspeed_zero3_enabled(), "the policy's plan is back"
    assert zero3.deepspeed_config() is zero3_run.config
    with without_zero3():
        assert found == pytest.approx([stock_score(folder, one) for one in chats], abs=1e-5)


def test_hazard_12_the_plan_is_back_after_a_failure(tmp_path: Path, zero3_run: Plan) -> None:
    LlamaConfig(num_labels=1).save_pretrained(tmp_path)
    with pytest.raises(UserError, match="could not load a reward model from the folder"):
        load_weights(config(tmp_path))
    assert zero3.is_deepspeed_zero3_enabled()


def test_hazard_12_empty_weights_are_refused() -> None:
    model = reward_network(VOCAB)
    check_weights(model, "m")
    model.score.weight = nn.Parameter(torch.empty(0))
    with pytest.raises(UserError, match=r"`m` was loaded without its weights \(score.weight is empty\)"):
        check_weights(model, "m")
    with pytest.raises(UserError, match="was loaded without its weights"):
        check_weights(reward_network(VOCAB).to("meta"), "m")


def test_hazard_17_the_policys_model_settings_have_no_say(folder: Path) -> None:
    """Its dtype is its own: `dtype` of the method's settings, where auto is the checkpoint's."""
    weights = {name: load_weights(config(folder, dtype=name)).score.weight.dtype for name in ("auto", "bfloat16")}
    assert weights == {"auto": torch.float32, "bfloat16": torch.bfloat16}
    previous = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        assert load_weights(config(folder)).score.weight.dtype == torch.float32
    finally:
        torch.set_default_dtype(previous)


def test_f38_pickled_weights_and_foreign_code_need_the_flag(folder: Path, tmp_path: Path) -> None:
    import json
    import shutil

    from safetensors.torch import load_file

    shutil.copytree(folder, tmp_path / "model")
    weights = tmp_path / "model/model.safetensors"
    torch.save(load_file(weights), tmp_path / "model/pytorch_model.bin")
    weights.unlink()
    with pytest.raises(UserError, match="safetensors; code and pickles from a repository run only with"):
        load_weights(config(tmp_path / "model"))
    trusted = load_weights(config(tmp_path / "model", trust_remote_code=True))
    assert torch.equal(trusted.score.weight, load_weights(config(folder)).score.weight)

    shutil.copytree(folder, tmp_path / "foreign")
    settings = json.loads((tmp_path / "foreign/config.json").read_text())
    settings |= {"model_type": "foreign", "auto_map": {"AutoConfig": "foreign.Config"}}
    (tmp_path / "foreign/config.json").write_text(json.dumps(settings))
    (tmp_path / "foreign/foreign.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(UserError, match="`trust_remote_code: true` beside `reward_model:`"):
        load_reward_model(config(tmp_path / "foreign"))
    assert not (tmp_path / "ran").exists()


def test_what_is_no_reward_model(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="`reward_model:` is missing"):
        load_reward_model(RLMTConfig())
    with pytest.raises(UserError, match="could not load a reward model from the folder"):
        load_reward_model(config(tmp_path))
    save_reward_model(tmp_path / "many", num_labels=3)
    with pytest.raises(UserError, match=r"many` gives 3 numbers \(`num_labels`\)"):
        load_reward_model(config(tmp_path / "many"))
    tokenizer = reward_tokenizer("llama")
    values = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    policy = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), num_labels=1, **values))
    policy.save_pretrained(tmp_path / "policy")
    tokenizer.save_pretrained(tmp_path / "policy")
    with pytest.raises(UserError, match=r"holds no weights for score.weight, so its scores would be random"):
        load_reward_model(config(tmp_path / "policy"))(conversations(1))
    with pytest.raises(UserError, match="`dtype: float33` is no dtype"):
        load_weights(config(folder, dtype="float33"))
    (tmp_path / "many/model.safetensors").write_bytes(b"cut")
    with pytest.raises(UserError, match="could not load a reward model from the folder"):
        load_weights(config(tmp_path / "many", output="score"))


def test_a_large_model_is_for_a_server(folder: Path, tmp_path: Path) -> None:
    import json
    import shutil

    assert num_parameters(config(folder), reward_network(VOCAB).config) == sum(
        p.numel() for p in reward_network(VOCAB).parameters()
    )
    shutil.copytree(folder, tmp_path / "large", ignore=shutil.ignore_patterns("*.safetensors"))
    settings = json.loads((tmp_path / "large/config.json").read_text())
    settings |= {"hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "head_dim": 128}
    (tmp_path / "large/config.json").write_text(json.dumps(settings | {"num_attention_heads": 32}))
    with pytest.raises(UserError, match=r"has \d\.\d billion weights.*vllm serve \S*large --runner pooling.*`server:"):
        load_reward_model(config(tmp_path / "large"))
    assert isinstance(load_reward_model(config(tmp_path / "large", backend="local")), LocalRewardModel)


def test_a_template_that_ends_on_padding_is_no_match_for_a_server(tmp_path: Path) -> None:
    tokenizer = reward_tokenizer("llama")
    save_reward_model(tmp_path / "model", pad_token_id=tokenizer.eos_token_id)
    messages = chat("question", "answer")
    local = load_reward_model(config(tmp_path / "model"))
    assert values(local([messages])) == pytest.approx([stock_score(tmp_path / "model", messages)], abs=1e-5)
    with pytest.warns(UserWarning, match="a server's scores are not those of `backend: local`"):
        load_reward_model(config(tmp_path / "model", server="http://localhost:1"))
