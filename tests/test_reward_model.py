"""The reward model in this process: transformers' own numbers one by one, whatever the batch, the cache and the run."""

from __future__ import annotations

import math
import pickle
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from reward_models import (
    chat,
    config,
    conversations,
    reward_network,
    save_reward_model,
    stock_score,
    values,
)
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
)

from rl_think_ext.errors import UserError
from rl_think_ext.records import Score
from rl_think_ext.scoring.reward_forward import RewardForward
from rl_think_ext.scoring.reward_model import LocalRewardModel, Repeats, load_reward_model

VOCAB, PAD = 31, 0
# Very different lengths, a pad id inside, at the end, and nothing but: the last two are told apart by nobody else.
ROWS = [
    (5,),
    tuple(range(1, 30)),
    (3, PAD, 7, PAD),
    (9, 8, 7, 6, 5, 4, 3),
    (3, PAD, 7),
    (28, 27, 26, 25, 24, 23, 22),
    (PAD, PAD),
    (11, 12, 13, PAD, PAD, PAD),
    (30, 1),
]


def gpt2() -> nn.Module:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=VOCAB, n_positions=64, n_embd=16, n_layer=2, n_head=2, initializer_range=0.4, num_labels=1,
        pad_token_id=PAD, bos_token_id=1, eos_token_id=1,
    )  # fmt: skip
    return GPT2ForSequenceClassification(config).eval()


def bert() -> nn.Module:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=VOCAB, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
        max_position_embeddings=64, num_labels=1, pad_token_id=PAD, initializer_range=0.4,
    )  # fmt: skip
    return BertForSequenceClassification(config).eval()


NETWORKS: dict[str, Any] = {
    "qwen": lambda: reward_network(VOCAB, "qwen"),
    "llama": lambda: reward_network(VOCAB, "llama"),
    "pads with what it ends on": lambda: reward_network(VOCAB, "llama", eos_token_id=PAD),
    "knows no padding": lambda: reward_network(VOCAB, "qwen", pad_token_id=None),
    "gpt2": gpt2,
    "bert": bert,
}


def plain_scores(model: nn.Module, rows: list[tuple[int, ...]]) -> list[float]:
    """transformers' own forward, one row after the other."""
    with torch.no_grad():
        return [float(model(input_ids=torch.tensor([row])).logits[0, 0]) for row in rows]


@contextmanager
def forwards(model: nn.Module) -> Iterator[list[SimpleNamespace]]:
    """Every forward of the body inside: its arguments, the mode and the grad mode."""
    seen: list[SimpleNamespace] = []

    def note(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        modes = {
            "training": module.training,
            "grad": torch.is_grad_enabled(),
            "inference": torch.is_inference_mode_enabled(),
        }
        seen.append(SimpleNamespace(ids=kwargs.get("input_ids", args[0] if args else None), kwargs=kwargs, **modes))

    handle = model.base_model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("max_tokens", [1, 13, 29, 10_000])  # alone, odd packing, the longest with none, all together
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_equal_to_the_models_own_forward_one_by_one(name: str, max_tokens: int, dtype: torch.dtype) -> None:
    expected = plain_scores(NETWORKS[name]().to(dtype), ROWS)
    assert max(expected) - min(expected) > 0.5, "equal scores would hide mistakes"
    scores = RewardForward(NETWORKS[name]().to(dtype), max_tokens=max_tokens)(ROWS)
    assert scores.tolist() == pytest.approx(expected, abs=1e-5 if dtype == torch.float32 else 2e-7)


def test_the_place_that_is_scored_depends_on_the_models_padding() -> None:
    """With padding at the end of the row itself, transformers scores the place before it."""
    score = RewardForward(reward_network(VOCAB, "qwen"))
    assert float(score([(3, PAD, 7, PAD)])) == pytest.approx(float(score([(3, PAD, 7)])), abs=1e-6)
    unaware = RewardForward(reward_network(VOCAB, "qwen", pad_token_id=None))
    assert abs(float(unaware([(3, PAD, 7, PAD)])) - float(unaware([(3, PAD, 7)]))) > 1e-3


def test_hazard_17_forwards_are_bounded_and_sorted() -> None:
    generator = random.Random(0)
    rows = [tuple(generator.randrange(1, VOCAB) for _ in range(generator.randint(1, 40))) for _ in range(64)]
    model = reward_network(VOCAB, "qwen")
    with forwards(model) as seen:
        scores = RewardForward(model, max_tokens=100)(rows)
    assert scores.tolist() == pytest.approx(plain_scores(model, rows), abs=1e-5)
    assert all(one.ids.numel() <= 100 for one in seen)
    widths = [one.ids.shape[1] for one in seen]
    assert widths == sorted(widths, reverse=True)
    filled = sum(len(row) for row in rows) / sum(one.ids.numel() for one in seen)
    assert filled > 0.9, "what is padded is little"


def test_how_the_model_runs() -> None:
    model = reward_network(VOCAB, "qwen")
    with forwards(model) as seen:
        RewardForward(model)(ROWS)
    (one,) = seen
    assert (one.training, one.grad, one.inference) == (False, False, False)
    assert one.kwargs["use_cache"] is False
    length = one.kwargs["attention_mask"].sum(-1).tolist()
    assert length == sorted(map(len, ROWS), reverse=True)
    assert all(mask[: int(mask.sum())].all() for mask in one.kwargs["attention_mask"]), "padded on the right"


def halves(rows: list[tuple[int, ...]]) -> tuple[Tensor, Tensor, Tensor]:
    """Scores with a bf16 body: ours, all of it in bf16, and its last hidden state under a float64 head."""
    model = reward_network(VOCAB, "llama", hidden_size=64, initializer_range=0.2).bfloat16()
    plain = torch.tensor(plain_scores(model, rows))
    with torch.no_grad():
        hidden = [model.model(input_ids=torch.tensor([row])).last_hidden_state[0, -1].double() for row in rows]
    truth = torch.stack(hidden) @ model.score.weight[0].double()
    return RewardForward(model, max_tokens=1)(rows), plain, truth


def test_the_head_is_float32_above_a_bf16_body() -> None:
    generator = random.Random(1)
    rows = [tuple(generator.randrange(1, VOCAB) for _ in range(9)) for _ in range(64)]
    ours, plain, truth = halves(rows)
    assert (ours - truth).abs().max() < 1e-5
    assert (plain - truth).abs().mean() > 100 * (ours - truth).abs().mean()


@pytest.mark.parametrize("name", ["gpt2", "bert"])
def test_the_head_is_float32_in_a_forward_of_its_own(name: str) -> None:
    model = NETWORKS[name]().bfloat16()
    score = RewardForward(model)
    assert {p.dtype for p in score.head.parameters()} == {torch.float32}
    assert next(model.base_model.parameters()).dtype == torch.bfloat16
    found = score(ROWS[:4])
    assert found.tolist() == pytest.approx(plain_scores(NETWORKS[name](), ROWS[:4]), abs=0.1)
    assert not torch.equal(found, found.bfloat16().float()), "not rounded to bf16"


def test_a_trainers_autocast_changes_nothing() -> None:
    score = RewardForward(reward_network(VOCAB, "qwen"))
    expected = score(ROWS)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(score(ROWS), expected)


class Gated(nn.Module):
    """A model whose own code makes the score, as ArmoRM's does; it knows of no padding."""

    def __init__(self, shape: tuple[int, ...] = ()) -> None:
        super().__init__()
        self.inner, self.shape = reward_network(VOCAB, "llama"), shape
        self.config = self.inner.config

    def forward(self, **inputs: Any) -> SimpleNamespace:
        score = self.inner.score(self.inner.model(**inputs).last_hidden_state[:, -1])[:, 0] * 2
        return SimpleNamespace(logits=torch.zeros(len(score), 5), score=score.reshape(-1, *self.shape))


def test_the_output_field_score() -> None:
    rows = [row for row in ROWS if PAD not in row]
    expected = [2 * value for value in plain_scores(Gated().inner, rows)]
    for shape in ((), (1,)):
        found = RewardForward(Gated(shape), output="score")(rows)
        assert found.tolist() == pytest.approx(expected, abs=1e-5)
    with pytest.raises(UserError, match=r"`output: logits`: the reward model gives shape \(1, 5\) for 1 rows"):
        RewardForward(Gated())(rows)
    with pytest.raises(UserError, match="`output: score`: the reward model gives NoneType"):
        RewardForward(gpt2(), output="score")(rows)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_reward_model(tmp_path_factory.mktemp("reward") / "model")


def test_scores_are_those_of_transformers(folder: Path) -> None:
    chats = conversations()
    expected = [stock_score(folder, one) for one in chats]
    assert max(expected) - min(expected) > 0.5
    model = load_reward_model(config(folder))
    assert values(model(chats)) == pytest.approx(expected, abs=1e-5)
    shuffled = random.Random(0).sample(chats, len(chats))
    fresh = LocalRewardModel(config(folder, max_tokens_per_batch=64))
    assert values(fresh(shuffled)) == pytest.approx([expected[chats.index(one)] for one in shuffled], abs=1e-5)


def test_f47_equal_conversations_have_one_score(folder: Path) -> None:
    chats = conversations(6)
    model = LocalRewardModel(config(folder, dtype="bfloat16", max_tokens_per_batch=80, score_noise_share=0.0))
    with forwards(model.forward.model) as seen:
        first = model([*chats, *chats[:3], *chats[:3]])
        rows = sum(len(one.ids) for one in seen)
    assert rows == 6
    assert (model.stats["num_asked"], model.stats["num_cached"]) == (6, 0)
    again = model([*conversations(9)[6:], *chats[::-1]])
    assert (model.stats["num_asked"], model.stats["num_cached"]) == (3, 6)
    assert values(first[:6]) == values(again[3:][::-1]), "to the bit, in another company"
    assert values(first[:3]) == values(first[6:9]) == values(first[9:])


def test_stats_and_noise(folder: Path) -> None:
    chats = conversations()
    model = LocalRewardModel(config(folder, dtype="bfloat16", score_noise_share=1.0))
    model(chats)
    keys = {"seconds", "num_cut", "num_cut_tokens", "num_asked", "num_cached", "num_unscorable", "noise"}
    assert set(model.stats) == keys
    assert 0 <= model.stats["noise"] < 0.5, "bf16 in other batches"
    assert model.stats["seconds"] > 0
    model(chats)
    assert math.isnan(model.stats["noise"]), "nothing was asked"
    assert set(model.stats) == keys
    for share, num in ((1e-9, 1), (0.5, 4), (0.0, 0)):
        fresh = LocalRewardModel(config(folder, score_noise_share=share))
        with forwards(fresh.forward.model) as seen:
            fresh(chats)
        assert sum(len(one.ids) for one in seen) == len(chats) + num
        assert math.isnan(fresh.stats["noise"]) == (num == 0)
        assert not fresh.stats["noise"] > 1e-5


def test_of_many_small_calls_a_share_is_scored_twice() -> None:
    """The first input of all, and then one in a hundred; of calls that are large at least one each."""
    few = Repeats(0.01, every_call=False)
    found = [few.due(1) for _ in range(300)]
    assert found[0] == 1 and 3 <= sum(found) <= 4 and max(found) == 1
    assert [Repeats(0.01).due(num) for num in (0, 1, 64, 400)] == [0, 1, 1, 4]
    assert [Repeats(0.0, every_call=flag).due(8) for flag in (True, False)] == [0, 0]
    assert Repeats(1.0, every_call=False, owed=5.0).due(2) == 2


def test_noise_is_the_largest_difference_in_other_company() -> None:
    score = RewardForward(reward_network(VOCAB), max_tokens=60)
    scores = score(ROWS)
    with forwards(score.model) as seen:
        assert score.noise(ROWS, scores, len(ROWS)) < 1e-5
    assert {one.ids.shape[0] for one in seen} == {1}
    moved = scores.clone()
    moved[3] += 0.25
    moved[4] = math.nan
    assert score.noise(ROWS, moved, len(ROWS)) == pytest.approx(0.25, abs=1e-5)


def test_f47_one_row_that_is_looked_at_is_not_the_one_that_cannot_move() -> None:
    score = RewardForward(reward_network(VOCAB), max_tokens=10**6)
    rows = [tuple(range(1, 2 + n)) for n in range(20)]
    scores = score(rows)
    with forwards(score.model) as seen:
        score.noise(rows, scores, 1)
    # The longest row of a batch is computed as if it were alone: its difference says nothing of the others'.
    assert [tuple(one.ids.shape) for one in seen] == [(1, 10)]


def test_noise_of_rows_that_were_alone(folder: Path) -> None:
    model = LocalRewardModel(config(folder, dtype="bfloat16"))
    model(conversations(1))
    assert model.stats["noise"] >= 0
    model = LocalRewardModel(config(folder, max_tokens_per_batch=1))
    model(conversations(2))
    assert math.isnan(model.stats["noise"]), "no other micro-batch fits"


def test_f12_a_score_that_is_not_finite_is_none(folder: Path, tmp_path: Path) -> None:
    chats = conversations(3)
    model = LocalRewardModel(config(folder))
    others = {i for one in chats for i in model.encode(one).ids}
    number = next(i for i in model.encode(chat("hello", "wow !")).ids if i not in others)
    model.forward.model.model.embed_tokens.weight[number] = math.nan
    found = model([chats[0], chat("hello", "wow !"), chats[1]])
    assert found[1] == Score.unscorable("score not finite")
    assert values([found[0], found[2]]) == pytest.approx([stock_score(folder, one) for one in chats[:2]], abs=1e-5)
    assert model.stats["num_unscorable"] == 1
    model.forward.head.weight.fill_(math.inf)
    assert values(model([chats[2], chats[0]])) == [None, found[0].value]


def test_f13_nothing_to_score(folder: Path) -> None:
    model = LocalRewardModel(config(folder))
    assert model([]) == []
    assert model.stats["num_asked"] == 0
    assert values(model([chat("a", "b \ud800")])) == [None]
    assert "forward" not in vars(model), "no weights were read for that"
    assert model.stats["num_unscorable"] == 1


def test_hazard_17_long_prompts_are_cut_and_long_answers_unscorable(folder: Path) -> None:
    long = " ".join(f"word{i}" for i in range(200))
    chats = [chat(long, "short answer"), chat("short question", long), chat("short", "both")]
    model = LocalRewardModel(config(folder, max_length=64))
    with forwards(model.forward.model) as seen:
        found = model(chats)
    assert all(one.ids.shape[1] <= 64 for one in seen)
    assert found[1] == Score.unscorable("answer longer than the reward model")
    assert found[0].value is not None
    assert found[2].value == pytest.approx(stock_score(folder, chats[2]), abs=1e-5)
    assert model.stats["num_cut"] == 1
    assert model.stats["num_cut_tokens"] > 100
    cut = [score.metrics.get("num_cut", 0) for score in (*found, *model(chats))]
    assert cut == [model.stats["num_cut_tokens"], 0, 0] * 2, "a score says of its prompt that it was cut, also cached"
    assert len(model.encode(chats[0]).ids) == 64


def test_f10_pickled_it_leaves_its_weights_behind(folder: Path) -> None:
    chats = conversations(3)
    model = LocalRewardModel(config(folder), device="cpu")
    scores = model(chats)
    packed = pickle.dumps(model)
    assert len(packed) < 5_000
    again = pickle.loads(packed)  # noqa: S301 - our own
    assert values(again(chats)) == values(scores)
    assert again.stats["num_asked"] == 3, "nor its cache"
