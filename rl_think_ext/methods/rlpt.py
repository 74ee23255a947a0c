"""RLPT, reinforcement learning on pre-training data (arXiv 2509.19249): settings, tasks and equations.

A text is cut into segments s_1..s_n. The policy reasons about a segment it has not seen and writes it down: from what
stands before it (ASR), or from both sides (MSR). A judge says whether what was written is a semantic prefix of what
follows in the text; the reward is 1 or 0. J = E_ASR[r] + lambda * E_MSR[r].
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from rl_think_ext.methods.verdict import judge_prompt as judge_prompt
from rl_think_ext.methods.verdict import parse_verdict as parse_verdict
from rl_think_ext.template import CLOSE_PREDICTION, CLOSE_TAG, INVISIBLE, OPEN_PREDICTION, with_short_runs

if TYPE_CHECKING:
    from torch import Tensor

Task = Literal["asr", "msr"]
Reward = Literal["prefix", "strict"]
# no_open, no_close: a tag is missing; truncated: the length limit came before the closing one. Too long, too short and
# empty predictions are wrong without a question to the judge: the empty text is a prefix of everything.
PredictionStatus = Literal["ok", "no_open", "no_close", "truncated", "empty", "too_short", "too_long"]
TASKS: tuple[Task, ...] = get_args(Task)
STATUSES: tuple[PredictionStatus, ...] = get_args(PredictionStatus)

# Settings that say nothing to `judge: rule`.
SERVED = ("server", "judge_model", "judge_prompt", "judge_thinking", "api_key_env", "cache_file")

_MARKS = r".,;:!?\"'“”‘’()\[\]…。，、；：！？（）「」『』《》〈〉【】«»‹›"
MASK = "<MASK>"  # where the missing segment of MSR was
# Paper: both prompts as the source prints them; the MSR one goes on to ask for the same tags, in words of ours.
_ASR = (
    "Complete the text provided under ### Context by predicting the next most probable sentence. Please reason step by "
    "step to determine the best possible continuation, and then enclose your final answer within "
    f"{OPEN_PREDICTION} and {CLOSE_PREDICTION} tags. ### Context "
)
_MSR = (
    "##Text Material##: ",
    MASK,
    f" ## Task##: Fill in the {MASK} section of the material with appropriate sentences or a solution step. Carefully "
    "reason step by step to determine the most suitable completion. "
    f"Enclose what belongs in the place of {MASK} within {OPEN_PREDICTION} and {CLOSE_PREDICTION} tags.",
)


@dataclass(frozen=True)
class RLPTConfig:
    """Settings of RLPT; the defaults are the paper's where it gives one.

    Args:
        reward: prefix: the prediction says what the reference begins with (the paper's final form); strict: exactly
            what the one true segment says.
        msr_weight: lambda of the objective, above 0: what a sample of MSR counts beside one of ASR. It acts on the
            advantage, for a factor on the reward disappears in the group's own scale; on data with as many rows of
            either task. The stock trainer cannot and needs 1.0: give its data `--msr-share` lambda / (1 + lambda).
        malformed: What an output without a prediction between its tags is worth: zero, as a wrong one; unscorable:
            nothing, it leaves the group. The paper does not say.
        min_prediction_chars: Shorter predictions are wrong without a question: "Therefore," begins many a sentence.
            Marks of sentences, accents and characters that are not seen do not count; a sign that is repeated
            counts once.
        min_prediction_share: The same, as a share of the reference's first segment.
        max_prediction_chars: Longer predictions are wrong without a question; a prediction is never cut.
        judge: server: a language model behind an OpenAI-compatible endpoint; rule: the normalised words of the
            prediction begin the reference's (for runs without a server; no paraphrase is right).
        server: Address of the judge, for example http://localhost:8000.
        judge_model: The judge's name on the server.
        judge_prompt: A text file with {reference}, {prediction} and {boundary} in it, in place of the judge's prompt.
        judge_temperature: Of the judge's sampling; 0 is greedy.
        judge_max_tokens: Tokens a verdict may take; a judge that thinks in its answer needs more, and a server that
            keeps thoughts apart (`--reasoning-parser`).
        judge_thinking: Tells the judge's chat template to think or not (`enable_thinking`); nothing is said by default.
        api_key_env: The environment variable that holds the server's key.
        max_concurrency: Requests on their way at once, over all processes.
        timeout: Seconds a try may take.
        deadline: Seconds in which all verdicts of a batch have to be there; at most 0.45 of the processes' own timeout.
        retries: How often a request is repeated.
        breaker_failures: After so many failed requests in a row, without a good one between, the batch's rest is given
            up: a server that is down is not asked five hundred times.
        cache_file: An SQLite file that keeps verdicts by judge, reference and prediction across runs and processes.
        cache_size: Verdicts that are kept in memory.
        num_canaries: Known-wrong and known-right pairs sent with every batch; the share that the judge gets right is
            logged.
        max_failed_steps: Raise after so many reward calls in a row in which the judge was asked and gave no verdict, or
            no sample was scorable.
    """

    reward: Reward = "prefix"
    msr_weight: float = 1.0
    malformed: Literal["zero", "unscorable"] = "zero"
    min_prediction_chars: int = 8
    min_prediction_share: float = 0.2
    max_prediction_chars: int = 4000
    judge: Literal["server", "rule"] = "server"
    server: str | None = None
    judge_model: str = ""
    judge_prompt: str | None = None
    judge_temperature: float = 0.0
    judge_max_tokens: int = 16
    judge_thinking: bool | None = None
    api_key_env: str | None = None
    max_concurrency: int = 64
    timeout: float = 60.0
    deadline: float = 600.0
    retries: int = 4
    breaker_failures: int = 64
    cache_file: str | None = None
    cache_size: int = 65536
    num_canaries: int = 4
    max_failed_steps: int = 3

    def __post_init__(self) -> None:
        for name in (
            "min_prediction_chars",
            "max_prediction_chars",
            "judge_max_tokens",
            "max_concurrency",
            "breaker_failures",
            "max_failed_steps",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"`{name}` is at least 1, got {getattr(self, name)}")
        for name in ("retries", "cache_size", "num_canaries"):
            if getattr(self, name) < 0:
                raise ValueError(f"`{name}` is at least 0, got {getattr(self, name)}")
        for name in ("timeout", "deadline", "msr_weight"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"`{name}` is a number above 0, got {getattr(self, name)}")
        if not 0.0 <= self.min_prediction_share <= 1.0:
            raise ValueError(f"`min_prediction_share` is from 0 to 1, got {self.min_prediction_share}")
        if not 0.0 <= self.judge_temperature < float("inf"):
            raise ValueError(f"`judge_temperature` is 0 or more, got {self.judge_temperature}")
        if self.max_prediction_chars < self.min_prediction_chars:
            raise ValueError(
                "`max_prediction_chars` lies below `min_prediction_chars`: every prediction would be wrong"
            )
        if self.judge == "rule":
            for name in SERVED:
                if getattr(self, name) not in (None, ""):
                    raise ValueError(f"`{name}` is for a judge behind a server, not for `judge: rule`: take one out")


@dataclass(frozen=True)
class Reference:
    """The text that follows in the document, and where its segments end, in characters.

    Raises:
        ValueError: no segment, or ends that do not rise to the text's length.
    """

    text: str
    ends: tuple[int, ...]

    def __post_init__(self) -> None:
        rising = all(a < b for a, b in zip((0, *self.ends), self.ends, strict=False))
        if not self.ends or not rising or self.ends[-1] != len(self.text):
            raise ValueError(f"a reference of {len(self.text)} characters does not end at {self.ends[-1:]}")

    @property
    def first(self) -> str:
        """The segment that a prediction is about."""
        return self.text[: self.ends[0]]

    def shown(self, reward: Reward) -> str:
        """What the judge compares with: the one true segment (strict), or several subsequent ones (prefix)."""
        return self.first if reward == "strict" else self.text

    def num_covered(self, prediction: str) -> float:
        """How many segments are as long as the prediction, in characters; a part of one counts as a part.

        >>> Reference("One. Two more.", (4, 14)).num_covered("One. T")
        1.2
        """
        length = min(len(prediction), len(self.text))
        whole = bisect_left(self.ends, length)
        start = self.ends[whole - 1] if whole else 0
        return whole + (length - start) / (self.ends[whole] - start)


@dataclass(frozen=True)
class Prediction:
    """What an output says between its tags; `text` is None unless there are two of them."""

    text: str | None
    status: PredictionStatus


def render_asr(context: str) -> str:
    """The prompt of autoregressive segment reasoning, the paper's own; the context stands in it as it is (F28)."""
    return _ASR + context


def render_msr(context: str, next_segment: str) -> str:
    """The prompt of middle segment reasoning: both sides of the segment that is missing.

    >>> render_msr("It rained. ", " So we left.")[:47]
    '##Text Material##: It rained. <MASK> So we left'
    """
    before, mask, behind = _MSR
    return f"{before}{context}{mask}{next_segment}{behind}"


def material(prompt: str) -> str:
    """What a prompt of either task shows of the text, without the words that ask; a prompt in other words as it is.

    >>> material(render_msr("It rained. ", " So we left.")), material(render_asr("It rained. "))
    ('It rained. <MASK> So we left.', 'It rained. ')
    """
    for before, behind in ((_ASR, ""), (_MSR[0], _MSR[2])):
        start = prompt.find(before)
        if start >= 0 and prompt.endswith(behind):
            return prompt[start + len(before) : len(prompt) - len(behind)]
    return prompt


def extract_prediction(text: str) -> str | None:
    """What stands between the last complete pair of tags, stripped; None without a pair.

    Behind a closed thought only what follows it is looked at: a draft is no prediction.

    >>> extract_prediction("So <|startofprediction|> It rained. <|endofprediction|>")
    'It rained.'
    """
    text = text[text.rfind(CLOSE_TAG) + len(CLOSE_TAG) :] if CLOSE_TAG in text else text
    start = text.rfind(OPEN_PREDICTION, 0, max(0, text.rfind(CLOSE_PREDICTION)))
    if start < 0:
        return None
    return text[start + len(OPEN_PREDICTION) : text.find(CLOSE_PREDICTION, start)].strip()


def read_prediction(text: str, reference: Reference, config: RLPTConfig, *, finished: bool = True) -> Prediction:
    """The prediction of an output, and whether the judge is to be asked about it (status "ok").

    Args:
        finished: False where sampling ran into its length limit.
    """
    found = extract_prediction(text)
    if found is None:
        if not finished:
            return Prediction(None, "truncated")
        return Prediction(None, "no_close" if OPEN_PREDICTION in text else "no_open")
    shortest = max(config.min_prediction_chars, config.min_prediction_share * _num_said(reference.first))
    if not _num_said(found):
        return Prediction(found, "empty")
    if _num_said(found) < shortest:
        return Prediction(found, "too_short")
    return Prediction(found, "ok" if len(found) <= config.max_prediction_chars else "too_long")


def _num_said(text: str) -> int:
    """Characters of a text but for what makes no prediction longer (F23): marks of sentences, accents, the unseen.

    A sign that is repeated counts once, and a text without a letter or a digit says nothing: "********".
    """
    shown = INVISIBLE.sub("", text)
    seen = "".join(c for c in shown if (c.isprintable() or c.isspace()) and not unicodedata.combining(c))
    if not any(map(str.isalnum, seen)):
        return 0
    blank = chr(0x2800)  # of Braille: printable, and not seen
    return len(re.sub(r"([\W_])\1+", r"\1", re.sub(rf"[\s{_MARKS}{blank}]+", " ", seen)).strip())


def begins(prediction: str, reference: str) -> bool:
    """Whether the words of a prediction are those that a reference begins with; case and marks do not count.

    A last word may be cut off nowhere: "the ca" is no beginning of "the cat". Nothing begins nothing.

    >>> begins("the cat, sat", "The cat sat. On it."), begins("The ca", "The cat"), begins("...", "The cat")
    (True, False, False)
    """
    said, true = words(prediction), words(reference)
    return bool(said) and said == true[: len(said)]


def words(text: str) -> list[str]:
    """The words, numbers and signs of a text as they are compared: case folded, marks and what is not seen left out.

    Signs of a formula stand for themselves: "a = b" and "a - b" differ.
    """
    text = unicodedata.normalize("NFC", with_short_runs(INVISIBLE.sub("", text))).casefold()
    return re.findall(rf"\w+|[^\w\s{_MARKS}]", text)


def weighted(advantages: Tensor, tasks: Sequence[str], msr_weight: float) -> Tensor:
    """Advantages in which a sample of MSR counts lambda: J = E_ASR[r] + lambda * E_MSR[r].

    Differs: on the advantage and not on the reward, where dividing by the group's spread takes any factor away again.

    Args:
        advantages: [B] or [B, T].
        tasks: B names, "asr" or "msr".

    Returns:
        The same shape.

    Raises:
        ValueError: an unknown task, or another number of them.
    """
    if len(tasks) != len(advantages) or not set(tasks) <= set(TASKS):
        raise ValueError(
            f"{len(advantages)} advantages need as many tasks of {', '.join(TASKS)}, got {sorted(set(tasks))}"
        )
    factors = advantages.new_tensor([msr_weight if task == "msr" else 1.0 for task in tasks])
    return advantages * factors.view(-1, *(1,) * (advantages.dim() - 1))


def msr_share(msr_weight: float) -> float:
    """The share of MSR rows in the data that stands for lambda where no advantage can be weighted.

    (1 - p) E_ASR + p E_MSR is proportional to the objective at p = lambda / (1 + lambda).

    >>> msr_share(1.0), msr_share(0.25)
    (0.5, 0.2)
    """
    return msr_weight / (1.0 + msr_weight)
