"""Log-probs of targets: equal to full logits in float64 one by one, whatever the batch, the model and its modes."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import models
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from rl_think_ext.scoring.likelihood import Likelihood, Query, eval_mode, forward_arguments

VOCAB, PAD = 29, 0


def qwen3(attention_dropout: float = 0.0) -> PreTrainedModel:
    return models.qwen3(VOCAB, attention_dropout=attention_dropout)


def gpt2() -> PreTrainedModel:
    """Absolute positions: a padded row that is not told its positions reads other embeddings (hazard 16)."""
    torch.manual_seed(0)
    ends = {"bos_token_id": 1, "eos_token_id": 1}
    config = GPT2Config(vocab_size=VOCAB, n_positions=64, n_embd=16, n_layer=2, n_head=2, initializer_range=0.4, **ends)
    return GPT2LMHeadModel(config)


FAMILIES = {"qwen3": qwen3, "gpt2": gpt2}
# Short beside long prefixes and targets, a target longer than a whole other row, a pad id inside a row, a double.
QUERIES = [
    Query((5,), (6,)),
    Query((1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12), (13, 14)),
    Query((5,), (6, 7, 8, 9, 10)),
    Query((PAD, 3, PAD), (PAD, 28)),
    Query((1, 2, 3, 4, 5, 6, 7), (8,)),
    Query((5,), (6,)),
    Query((28, 27), (26, 25, 24)),
]


def row_alone(model: nn.Module, query: Query) -> Tensor:
    """[V] log-probs at each target, out of the full logits of one row, in float64."""
    with torch.no_grad():
        logits = model(input_ids=torch.tensor([[*query.prefix, *query.target]])).logits[0].double()
    return logits.log_softmax(-1)[len(query.prefix) - 1 : -1]


def oracle(model: nn.Module, queries: list[Query]) -> list[list[float]]:
    rows = [(row_alone(model, q), q.target) for q in queries]
    return [[float(row[k, x]) for k, x in enumerate(target)] for row, target in rows]


def targets_of(scores: Tensor, queries: list[Query]) -> list[list[float]]:
    for row, query in zip(scores, queries, strict=True):
        assert row[len(query.target) :].isnan().all(), "behind a row's own targets there is nothing"
    return [row[: len(q.target)].tolist() for row, q in zip(scores, queries, strict=True)]


def assert_close(got: list[list[float]], expected: list[list[float]], tolerance: float) -> None:
    for row, want in zip(got, expected, strict=True):
        assert row == pytest.approx(want, abs=tolerance)


@pytest.mark.parametrize("forbidden", [None, 3])
def test_hit_is_the_argmax_of_the_allowed_ids(forbidden: int | None) -> None:
    model = qwen3().eval()
    hit = Likelihood(model, PAD)(QUERIES, forbidden).hit
    found = []
    for row, query in zip(hit, QUERIES, strict=True):
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([[*query.prefix, *query.target]])).logits[0]
        logits = logits[len(query.prefix) - 1 : -1].clone()
        if forbidden is not None:
            logits[0, forbidden] = -torch.inf
        expected = (logits.argmax(-1) == torch.tensor(query.target)).float()
        assert torch.equal(row[: len(query.target)], expected)
        assert row[len(query.target) :].isnan().all()
        found += expected.tolist()
        best = Likelihood(model, PAD)([Query(query.prefix, (int(logits[0].argmax()),))], forbidden).hit
        assert best.tolist() == [[1.0]]
    assert 0.0 in found


@contextmanager
def forwards(model: nn.Module) -> Iterator[list[SimpleNamespace]]:
    """Every forward inside: its ids, its keyword arguments, its logits."""
    seen: list[SimpleNamespace] = []

    def note(module: nn.Module, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        seen.append(SimpleNamespace(ids=kwargs["input_ids"], kwargs=kwargs, output=output))

    handle = model.register_forward_hook(note, with_kwargs=True)
    try:
        yield seen
    finally:
        handle.remove()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("max_tokens", [1, 13, 26, 10_000])  # every row alone, odd packing, two long rows, all together
def test_equal_to_full_logits_in_float64(family: str, max_tokens: int) -> None:
    model = FAMILIES[family]().eval().double()
    plain, restricted, _ = Likelihood(model, PAD, max_tokens)(QUERIES)
    assert plain.shape == (len(QUERIES), 5)
    assert plain.dtype == torch.float32
    assert torch.equal(plain.nan_to_num(), restricted.nan_to_num())
    expected = oracle(model, QUERIES)
    assert max(max(row) - min(row) for row in expected) > 1.0, "nearly uniform predictions would hide mistakes"
    assert_close(targets_of(plain, QUERIES), expected, 2e-6)


@pytest.mark.parametrize("family", FAMILIES)
def test_float32_model_is_near_the_float64_oracle(family: str) -> None:
    model = FAMILIES[family]().eval()
    got = targets_of(Likelihood(model, PAD)(QUERIES)[0], QUERIES)
    assert_close(got, oracle(model.double(), QUERIES), 2e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_hazard_16_a_padded_row_scores_as_it_does_alone(family: str) -> None:
    likelihood = Likelihood(FAMILIES[family]().eval(), PAD)
    together = targets_of(likelihood(QUERIES)[0], QUERIES)
    alone = [likelihood([query])[0][0].tolist() for query in QUERIES]
    assert_close(together, alone, 1e-5)


@pytest.mark.parametrize("pad_id", [PAD, 3, 28])
def test_the_pad_id_does_not_matter(pad_id: int) -> None:
    model = qwen3().eval()
    assert_close(
        targets_of(Likelihood(model, pad_id)(QUERIES)[0], QUERIES),
        targets_of(Likelihood(model, PAD)(QUERIES)[0], QUERIES),
        1e-5,
    )


class WithoutPositions(nn.Module):
    """A family whose forward takes no position ids: it counts from the left edge, padding included."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = gpt2()

    def forward(self, input_ids: Tensor, attention_mask: Tensor, logits_to_keep: int = 0) -> Any:
        return self.inner(input_ids=input_ids, attention_mask=attention_mask, logits_to_keep=logits_to_keep)


def test_hazard_16_model_without_position_ids() -> None:
    model = WithoutPositions().eval()
    assert "position_ids" not in forward_arguments(model)
    with forwards(model) as seen:
        got = targets_of(Likelihood(model, PAD)(QUERIES)[0], QUERIES)
    assert_close(got, oracle(model.inner.double(), QUERIES), 2e-5)
    assert all(bool(call.kwargs["attention_mask"].all()) for call in seen), "only equal lengths share a forward"
    assert len(seen) < len(set(QUERIES)), "equal lengths do share one"


class EveryPosition(nn.Module):
    """A family that has no `logits_to_keep`, or takes it and does not care."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = qwen3()

    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor) -> Any:
        return self.inner(input_ids=input_ids, attention_mask=attention_mask, position_ids=position_ids)


class DoesNotCare(EveryPosition):
    def forward(self, input_ids: Tensor, attention_mask: Tensor, position_ids: Tensor, logits_to_keep: int = 0) -> Any:
        return super().forward(input_ids, attention_mask, position_ids)


@pytest.mark.parametrize("family", [EveryPosition, DoesNotCare])
def test_model_that_ignores_logits_to_keep_is_right_and_warns_once(family: type[EveryPosition]) -> None:
    model = family().eval()
    likelihood = Likelihood(model, PAD, max_tokens=13)
    with pytest.warns(UserWarning, match="computes logits at every position") as caught:
        scores = likelihood(QUERIES)[0]
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        likelihood(QUERIES)
    got = targets_of(scores, QUERIES)
    assert_close(got, oracle(model.inner.double(), QUERIES), 2e-5)


def test_model_that_keeps_positions_warns_never() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Likelihood(qwen3(), PAD)(QUERIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_head_is_applied_to_the_needed_positions_only(family: str) -> None:
    model = FAMILIES[family]().eval()
    rows: list[int] = []
    model.get_output_embeddings().register_forward_hook(lambda m, args, out: rows.append(args[0].shape[:-1].numel()))
    queries = [Query(tuple(range(1, 5 + n)), (7, 8, 9)) for n in range(6)]
    Likelihood(model, PAD)([*queries, *queries])
    assert sum(rows) == 6 * 3  # six different rows, three targets each, of 69 positions in all


def test_last_target_is_no_part_of_the_input() -> None:
    model = qwen3().eval()
    with forwards(model) as seen:
        Likelihood(model, PAD)([Query((1, 2), (3, 4, 5))])
    assert [call.ids.tolist() for call in seen] == [[[1, 2, 3, 4]]]


@pytest.mark.parametrize("max_tokens", [1, 13, 26, 60])
def test_a_forward_holds_no_more_tokens_than_it_may(max_tokens: int) -> None:
    model = qwen3().eval()
    with forwards(model) as seen:
        Likelihood(model, PAD, max_tokens)(QUERIES)
    assert all(call.ids.numel() <= max_tokens or call.ids.shape[0] == 1 for call in seen)
    widths = [call.ids.shape[1] for call in seen]
    assert widths == sorted(widths, reverse=True), "the largest allocation comes first"
    assert sum(call.ids.shape[0] for call in seen) == len(set(QUERIES))


def test_hazard_9_no_graph_and_no_cache_even_with_grad_enabled_outside() -> None:
    model = qwen3().train()
    with torch.enable_grad(), forwards(model) as seen:
        plain, restricted, _ = Likelihood(model, PAD)(QUERIES, forbid_first=3)
    assert not plain.requires_grad
    assert not restricted.requires_grad
    for call in seen:
        assert not call.output.logits.requires_grad
        assert call.kwargs["use_cache"] is False
        assert call.output.past_key_values is None
    assert all(weight.grad is None for weight in model.parameters())
    assert torch.is_grad_enabled()


def modes(model: nn.Module) -> list[bool]:
    return [module.training for module in model.modules()]


def test_hazard_7_every_module_has_its_own_mode_back() -> None:
    model = qwen3().train()
    model.model.layers[1].eval()  # frozen on purpose inside a training model
    before = modes(model)
    assert len(set(before)) == 2
    inside: list[list[bool]] = []
    model.register_forward_hook(lambda *_: inside.append(modes(model)))
    Likelihood(model, PAD)(QUERIES)
    assert not any(map(any, inside))
    assert modes(model) == before


def test_hazard_7_modes_are_back_when_the_forward_raises() -> None:
    model = qwen3().train()
    model.model.norm.eval()
    before = modes(model)

    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory")

    handle = model.lm_head.register_forward_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        Likelihood(model, PAD)(QUERIES)
    assert modes(model) == before
    handle.remove()
    with pytest.raises(KeyError), eval_mode(model):
        raise KeyError
    assert modes(model) == before


def test_hazard_8_functional_attention_dropout_is_off() -> None:
    model = qwen3(attention_dropout=0.5).train()
    ids = torch.tensor([[1, 2, 3, 4, 5]])
    with torch.no_grad():
        assert not torch.equal(model(ids).logits, model(ids).logits), "in training mode it drops"
    likelihood = Likelihood(model, PAD)
    first, second = likelihood(QUERIES)[0], likelihood(QUERIES)[0]
    assert torch.equal(first.nan_to_num(), second.nan_to_num())
    assert_close(targets_of(first, QUERIES), oracle(qwen3().double(), QUERIES), 2e-5)


@pytest.mark.parametrize("temperature", [0.1, 0.7, 5.0])
def test_hazard_2_temperature_is_1_whatever_the_sampling(temperature: float) -> None:
    model = qwen3().eval()
    expected = Likelihood(model, PAD)(QUERIES)[0]
    model.generation_config.temperature = temperature
    model.generation_config.do_sample = True
    assert torch.equal(Likelihood(model, PAD)(QUERIES)[0].nan_to_num(), expected.nan_to_num())


def test_f47_equal_queries_are_scored_once_and_equal_to_the_bit() -> None:
    model = qwen3().eval().bfloat16()
    doubled = [query for query in QUERIES for _ in range(3)]
    with forwards(model) as seen:
        plain, restricted, _ = Likelihood(model, PAD, max_tokens=13)(doubled, forbid_first=2)
    assert sum(call.ids.shape[0] for call in seen) == len(set(QUERIES))
    for scores in (plain, restricted):
        bits = scores.view(torch.int32).reshape(len(QUERIES), 3, -1)
        assert torch.equal(bits[:, :1].expand_as(bits), bits)
        assert torch.equal(bits[0], bits[5])


def test_order_is_kept() -> None:
    likelihood = Likelihood(qwen3().eval(), PAD, max_tokens=26)
    straight, reverse = likelihood(QUERIES)[0], likelihood(QUERIES[::-1])[0]
    assert_close(targets_of(straight, QUERIES), targets_of(reverse.flip(0), QUERIES), 1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_forbidden_id_is_renormalised_exactly_at_the_first_target(dtype: torch.dtype) -> None:
    model, forbidden = qwen3().eval().to(dtype), 25
    plain, restricted, _ = Likelihood(model, PAD)(QUERIES, forbid_first=forbidden)
    expected = oracle(model.double(), QUERIES)
    assert_close(targets_of(plain, QUERIES), expected, 2e-5)
    for row, query in zip(expected, QUERIES, strict=True):
        row[0] -= math.log1p(-float(row_alone(model, query)[0, forbidden].exp()))
    assert_close(targets_of(restricted, QUERIES), expected, 2e-5)
    moved = (restricted - plain)[:, 0]
    assert (moved > 0).all()
    assert moved.max() > 0.01
    assert torch.equal(restricted[:, 1:].nan_to_num(), plain[:, 1:].nan_to_num()), "only the first target"


def test_what_is_left_sums_to_one_and_the_forbidden_has_nothing() -> None:
    forbidden = 7
    queries = [Query((1, 2, 3), (x,)) for x in range(VOCAB)]
    _, restricted, _ = Likelihood(qwen3().eval(), PAD)(queries, forbid_first=forbidden)
    assert float(restricted[forbidden, 0]) == -math.inf
    assert float(restricted.double().exp().sum()) == pytest.approx(1.0, abs=1e-6)


def test_autocast_is_around_the_body_and_scores_are_float32() -> None:
    model = qwen3().eval()
    expected = targets_of(Likelihood(model, PAD)(QUERIES)[0], QUERIES)
    with forwards(model) as seen:
        scores, *_ = Likelihood(model, PAD, autocast=lambda: torch.autocast("cpu", torch.bfloat16))(QUERIES)
    assert {call.output.logits.dtype for call in seen} == {torch.bfloat16}
    assert scores.dtype == torch.float32
    assert_close(targets_of(scores, QUERIES), expected, 0.2)
    # The log-softmax is float32: bf16 has 8 bits, so values would lie on a coarse grid.
    values = scores[scores.isfinite()]
    assert not torch.equal(values, values.bfloat16().float())


def test_no_queries() -> None:
    plain, restricted, _ = Likelihood(qwen3().eval(), PAD)([])
    assert plain.shape[0] == restricted.shape[0] == 0


@pytest.mark.parametrize("bad", [Query((), (1,)), Query((1,), ())])
def test_f15_empty_prefix_or_target_names_its_row(bad: Query) -> None:
    with pytest.raises(ValueError, match=r"^row 1: prefix and target need at least one id each"):
        Likelihood(qwen3().eval(), PAD)([QUERIES[0], bad])


class Wrapped(nn.Module):
    """As DistributedDataParallel: the model is in `module`."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.module(*args, **kwargs)


def test_arguments_are_looked_up_below_wrappers_and_adapters() -> None:
    adapted = get_peft_model(qwen3(), LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False))
    for model in (Wrapped(qwen3()), Wrapped(Wrapped(qwen3())), adapted, Wrapped(adapted)):
        assert {"position_ids", "logits_to_keep", "use_cache"} <= forward_arguments(model)
        expected = oracle(model.eval(), QUERIES)
        assert_close(targets_of(Likelihood(model, PAD)(QUERIES)[0], QUERIES), expected, 2e-5)
    plain = targets_of(Likelihood(qwen3().eval(), PAD)(QUERIES)[0], QUERIES)
    assert plain[1] != pytest.approx(expected[1], abs=1e-3), "the adapter takes part"
