"""One row of RLPT as a training step treats it: asked, sampled, its prediction taken out and judged."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rl_think_ext.cli.doctor.boundary import Part, Remark
from rl_think_ext.cli.doctor.case import Case
from rl_think_ext.cli.doctor.config import arguments, file, method
from rl_think_ext.cli.doctor.live import row_of
from rl_think_ext.cli.doctor.live_rlmt import generated, parts_of, sampler_of
from rl_think_ext.cli.doctor.live_rlmt_view import block
from rl_think_ext.cli.doctor.live_view import as_json, part_lines, wrapped
from rl_think_ext.cli.doctor.model import stops, tokenizer
from rl_think_ext.cli.doctor.rlpt import judge, prompt_of, where_of
from rl_think_ext.template import CLOSE_PREDICTION, CLOSE_TAG, OPEN_PREDICTION, OPEN_TAG

# Characters of reasoning whose words in a question are no chance.
_TELLING = 16
_TAGS = (
    ("open tag", OPEN_TAG),
    ("close tag", CLOSE_TAG),
    ("opens", OPEN_PREDICTION),
    ("closes", CLOSE_PREDICTION),
)


@dataclass(frozen=True)
class LiveRLPT:
    """What became of one row.

    `question` is what the judge is asked, None where it is not asked; its boundary is drawn anew for every question.
    `reference` is what the judge compares with; `score` is None, with `reason`, where there is no verdict.
    """

    row: str
    source: str
    sampler: str
    task: str
    parts: tuple[Part, ...]
    status: str
    num_sampled: int
    prediction: str | None
    reference: str
    judge: str
    question: str | None
    score: float | None
    reason: str | None
    remarks: tuple[Remark, ...]


def sample(case: Case, number: int) -> LiveRLPT:
    """Treat a row of the run's dataset as the first training step would; a judge's server is asked about it.

    Raises:
        UserError: no such row, or a row, model or server that cannot be used.
    """
    from rl_think_ext.data.segment_rows import segment_of
    from rl_think_ext.scoring.outputs import reader
    from rl_think_ext.scoring.prediction import PredictionScorer

    args, config = arguments(case).args, method(case)[0]
    row, coder, ends = dict(row_of(case, number)), tokenizer(case), stops(case)
    where = where_of(row, number)
    segment, prompt = segment_of(row, where), prompt_of(case, row, where)
    ids = generated(case, prompt, ends, args.seed + number)
    output = reader(coder, ends, args.max_completion_length)(ids)
    found = PredictionScorer(config, judge(case))([segment], [output])
    prediction, score = found.predictions[0], found.scores[0]
    asked = bool(found.column("judged")[0])
    shown = _question(case, segment, prediction) if asked and config.judge == "server" else None
    return LiveRLPT(
        row=where,
        source=f"{arguments(case).script.dataset_name}, under {file(case).command}",
        sampler=sampler_of(args, ends),
        task=segment.task,
        parts=tuple(parts_of(coder, prompt, ids, ends, _TAGS)),
        status=prediction.status,
        num_sampled=len(ids),
        prediction=prediction.text,
        reference=segment.reference.shown(config.reward),
        judge=config.judge_model if config.judge == "server" else "the rule",
        question=shown,
        score=score.value,
        reason=score.reason,
        remarks=tuple(_remarks(asked, prediction, output.text, shown, found)),
    )


def _question(case: Case, segment: Any, prediction: Any) -> str:
    """The judge's question about this prediction, behind a boundary of its own."""
    from rl_think_ext.scoring.judge_question import question

    config = method(case)[0]
    return question(segment.reference.shown(config.reward), prediction.text, config, judge(case).template)


def _remarks(asked: bool, prediction: Any, text: str, shown: str | None, found: Any) -> Iterator[Remark]:
    """Sentences on what was asked and what not; each is looked up in the text, not supposed."""
    if not asked:
        yield Remark(True, f"The judge was not asked: the output is {prediction.status}.")
        return
    before = text.partition(OPEN_PREDICTION)[0].strip()
    if shown is not None and len(before) >= _TELLING and before in shown:
        yield Remark(True, "The words of the reasoning stand in the judge's question: read the prediction.")
    elif shown is not None:
        yield Remark(False, "The reasoning and the context are not in the question: reference and prediction alone.")
    wrong = found.stats.get("canary_wrong_accepted", 0.0)
    right = found.stats.get("canary_right_accepted", 1.0)
    if wrong > 0:
        yield Remark(True, f"The judge accepted {wrong:.0%} of known-wrong pairs.")
    if right < 1:
        yield Remark(True, f"The judge accepted only {right:.0%} of known-right pairs.")
    if bool(found.column("copied")[0] == 1):
        yield Remark(True, "The prediction stands word for word in what the prompt shows.")


def show(seen: LiveRLPT, json: bool = False) -> None:
    """Print the ids at the boundaries, prediction and reference, what the judge is shown, and the verdict."""
    if json:
        as_json(seen)
        return
    print(wrapped(f"{seen.row} ({seen.task}) of {seen.source}"))
    print(wrapped(f"sampled: {seen.sampler}"))
    print("\nid:token of prompt and output, apart at every tag (␣ is a space)")
    for part in seen.parts:
        print(part_lines(part))
    print(f"\noutput: {seen.status}; {seen.num_sampled} tokens were sampled and would be trained")
    print(block("prediction", seen.prediction))
    print(block("reference", seen.reference))
    if seen.question is not None:
        print(f"\n{wrapped(f'what the judge {seen.judge} is asked (the mark is drawn anew for every question)')}")
        print(block("", seen.question))
    for remark in seen.remarks:
        print(wrapped(remark.text, "! " if remark.moves else "  "))
    print(f"\n{wrapped(_verdict(seen))}")


def _verdict(seen: LiveRLPT) -> str:
    if seen.score is None:
        return f"no verdict of {seen.judge}: {seen.reason}"
    return f"score: {seen.score:.0f}, by {seen.judge}" if seen.status == "ok" else f"score: {seen.score:.0f}"
