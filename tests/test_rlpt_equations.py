"""RLPT's prompts to the letter, its predictions out of hostile outputs, its equations by hand and in another way."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rl_think_ext.methods.rlpt import (
    STATUSES,
    Reference,
    RLPTConfig,
    begins,
    extract_prediction,
    msr_share,
    read_prediction,
    render_asr,
    render_msr,
    weighted,
    words,
)
from rl_think_ext.records import Score
from rl_think_ext.scoring.judge import STATS, Pair, RuleJudge
from rl_think_ext.scoring.prediction import Predictions, PredictionScorer, Segment
from rl_think_ext.scoring.prediction_step import step_metrics
from rl_think_ext.scoring.preference import Output

OPEN, CLOSE = "<|startofprediction|>", "<|endofprediction|>"
REFERENCE = Reference("It rained on us. We ran home.", (16, 29))


def test_the_prompts_are_the_papers():
    assert render_asr("{It} 100 % <rained>.\n") == (
        "Complete the text provided under ### Context by predicting the next most probable sentence. Please reason "
        "step by step to determine the best possible continuation, and then enclose your final answer within "
        "<|startofprediction|> and <|endofprediction|> tags. ### Context {It} 100 % <rained>.\n"
    )
    asked = render_msr("It {rained}. ", " We ran $x$.")
    assert asked.startswith(
        "##Text Material##: It {rained}. <MASK> We ran $x$. ## Task##: Fill in the <MASK> section of the material with "
        "appropriate sentences or a solution step. Carefully reason step by step to determine the most suitable "
        "completion."
    )
    # The paper goes on to ask for the tags in words that it does not print.
    assert asked.endswith(" within <|startofprediction|> and <|endofprediction|> tags.")


HOSTILE = {
    f"{OPEN}a b{CLOSE}": "a b",
    f"{OPEN} \n a\nb \t{CLOSE} and on": "a\nb",
    f"{OPEN}first{CLOSE} no, {OPEN}second{CLOSE}": "second",
    f"{OPEN}a{OPEN}b{CLOSE}": "b",
    f"{OPEN}a{OPEN}b{CLOSE}c{CLOSE}": "b",
    f"{OPEN}a{CLOSE}{CLOSE}": "a",
    f"{OPEN}a{CLOSE} then {OPEN}unclosed": "a",
    f"{CLOSE}{OPEN}a": None,
    f"{CLOSE}a{OPEN}": None,
    f"{OPEN}a": None,
    f"a{CLOSE}": None,
    "": None,
    f"{OPEN}{CLOSE}": "",
    f"{OPEN} \u3000\n {CLOSE}": "",
    f"{OPEN.upper()}a{CLOSE.upper()}": None,
    f"{OPEN.replace('<', '＜').replace('>', '＞')}a{CLOSE}": None,
    f"{OPEN.replace('of', 'of' + chr(0x200B))}a{CLOSE}": None,
    f"<think>{OPEN}draft{CLOSE}</think>{OPEN}final{CLOSE}": "final",
    f"<think>{OPEN}draft{CLOSE}</think>It rained.": None,
    f"{OPEN}a<think>SECRET</think>b{CLOSE}": None,
    f"<think>x</think>y</think>{OPEN}a{CLOSE}": "a",
    f"<think>never closed {OPEN}a{CLOSE}": "a",
    f"{OPEN}{{x}} %s $y$ {{{{z}}}}{CLOSE}": "{x} %s $y$ {{z}}",
    f"{OPEN}\ud800\x00\u202ea{CLOSE}": "\ud800\x00\u202ea",
}


@pytest.mark.parametrize("text", HOSTILE, ids=range(len(HOSTILE)))
def test_f22_f23_the_prediction_of_hostile_outputs(text):
    assert extract_prediction(text) == HOSTILE[text]


@given(st.lists(st.sampled_from([OPEN, CLOSE, "a", " ", "</think>", "<"]), max_size=12))
def test_the_last_pair_by_a_second_way(parts):
    text = "".join(parts).split("</think>")[-1]
    # Pairs in which nothing is nested: an opening tag, then no tag, then a closing one.
    pairs = []
    for piece in text.split(OPEN)[1:]:
        inner, closed, _ = piece.partition(CLOSE)
        pairs += [inner.strip()] if closed else []
    assert extract_prediction("".join(parts)) == (pairs[-1] if pairs else None)


STATUS = [
    (f"{OPEN}It rained on us.{CLOSE}", True, "ok"),
    ("It rained.", True, "no_open"),
    (f"{OPEN}It rained on us.", True, "no_close"),
    (f"{OPEN}It rained on us.", False, "truncated"),
    ("So it", False, "truncated"),
    (f"{OPEN}It rained on us.{CLOSE} and on", False, "ok"),
    (f"{OPEN}{CLOSE}", True, "empty"),
    (f"{OPEN}… . ! ? “ ”{CLOSE}", True, "empty"),
    (f"{OPEN}{chr(0x200B) * 40}{CLOSE}", True, "empty"),
    (f"{OPEN}Then,{CLOSE}", True, "too_short"),
    (f"{OPEN}Then, . . . . . . . . .{CLOSE}", True, "too_short"),
    (f"{OPEN}Then,{chr(0x200B) * 40}{CLOSE}", True, "too_short"),
    (f"{OPEN}Then,{chr(0xFE0F) * 40}{CLOSE}", True, "too_short"),
    (f"{OPEN}The{chr(0x34F) * 40}n{chr(0x301) * 40}{CLOSE}", True, "too_short"),
    (f"{OPEN}{' '.join(chr(0x2800) * 9)} Then{CLOSE}", True, "too_short"),
    (f"{OPEN}Then ----------------{CLOSE}", True, "too_short"),
    (f"{OPEN}Then、。「」『』！？（）{CLOSE}", True, "too_short"),
    (f"{OPEN}{chr(0x3164) * 20}{CLOSE}", True, "empty"),
    (f"{OPEN}**** ---- ~~~~ ===={CLOSE}", True, "empty"),
    (f"{OPEN}It rain{CLOSE}", True, "too_short"),
    (f"{OPEN}It raine{CLOSE}", True, "ok"),
    (f"{OPEN}{'a' * 30}{CLOSE}", True, "ok"),
    (f"{OPEN}{'a' * 31}{CLOSE}", True, "too_long"),
]


@pytest.mark.parametrize(("text", "finished", "status"), STATUS)
def test_f26_the_status_of_an_output(text, finished, status):
    config = RLPTConfig(judge="rule", max_prediction_chars=30)
    assert read_prediction(text, REFERENCE, config, finished=finished).status == status


def test_every_status_is_met():
    assert {status for _, _, status in STATUS} == set(STATUSES)


def test_the_shortest_prediction_grows_with_its_segment():
    long = Reference("a" * 100, (100,))
    config = RLPTConfig(judge="rule", min_prediction_share=0.5)
    for length, status in ((49, "too_short"), (50, "ok")):
        assert read_prediction(f"{OPEN}{'a' * length}{CLOSE}", long, config).status == status


def test_words_and_begins_by_hand():
    assert words("It's RAINING: a = b_1, “x²”…") == ["it", "s", "raining", "a", "=", "b_1", "x²"]
    assert words("...") == [] and words("a-b $x$") == ["a", "-", "b", "$", "x", "$"]
    # What nobody sees, and how an accent is encoded, make no other word.
    assert words("cafe\u0301, hy\u00adphen\u200b。") == words("caf\u00e9 hyphen") == ["caf\u00e9", "hyphen"]
    for said, begun in {
        "It rained": True, "it RAINED, on us!": True, "It rained on us. We ran home.": True, "It": True,
        "It rain": False, "rained on us": False, "It rained on us. We ran home. And": False, "": False, "?!": False,
        "It rained on us We walked": False, "It did rain": False,
    }.items():  # fmt: skip
        assert begins(said, REFERENCE.text) is begun, said
    assert not begins("", "") and not begins("a", "")


def second_words(text):
    """Another way: character by character."""
    found, word = [], ""
    for char in [*text.casefold(), " "]:
        if char.isalnum() or char == "_":
            word += char
            continue
        found += [word] if word else []
        word = ""
        if not char.isspace() and char not in ".,;:!?\"'“”‘’()[]…":
            found.append(char)
    return found


@given(st.text(alphabet=st.sampled_from("ab C1_-=+ \n.,!?'“()é漢$"), max_size=24))
def test_words_by_a_second_way(text):
    assert words(text) == second_words(text)


@given(st.text("ab .,", max_size=10), st.text("ab .,", max_size=10))
def test_begins_by_a_second_way(said, text):
    one, other = "".join(f"{w}|" for w in second_words(said)), "".join(f"{w}|" for w in second_words(text))
    assert begins(said, text) is (bool(one) and other.startswith(one))


@given(st.lists(st.integers(1, 9), min_size=1, max_size=6), st.integers(0, 60))
def test_segments_covered_by_brute_force(lengths, said):
    ends = tuple(sum(lengths[: i + 1]) for i in range(len(lengths)))
    found = Reference("x" * ends[-1], ends).num_covered("y" * said)
    # Every character covers its share of its own segment.
    shares = [1 / length for length in lengths for _ in range(length)]
    assert found == pytest.approx(sum(shares[:said]))


def test_segments_covered_by_hand():
    assert REFERENCE.num_covered("") == 0.0 and REFERENCE.num_covered("x" * 16) == 1.0
    assert REFERENCE.num_covered("x" * 8) == 0.5 and REFERENCE.num_covered("x" * 99) == 2.0
    assert REFERENCE.first == "It rained on us." == REFERENCE.shown("strict")
    assert REFERENCE.shown("prefix") == REFERENCE.text


@pytest.mark.parametrize("ends", [(), (16,), (16, 16, 29), (29, 16), (0, 29), (16, 30), (-1, 29)])
def test_ends_that_are_none_are_refused(ends):
    with pytest.raises(ValueError, match="a reference of 29 characters does not end at"):
        Reference(REFERENCE.text, ends)


def test_lambda_by_hand():
    advantages = torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)
    assert weighted(advantages, ["asr", "msr", "msr"], 0.5).tolist() == [1.0, -1.0, 1.5]
    table = advantages[:, None].expand(3, 2)
    assert weighted(table, ["msr", "asr", "asr"], 0.25).tolist() == [[0.25, 0.25], [-2.0, -2.0], [3.0, 3.0]]
    assert weighted(torch.zeros(0), [], 0.5).tolist() == []
    for tasks in (["asr"], ["asr", "msr", "rlp"]):
        with pytest.raises(ValueError, match="3 advantages need as many tasks of asr, msr"):
            weighted(advantages, tasks, 0.5)


@settings(deadline=None)
@given(st.floats(0.05, 3.0), st.lists(st.sampled_from(["asr", "msr"]), min_size=1, max_size=8))
def test_lambda_is_that_of_the_objective(weight, tasks):
    """The gradient of sum(weighted advantage * log p) is that of J = J_ASR + lambda * J_MSR, by autograd."""
    generator = torch.Generator().manual_seed(len(tasks))
    logits = torch.randn(len(tasks), 3, generator=generator, dtype=torch.float64).requires_grad_()
    advantages = torch.randn(len(tasks), generator=generator, dtype=torch.float64)
    logprob = logits.log_softmax(-1)[:, 0]
    (ours,) = torch.autograd.grad((weighted(advantages, tasks, weight) * logprob).sum(), logits, retain_graph=True)
    parts = {
        name: sum((a * p for a, p, t in zip(advantages, logprob, tasks, strict=True) if t == name), logprob.sum() * 0)
        for name in ("asr", "msr")
    }
    (wanted,) = torch.autograd.grad(parts["asr"] + weight * parts["msr"], logits)
    torch.testing.assert_close(ours, wanted)


@given(st.floats(0.01, 5.0), st.floats(-3, 3), st.floats(-3, 3))
def test_the_share_of_rows_stands_for_lambda(weight, asr, msr):
    share = msr_share(weight)
    assert 0 < share < 1
    mixed = (1 - share) * asr + share * msr
    assert mixed * (1 + weight) == pytest.approx(asr + weight * msr)
    assert msr_share(1.0) == 0.5 and msr_share(0.25) == pytest.approx(0.2)


def test_the_rule_judge_by_hand():
    pairs = [
        Pair(REFERENCE.text, "it rained ON us"), Pair(REFERENCE.text, "It rained on us. We ran"), Pair("a b", "a c"),
        Pair(REFERENCE.first, "It rained on us!"),
    ]  # fmt: skip
    prefix, strict = (RuleJudge(RLPTConfig(judge="rule", reward=reward)) for reward in ("prefix", "strict"))
    assert [score.value for score in prefix(pairs)] == [1.0, 1.0, 0.0, 1.0]
    assert [score.value for score in strict(pairs)] == [0.0, 0.0, 0.0, 1.0]
    assert set(prefix.stats) == set(STATS) and prefix.stats["num_asked"] == 4 and prefix([]) == []


class Silent:
    """A judge that has no verdict."""

    def __init__(self):
        self.stats = {"num_asked": 1.0}

    def __call__(self, pairs):
        return [Score.unscorable("judge: timeout") for _ in pairs]


SEGMENT = Segment("asr", "The clouds were dark. ", REFERENCE)
SAID = [Output(f"{OPEN}It rained on us.{CLOSE}"), Output("nothing"), Output(f"{OPEN}hm{CLOSE}"), Output("cut", False)]


def test_what_is_asked_what_is_wrong_and_what_is_nothing():
    def of(judge="rule", **changes) -> Predictions:
        config = RLPTConfig(judge="rule", **changes)
        return PredictionScorer(config, RuleJudge(config) if judge == "rule" else Silent())([SEGMENT] * 4, SAID)

    assert [score.value for score in of().scores] == [1.0, 0.0, 0.0, 0.0]
    assert [score.value for score in of(malformed="unscorable").scores] == [1.0, None, 0.0, None]
    silent = of(Silent)
    assert [score.value for score in silent.scores] == [None, 0.0, 0.0, 0.0]
    assert silent.scores[0].reason == "judge: timeout"
    assert of().column("judged").tolist() == [1.0, 0.0, 0.0, 0.0]


def test_the_metrics_of_a_step_by_hand():
    config = RLPTConfig(judge="rule")
    msr = Segment("msr", "The clouds were dark. ", Reference("It rained on us.", (16,)), " We ran home.")
    said = [*SAID[:2], Output(f"{OPEN}We ran home.{CLOSE}"), SAID[0]]
    found = PredictionScorer(config, RuleJudge(config))([SEGMENT, SEGMENT, msr, msr], said)
    metrics = step_metrics(found.table, 2)
    wanted = {
        "asr/score": 0.5, "msr/score": 0.5, "asr/share": 0.5, "score": 0.5, "score_spread": 0.5**0.5, "no_verdict": 0.0,
        "zero_variance_groups": 0.0, "status/ok": 0.75, "status/no_open": 0.25, "segments_covered": (1 + 0.75 + 1) / 3,
        "segments_covered_right": 1.0, "prediction_chars": (16 + 12 + 16) / 3, "prediction_copied": 0.0,
        "truncated": 0.0, "unscorable": 0.0, "length": sum(len(one.text) for one in said) / 4,
    }  # fmt: skip
    assert {name: metrics[name] for name in wanted} == pytest.approx(wanted)
    gone = PredictionScorer(config, Silent())([SEGMENT] * 2, SAID[:1] * 2)
    assert step_metrics(gone.table, 2)["no_verdict"] == 1.0
    # The same names whatever happened (F11).
    empty = PredictionScorer(config, Silent())([], [])
    assert set(step_metrics(empty.table, 2)) == set(metrics)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"msr_weight": float("inf")}, "`msr_weight` is a number above 0"),
        ({"msr_weight": 0.0}, "`msr_weight` is a number above 0"),
        ({"min_prediction_share": 1.5}, "`min_prediction_share` is from 0 to 1"),
        ({"max_prediction_chars": 7}, "every prediction would be wrong"),
        ({"num_canaries": -1}, "`num_canaries` is at least 0"),
        ({"judge_temperature": -1.0}, "`judge_temperature` is 0 or more"),
        ({"breaker_failures": 0}, "`breaker_failures` is at least 1"),
        ({"judge": "rule", "cache_file": "x"}, "`cache_file` is for a judge behind a server"),
    ],
)
def test_f40_settings_out_of_their_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        RLPTConfig(**changes)
