"""RPT, VeriFree and RLPR: their equations against numbers by hand and other algorithms, and what they are fed with."""

from __future__ import annotations

import dataclasses
import itertools
import math
import random
import statistics

import models
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from rl_think_ext.data.positions import sample_positions
from rl_think_ext.data.rlp import RLPDataConfig
from rl_think_ext.errors import UserError
from rl_think_ext.methods import rlpr, rpt, verifree
from rl_think_ext.methods.rlp import group_advantage
from rl_think_ext.methods.rlpr import RLPRConfig, StdFilter
from rl_think_ext.methods.rpt import RPTConfig
from rl_think_ext.methods.verifree import VeriFreeConfig
from rl_think_ext.report.kinds import kind_of
from rl_think_ext.scoring.answer import AnswerScorer
from rl_think_ext.scoring.gain import Rollout
from rl_think_ext.scoring.likelihood import Likelihood, Query
from rl_think_ext.scoring.load import load_tokenizer
from rl_think_ext.scoring.token_bytes import spelling_of, text_bytes, token_bytes
from rl_think_ext.template import TagIds, ThoughtIds
from rl_think_ext.tiny import PROGRAMS_MODEL, TEXT_TOKENIZER

NAN, INF = math.nan, math.inf

# --- RPT: the rule --------------------------------------------------------------------------------------------------

PIECES = [b" the", b"ory", b" \xc3", b"\xa9t\xc3\xa9", b"."]  # " theory été." where a character lies in two tokens


@pytest.mark.parametrize(
    ("prediction", "match"),
    [
        (" the", True),
        (" theory", True),
        (" theory été", True),
        (" theory été.", True),
        ("the", False),  # the leading blank belongs to the token
        (" theo", False),  # right bytes, inside a token
        (" theory ", False),  # the third token ends inside a character: nothing that can be said ends there
        (" theory é", False),
        ("", False),  # no byte is no prediction, though 0 bytes begin every text
        (" theory été. And", False),  # longer than the continuation
        (" Theory", False),
        (" theory été ", False),  # as long as the whole, other bytes
    ],
)
def test_rpt_prefix_match_by_hand(prediction: str, match: bool) -> None:
    target = rpt.continuation(PIECES)
    assert target == rpt.Continuation(" theory été.".encode(), (4, 7, 9, 13, 14))
    assert rpt.prefix_match(prediction.encode(), target.text, target.boundaries) is match
    assert rpt.reward(prediction, target) == float(match)


def test_rpt_half_a_character_matches_as_bytes() -> None:
    target = rpt.continuation(PIECES)
    assert rpt.prefix_match(b" theory \xc3", target.text, target.boundaries)
    assert not rpt.prefix_match(b" theory \xc3\xa9", target.text, target.boundaries)


@example([b"", b"a"], 0, b"")
@example([b"ab", b"c"], 1, b"")
@given(st.lists(st.binary(max_size=3), max_size=6), st.integers(0, 20), st.binary(max_size=3))
def test_rpt_prefix_match_agrees_with_trying_every_number_of_tokens(
    pieces: list[bytes], cut: int, behind: bytes
) -> None:
    target = rpt.continuation(pieces)
    said = target.text[:cut] + behind
    tried = any(b"".join(pieces[:k]) == said for k in range(1, len(pieces) + 1)) and said != b""
    assert rpt.prefix_match(said, target.text, target.boundaries) is tried


@pytest.mark.parametrize(
    ("output", "found"),
    [
        ("</think>\\boxed{ the}", " the"),
        ("\\boxed{a}</think> so \\boxed{b}.", "b"),
        ("\\boxed{a}</think> nothing", None),
        ("\\boxed{a}", None),
        ("", None),
        ("</think>\\boxed{a} and \\boxed{b", "a"),  # the last one that is complete
        ("</think>\\boxed{\\frac{1}{2}}", "\\frac{1}{2}"),
        ("</think>\\boxed{}", ""),
        ("</think>{\\boxed{x}}", "x"),
        ("</think>}}\\boxed{x}", "x"),
        ("</think>\\boxed{a}</think>\\boxed{b}", "b"),  # behind the first closing tag, the last box
        ("</think>boxed{a}", None),
        ("</think>\\boxed {a}", None),
        ("x{</think>\\boxed{a\n b}", "a\n b"),
        ("</think>" + "\\boxed{" * 20_000 + "}", ""),
        ("</think>" + "{" * 100_000, None),
    ],
)
def test_rpt_prediction_is_the_last_complete_box_behind_the_thought(output: str, found: str | None) -> None:
    assert rpt.extract_prediction(output) == found


def test_rpt_without_a_prediction() -> None:
    target = rpt.continuation([b"a"])
    assert rpt.reward(None, target) == 0.0
    assert rpt.reward(None, target, "unscorable") is None
    assert rpt.reward("\udc80", target, "unscorable") == 0.0, "a lone surrogate is a wrong prediction, no crash"


# --- the bytes of tokens --------------------------------------------------------------------------------------------

TEXTS = ["été 中文 🙂🙂 naïve", " leading blank", "a  b\n\n\tc", "x=\\frac{1}{2} ▁ Ġ", "İstanbul ﬁne", "\x00\x7f"]


def sentencepiece_like(dummy_blank: bool):
    """A Llama-2-like tokenizer: ▁ for blanks, bytes as <0x..>, with or without a blank before every text."""
    from tokenizers import Tokenizer, decoders, models, normalizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted({"▁", *"abcdefghijklmnopqrstuvwxyz.=é"})
    pieces = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *letters, "th", "the", "▁the"]
    merges = [("t", "h"), ("th", "e"), ("▁", "the")]
    model = models.BPE(
        {piece: i for i, piece in enumerate(pieces)}, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True
    )
    bpe = Tokenizer(model)
    steps = [normalizers.Prepend("▁")] if dummy_blank else []
    bpe.normalizer = normalizers.Sequence([*steps, normalizers.Replace(" ", "▁")])
    strip = [decoders.Strip(" ", 1, 0)] if dummy_blank else []
    bpe.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    return PreTrainedTokenizerFast(tokenizer_object=bpe, unk_token="<unk>", eos_token="</s>")


@pytest.mark.parametrize("text", TEXTS)
def test_byte_level_tokens_are_the_bytes_of_the_text(text: str) -> None:
    tokenizer = load_tokenizer(str(TEXT_TOKENIZER))
    pieces = token_bytes(tokenizer, tokenizer(text, add_special_tokens=False)["input_ids"])
    assert spelling_of(tokenizer) == "bytes"
    assert b"".join(pieces) == text.encode()
    assert text_bytes(tokenizer, text) == pieces


def test_byte_level_characters_lie_in_several_tokens() -> None:
    tokenizer = load_tokenizer(str(TEXT_TOKENIZER))
    pieces = token_bytes(tokenizer, tokenizer("中🙂")["input_ids"])
    assert len(pieces) > 2
    assert b"".join(pieces) == "中🙂".encode()
    assert "\ufffd" in pieces[0].decode("utf-8", "replace"), "the first token is no character of its own"
    assert token_bytes(tokenizer, tokenizer("<think>a</think>")["input_ids"]) == [b"<think>", b"a", b"</think>"]


@pytest.mark.parametrize("dummy_blank", [True, False])
@pytest.mark.parametrize("text", ["the thé 🙂", " the", "  the", "中", "a.b"])
def test_byte_fallback_tokens_are_the_bytes_of_the_text(text: str, dummy_blank: bool) -> None:
    tokenizer = sentencepiece_like(dummy_blank)
    assert spelling_of(tokenizer) == "pieces"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert b"".join(token_bytes(tokenizer, ids)) == (b" " if dummy_blank else b"") + text.encode()
    assert b"".join(text_bytes(tokenizer, text)) == text.encode()
    assert b"" not in text_bytes(tokenizer, text)


def test_byte_fallback_by_hand() -> None:
    tokenizer = sentencepiece_like(True)
    ids = tokenizer("the中", add_special_tokens=False)["input_ids"]
    assert tokenizer.convert_ids_to_tokens(ids) == ["▁the", "<0xE4>", "<0xB8>", "<0xAD>"]
    # In the middle of a text the blank is a blank; a text on its own does not begin with one.
    assert token_bytes(tokenizer, ids) == [b" the", b"\xe4", b"\xb8", b"\xad"]
    assert text_bytes(tokenizer, "the中") == [b"the", b"\xe4", b"\xb8", b"\xad"]


def test_any_other_tokenizer_is_read_by_what_a_token_adds() -> None:
    tokenizer = load_tokenizer(str(PROGRAMS_MODEL))
    assert spelling_of(tokenizer) == "decoded"
    assert text_bytes(tokenizer, "=1 b=a+4") == [b"=1", b" b=a", b"+4"]


def test_a_tokenizer_that_does_not_give_its_text_back_is_refused() -> None:
    with pytest.raises(UserError, match="does not give 'What is it' back: store its ids"):
        text_bytes(load_tokenizer(str(PROGRAMS_MODEL)), "What is it")
    for folder in (TEXT_TOKENIZER, PROGRAMS_MODEL):
        for token in (99999, -1):
            with pytest.raises(UserError, match=f"token {token} is unknown"):
                token_bytes(load_tokenizer(str(folder)), [5, token])


# --- VeriFree and RLPR: the numbers ---------------------------------------------------------------------------------

ALL2 = torch.ones(1, 2, dtype=torch.bool)


def test_probability_of_an_answer_by_hand() -> None:
    logprob = torch.tensor([[0.5, 0.5, 0.9], [0.25, 1.0, 0.1], [0.8, 0.1, 0.1]]).log()
    mask = torch.tensor([[True, True, False], [True, True, False], [True, False, False]])
    assert verifree.answer_probability(logprob, mask).tolist() == pytest.approx([0.25, 0.25, 0.8])
    # The mean of probabilities is neither their product nor exp of the mean log-prob (0.5 for the second row).
    assert rlpr.mean_probability(logprob, mask).tolist() == pytest.approx([0.5, 0.625, 0.8])


def test_probabilities_agree_with_a_loop_in_float64() -> None:
    generator = torch.Generator().manual_seed(0)
    logprob = -torch.rand(40, 7, generator=generator, dtype=torch.float64) * 9
    mask = torch.rand(40, 7, generator=generator) < 0.6
    mask[0] = False
    whole, mean = verifree.answer_probability(logprob, mask), rlpr.mean_probability(logprob, mask)
    for i, (row, keep) in enumerate(zip(logprob.tolist(), mask.tolist(), strict=True)):
        values = [math.exp(x) for x, kept in zip(row, keep, strict=True) if kept]
        if not values:
            assert whole[i].isnan() and mean[i].isnan()
            continue
        assert float(whole[i]) == pytest.approx(math.prod(values), rel=1e-12)
        assert float(mean[i]) == pytest.approx(statistics.fmean(values), rel=1e-12)


@pytest.mark.parametrize("value", [verifree.answer_probability, rlpr.mean_probability])
@pytest.mark.parametrize("broken", [-INF, NAN, INF])
def test_f12_f15_a_log_prob_that_is_not_finite_is_no_probability(value: object, broken: float) -> None:
    # exp(-inf) is a plain 0, which would be paid.
    assert value(torch.tensor([[-1.0, broken]]), ALL2).isnan().all()  # type: ignore[operator]
    assert value(torch.zeros(2, 2), torch.zeros(2, 2, dtype=torch.bool)).isnan().all()  # type: ignore[operator]
    only_first = torch.tensor([[True, False]])
    assert not value(torch.tensor([[-1.0, broken]]), only_first).isnan().any()  # type: ignore[operator]


def test_rlpr_debiased_reward_by_hand() -> None:
    reasoned, direct = torch.tensor([0.9, 0.25, 0.5, 1.0, NAN]), torch.tensor([0.4, 0.5, 0.5, 0.0, 0.1])
    paid = rlpr.debiased(reasoned, direct)
    assert paid[:4].tolist() == pytest.approx([0.5, 0.0, 0.0, 1.0])
    assert paid[4].isnan()


def test_rlpr_deviation_of_groups_by_hand_and_by_the_standard_library() -> None:
    rewards = torch.tensor([0.0, 1.0, NAN, 0.2, 0.2, 0.2, 0.7, NAN, NAN, 0.1, 0.4, 0.9], dtype=torch.float64)
    found = rlpr.group_std(rewards, 3).tolist()
    assert found[0] == pytest.approx(statistics.stdev([0.0, 1.0]))
    assert found[1] == pytest.approx(0.0, abs=1e-12)
    assert math.isnan(found[2])
    assert found[3] == pytest.approx(statistics.stdev([0.1, 0.4, 0.9]))


def test_rlpr_filter_by_hand() -> None:
    std = torch.tensor([0.1, 0.3, NAN])
    first = StdFilter().updated(std, 0.9)
    assert first == StdFilter(pytest.approx(0.2), 1)
    second = first.updated(torch.tensor([0.4]), 0.9)
    assert second.mean == pytest.approx(0.9 * 0.2 + 0.1 * 0.4)
    assert second.steps == 2
    # beta is half of 0.22; a group of which nobody knows the deviation has no advantage to lose.
    assert second.left_out(torch.tensor([0.10, 0.12, 0.0, NAN]), 0.5, 0).tolist() == [True, False, True, False]
    assert not second.left_out(torch.zeros(3), 0.5, 2).any(), "the first steps leave nothing out"
    assert second.left_out(torch.zeros(3), 0.5, 1).all()
    assert not second.left_out(torch.zeros(3), None, 0).any()
    nothing = StdFilter().updated(torch.tensor([NAN]), 0.9)
    assert nothing == StdFilter(None, 1)
    assert not nothing.left_out(torch.zeros(2), 0.5, 0).any()


def test_rlpr_advantage_is_grpos() -> None:
    values = [0.1, 0.4, 0.9, 0.3, 0.3, 0.3, 0.5, NAN, 0.7, NAN, NAN, 0.2]
    found = rlpr.scaled_advantage(torch.tensor(values, dtype=torch.float64), 3).tolist()
    for start in range(0, len(values), 3):
        group = values[start : start + 3]
        known = [r for r in group if r == r]
        for i, r in enumerate(group):
            alone = r != r or len(known) < 2 or max(known) == min(known)
            wanted = 0.0 if alone else (r - statistics.fmean(known)) / (statistics.stdev(known) + 1e-4)
            assert found[start + i] == pytest.approx(wanted, abs=1e-12)


@pytest.mark.parametrize(
    ("kind", "change", "words"),
    [
        (RPTConfig, {"num_target_tokens": 0}, "`num_target_tokens` is at least 1"),
        (RPTConfig, {"max_failed_steps": 0}, "`max_failed_steps` is at least 1"),
        (VeriFreeConfig, {"max_answer_tokens": 0}, "`max_answer_tokens` is at least 1"),
        (VeriFreeConfig, {"max_failed_steps": 0}, "`max_failed_steps` is at least 1"),
        (RLPRConfig, {"max_answer_tokens": 0}, "`max_answer_tokens` is at least 1"),
        (RLPRConfig, {"std_filter": 0.0}, "`std_filter` is above 0"),
        (RLPRConfig, {"std_filter": NAN}, "`std_filter` is above 0"),
        (RLPRConfig, {"std_decay": 1.0}, "`std_decay` is from 0 to below 1"),
        (RLPRConfig, {"std_filter_start": -1}, "`std_filter_start` is at least 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(kind: type, change: dict[str, float], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        dataclasses.replace(kind(), **change)


# --- VeriFree: the gradient -----------------------------------------------------------------------------------------

VOCAB, CLOSE = 11, 10


def flat(gradients: tuple[torch.Tensor, ...]) -> torch.Tensor:
    return torch.cat([g.flatten() for g in gradients])


def test_verifree_both_terms_with_leave_one_out_are_the_gradient_of_the_objective() -> None:
    """Every pair of one-token thoughts, weighted by its probability: no sample, no variance, only the expectation."""
    model = models.qwen3(VOCAB, tie_word_embeddings=False).double().eval()
    question, answer = (3, 1, 4), (5, 9)
    likelihood = Likelihood(model, 0)
    parameters = [p for p in model.parameters() if p.requires_grad]
    log_thought = model(torch.tensor([question])).logits[0, -1].log_softmax(-1)
    log_answer = torch.stack(
        [
            model(torch.tensor([[*question, z, CLOSE, *answer]])).logits[0, -3:-1].log_softmax(-1)[(0, 1), answer].sum()
            for z in range(VOCAB)
        ]
    )
    objective = (log_thought.exp() * log_answer.exp()).sum()
    wanted = flat(torch.autograd.grad(objective, parameters, retain_graph=True))

    queries = [Query((*question, z, CLOSE), answer) for z in range(VOCAB)]
    scored = likelihood(queries).logprob
    reward = verifree.answer_probability(scored, torch.ones_like(scored, dtype=torch.bool)).double()
    trained = likelihood.with_gradient(queries)
    torch.testing.assert_close(trained.double(), log_answer, atol=1e-5, rtol=0)
    first = second = torch.zeros((), dtype=torch.float64)
    for pair in itertools.product(range(VOCAB), repeat=2):
        z = list(pair)
        weight = log_thought[z].sum().exp().detach()
        advantage = group_advantage(reward[z], 2)
        first = first - weight * (advantage * log_thought[z]).sum() / 2
        second = second + weight * verifree.answer_loss(reward[z], trained[z].double()) / 2
    one = flat(torch.autograd.grad(first, parameters, retain_graph=True, allow_unused=True, materialize_grads=True))
    other = flat(torch.autograd.grad(second, parameters, allow_unused=True, materialize_grads=True))
    scale = float(wanted.abs().max())
    torch.testing.assert_close(-(one + other), wanted, atol=1e-5 * scale, rtol=1e-4)
    assert float((-one - wanted).abs().max()) > 0.05 * scale, "the second term is no decoration"
    assert float((-other - wanted).abs().max()) > 0.05 * scale


def test_verifree_answer_without_a_reward_is_not_trained() -> None:
    logprob = torch.tensor([-1.0, -2.0, -3.0], requires_grad=True)
    loss = verifree.answer_loss(torch.tensor([0.5, NAN, 0.25]), logprob)
    assert float(loss.detach()) == pytest.approx(0.5 * 1.0 + 0.25 * 3.0)
    loss.backward()
    assert logprob.grad is not None
    assert logprob.grad.tolist() == [-0.5, 0.0, -0.25]


def test_with_gradient_agrees_with_the_scorer_whatever_the_batch() -> None:
    model = models.qwen3(VOCAB).eval()
    draw = random.Random(0)
    queries = [
        Query(tuple(draw.choices(range(VOCAB), k=draw.randint(1, 9))), tuple(draw.choices(range(VOCAB), k=k)))
        for k in (1, 4, 2, 3, 1)
    ]
    scored = Likelihood(model, 0)(queries).logprob.nansum(-1)
    for most in (1, 16, 1000):
        found = Likelihood(model, 0, max_tokens=most).with_gradient(queries)
        assert found.requires_grad
        torch.testing.assert_close(found.detach(), scored, atol=1e-5, rtol=0)
    assert Likelihood(model, 0).with_gradient([]).shape == (0,)


# --- the scorer -----------------------------------------------------------------------------------------------------

TAGS = TagIds((8,), (CLOSE,))


def one_rollout(*thought: int, target: tuple[int, ...] = (5, 9)) -> Rollout:
    return Rollout((3, 1, 4, 8), (3, 1, 4), target, ThoughtIds((*thought, CLOSE), len(thought) + 1, "ok"))


def direct(model: torch.nn.Module, prefix: tuple[int, ...], target: tuple[int, ...]) -> list[float]:
    """Probabilities of a target's tokens, one forward each."""
    found = []
    for k, token in enumerate(target):
        with torch.no_grad():
            found.append(float(model(torch.tensor([(*prefix, *target[:k])])).logits[0, -1].double().softmax(-1)[token]))
    return found


def test_scorer_takes_the_value_of_each_side_before_the_difference() -> None:
    model = models.qwen3(VOCAB).eval()
    rollouts = [one_rollout(7, 6), one_rollout(2), one_rollout(2, target=(6,))]
    config = RLPRConfig(baseline="live").scoring
    gains = AnswerScorer(config, Likelihood(model, 0), TAGS, value=rlpr.mean_probability)(rollouts)
    for i, r in enumerate(rollouts):
        with_it = statistics.fmean(direct(model, r.prompt + r.thought.ids, r.target))
        without = statistics.fmean(direct(model, r.context, r.target))
        assert float(gains.column("reasoned")[i]) == pytest.approx(with_it, abs=1e-6)
        assert float(gains.column("baseline")[i]) == pytest.approx(without, abs=1e-6)
        assert float(gains.column("gain")[i]) == pytest.approx(with_it - without, abs=1e-6)


def test_scorer_of_verifree_has_no_baseline_and_says_so() -> None:
    model = models.qwen3(VOCAB).eval()
    gains = AnswerScorer(VeriFreeConfig().scoring, Likelihood(model, 0), TAGS, value=verifree.answer_probability)(
        [one_rollout(7, 6), one_rollout(target=()), one_rollout(2)]
    )
    expected = math.prod(direct(model, (3, 1, 4, 8, 7, 6, CLOSE), (5, 9)))
    assert float(gains.column("gain")[0]) == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(gains.column("gain"), gains.column("reasoned"), equal_nan=True, atol=0, rtol=0)
    assert gains.column("baseline").isnan().all(), "a probability of 1 that nobody asked for"
    assert [score.reason for score in gains.scores()] == [None, "no target tokens", None]


# --- around them ------------------------------------------------------------------------------------------------------


def test_entropy_sampler_keeps_positions_from_a_least_entropy_on() -> None:
    entropies = [9.0, 0.5, 1.5, NAN, 1.0, 2.5, 9.0]
    given = {"seed": 0, "document_id": "a", "entropies": entropies}
    assert sample_positions("entropy", 7, min_entropy=1.0, **given) == [2, 4, 5, 6]
    assert sample_positions("entropy", 7, min_entropy=1.0, num_positions=2, **given) == [5, 6]
    assert sample_positions("entropy", 7, min_entropy=10.0, **given) == []
    assert sample_positions("entropy", 7, num_positions=99, **given) == [1, 2, 4, 5, 6]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"sampler": "entropy"}, "needs `num_positions`, `min_entropy` or both"),
        ({"sampler": "entropy", "min_entropy": -1.0}, "`min_entropy` is at least 0"),
        ({"sampler": "entropy", "min_entropy": NAN}, "`min_entropy` is at least 0"),
        ({"sampler": "random", "model": None, "min_entropy": 1.0}, "for the sampler entropy"),
    ],
)
def test_least_entropy_that_cannot_be_is_refused(change: dict[str, object], words: str) -> None:
    given = {"input": "a.txt", "output": "out", "tokenizer": "t", "model": "m", "min_entropy": None}
    with pytest.raises(UserError, match=words):
        RLPDataConfig(**{**given, **change})  # type: ignore[arg-type]
    RLPDataConfig(**{**given, "sampler": "entropy", "min_entropy": 0.0})  # type: ignore[arg-type]


@pytest.mark.parametrize(("method", "name"), [("verifree", "VeriFree"), ("rlpr", "RLPR"), ("rpt", "RPT")])
def test_report_does_not_call_them_rlp(method: str, name: str) -> None:
    kind = kind_of({"method": method, "trainer": "ThinkGRPOTrainer"}, {f"{method}/reward"})
    assert kind.name == name
    assert kind.prefix == f"{method}/"
    series = {metric for spec in kind.specs for metric, _ in spec.series}
    assert f"{method}/reward" in series
    assert not any(metric.startswith("rlp/") for metric in series)
