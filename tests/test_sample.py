"""Sampling of thoughts: what decides a thought, where it ends, and what does not matter."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import models
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

from rl_think_ext.scoring.load import load_model, load_tokenizer
from rl_think_ext.scoring.sample import Inversion, Request, ThoughtSampler, ends_of, max_positions, uniforms
from rl_think_ext.template import TagIds
from rl_think_ext.tiny import PROGRAMS_MODEL, TEXT_TOKENIZER
from rl_think_ext.tiny.programs import rl_rows


@pytest.fixture(scope="module")
def tiny() -> tuple[Any, Any]:
    return load_model(str(PROGRAMS_MODEL)), load_tokenizer(str(PROGRAMS_MODEL))


def sampler(tiny: tuple[Any, Any], **changes: Any) -> ThoughtSampler:
    return ThoughtSampler(*tiny, TagIds.of(tiny[1]), **{"max_thought_tokens": 12, **changes})


def requests(tokenizer: Any, num_rows: int = 6, num_thoughts: int = 4) -> list[Request]:
    rows = [(row["id"], tuple(tokenizer(row["prompt"])["input_ids"])) for row in rl_rows(0, num_rows)]
    return [Request(prompt, f"{name}/{k}") for name, prompt in rows for k in range(num_thoughts)]


def draw(probabilities: list[float], numbers: list[float], temperature: float = 1.0) -> list[int]:
    scores = torch.tensor(probabilities).log().expand(len(numbers), -1)
    rule = Inversion(torch.tensor(numbers, dtype=torch.float64)[:, None], 3, temperature)
    return rule(torch.zeros(len(numbers), 3, dtype=torch.long), scores).argmax(-1).tolist()


def test_a_number_picks_the_first_token_whose_cumulative_probability_exceeds_it() -> None:
    assert draw([0.25, 0.25, 0.5], [0.0, 0.24, 0.26, 0.49, 0.51, 0.999]) == [0, 0, 1, 1, 2, 2]
    # At temperature 1/2 the probabilities are squared and renormalised: 1/6, 1/6, 4/6.
    assert draw([0.25, 0.25, 0.5], [0.16, 0.17, 0.33, 0.34], 0.5) == [0, 1, 1, 2]


def test_a_token_without_probability_is_never_drawn() -> None:
    assert draw([0.0, 0.5, 0.0, 0.5], [0.0, 0.4999, 0.5001, 1 - 2**-53]) == [1, 1, 3, 3]


@given(st.integers(0, 2**32), st.text(max_size=20), st.integers(1, 40))
@settings(max_examples=50, deadline=None)
def test_a_longer_thought_begins_with_the_same_numbers(seed: int, key: str, num: int) -> None:
    numbers = uniforms(seed, key, num + 5)
    assert torch.equal(uniforms(seed, key, num), numbers[:num])
    assert ((numbers >= 0) & (numbers < 1)).all()
    assert not torch.equal(uniforms(seed + 1, key, num + 5), numbers)
    assert not torch.equal(uniforms(seed, key + "x", num + 5), numbers)


def test_neither_batch_nor_order_nor_neighbours_decide_a_thought(tiny: Any) -> None:
    asked = requests(tiny[1])
    together = sampler(tiny)(asked)
    assert len(set(together)) > 15
    assert sampler(tiny, max_tokens=60)(asked[::-1])[::-1] == together
    assert sampler(tiny)(asked[5:6]) == together[5:6]
    assert sampler(tiny, seed=1)(asked) != together


def test_the_draws_follow_the_models_distribution(tiny: Any) -> None:
    model, tokenizer = tiny
    prompt = requests(tokenizer, 1, 1)[0].prompt
    with torch.no_grad():
        expected = model(input_ids=torch.tensor([prompt])).logits[0, -1].softmax(-1)
    found = sampler(tiny, max_thought_tokens=1)([Request(prompt, str(k)) for k in range(2000)])
    counts = torch.bincount(torch.tensor([ids[0] for ids in found]), minlength=len(expected)) / len(found)
    # Four standard errors of a share.
    assert ((counts - expected).abs() <= 4 * (expected * (1 - expected) / len(found)).sqrt() + 1e-3).all()


def test_a_thought_ends_at_the_first_end_and_holds_it(tiny: Any) -> None:
    _, tokenizer = tiny
    close = tokenizer.convert_tokens_to_ids("</think>")
    found = sampler(tiny)(requests(tokenizer, 12))
    ends = {tokenizer.eos_token_id, close}
    assert all(not ends & set(ids[:-1]) and 1 <= len(ids) <= 12 for ids in found)
    assert sum(ids[-1] == close for ids in found) > 20
    assert any(len(ids) == 12 and ids[-1] not in ends for ids in found)
    assert not any(tokenizer.pad_token_id in ids for ids in found)


def test_the_models_own_generation_config_changes_nothing_and_stays(tiny: Any) -> None:
    model, tokenizer = tiny
    asked, before = requests(tokenizer, 4), model.generation_config
    plain = sampler(tiny)(asked)
    odd = GenerationConfig(eos_token_id=before.eos_token_id, repetition_penalty=5.0, top_k=1, min_new_tokens=9)
    model.generation_config = odd
    try:
        assert sampler(tiny)(asked) == plain
        assert model.generation_config is odd
    finally:
        model.generation_config = before


class Rigged(Qwen3ForCausalLM):
    """Writes the successor of the last token, whatever came before."""

    follows: dict[int, int]

    def forward(self, input_ids: Any = None, **kwargs: Any) -> Any:
        out = super().forward(input_ids=input_ids, **kwargs)
        wanted = torch.tensor([[self.follows.get(int(i), 0) for i in row] for row in input_ids[:, -1:]])
        out.logits = torch.nn.functional.one_hot(wanted, self.config.vocab_size).float() * 200
        return out


def test_a_closing_tag_of_several_tokens_ends_a_thought_as_text(tmp_path: Any) -> None:
    tokenizer = load_tokenizer(str(TEXT_TOKENIZER))
    # The tags are what they are in most older vocabularies: text in several pieces.
    state = tokenizer.backend_tokenizer.to_str().replace("<think>", "<tag-a>").replace("</think>", "</tag-a>")
    tokenizer = type(tokenizer)(
        tokenizer_object=tokenizer.backend_tokenizer.from_str(state), pad_token="<pad>", eos_token="<eos>"
    )
    tags = TagIds.of(tokenizer)
    assert not tags.single
    start = tokenizer("now")["input_ids"][-1]
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8,
    )  # fmt: skip
    model = Rigged(config).eval()
    chain = [start, *tags.close, start]
    model.follows = dict(pairwise(chain))
    found = ThoughtSampler(model, tokenizer, tags, max_thought_tokens=20)([Request((start,), "a"), Request((7,), "b")])
    assert found[0] == tags.close
    assert set(found[1]) <= {0}  # padding is what this model writes when it knows no successor


def test_an_end_of_text_ends_a_thought_while_others_go_on() -> None:
    tokenizer = load_tokenizer(str(PROGRAMS_MODEL))
    config = Qwen3Config(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=1, head_dim=8,
    )  # fmt: skip
    model = Rigged(config).eval()
    eos, close = tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("</think>")
    model.follows = {10: 11, 11: eos, 20: 21, 21: 22, 22: close, 30: 31, 31: 30}
    asked = [Request((9, 10), "a"), Request((20,), "b"), Request((9, 9, 30), "c")]
    found = ThoughtSampler(model, tokenizer, TagIds.of(tokenizer), max_thought_tokens=5)(asked)
    assert found == [(11, eos), (21, 22, close), (31, 30, 31, 30, 31)]


def test_ends_are_the_models_the_tokenizers_and_the_closing_tag(tiny: Any) -> None:
    model, tokenizer = tiny
    assert ends_of(model, tokenizer, TagIds.of(tokenizer)) == [1, 3]
    assert max_positions(model) == 128
    assert max_positions(models.qwen3(13, max_position_embeddings=64)) == 64
