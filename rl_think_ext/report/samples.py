"""Samples out of completions tables and offline measurements: only the tables and columns that a page needs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rl_think_ext.errors import UserError
from rl_think_ext.methods.interval import FEW
from rl_think_ext.methods.rlpt import material
from rl_think_ext.report.folder import Folder
from rl_think_ext.report.kinds import RLMT, RLPT
from rl_think_ext.report.text import number

_COLUMNS = ("step", "prompt", "completion", "rlp", "rlmt", "rlpt", "advantage")
_OWN = ("rlp/", "rlmt/", "rlpt/")
_OFFLINE = "id document position context target thought gain accuracy baseline_accuracy baseline unscorable".split()
# Tables of one end of a run, at the most: rows of text are large.
_MOST_TABLES, _MOST_ROWS = 50, 20_000


class Sample(NamedTuple):
    """One output and what it was worth; None is unknown, never 0.

    RLP: `value` is the gain against the frozen start where that was logged, otherwise the reward, and `text` the
    thought. `direct` is the log-prob of the target without the thought, nats: how hard the place is.

    RLMT: `value` is the reward model's score, `text` the answer, or the whole output where none was taken out of it;
    `context` is the prompt. `paid` is the reward that the trainer was given.

    RLPT: `value` is the verdict, 1 or 0, `answer` the prediction, `target` what the judge compared it with.
    """

    id: str
    context: str
    target: str
    text: str
    value: float | None
    accuracy: float | None = None
    baseline_accuracy: float | None = None
    direct: float | None = None
    reason: str | None = None
    step: float | None = None
    frozen: bool = True
    thought: str | None = None
    answer: str | None = None
    status: str | None = None
    paid: float | None = None
    covered: float | None = None

    @property
    def has_form(self) -> float | None:
        """1.0 where an output of RLMT or RLPT has the right form, 0.0 where not."""
        return None if self.status is None else float(self.status == "ok")

    @property
    def thought_length(self) -> float | None:
        """Characters of RLMT's thought, where there is one."""
        return None if self.thought is None else float(len(self.thought))

    @property
    def answer_length(self) -> float | None:
        """Characters of RLMT's answer or RLPT's prediction, where there is one."""
        return None if self.answer is None else float(len(self.answer))

    @property
    def place(self) -> tuple[str, int | None]:
        """Document and position out of the row's id, "doc7:1234"; an id of another form is a document by itself."""
        document, colon, position = self.id.rpartition(":")
        return (document, int(position)) if colon and position.isascii() and position.isdigit() else (self.id, None)


def ends(folder: Folder, least: int) -> tuple[list[Sample], list[Sample]]:
    """The first and the last samples of a run, at least `least` scorable ones from each end where there are so many.

    RLMT's and RLPT's are of at least FEW prompts, too: what a prompt can be worth differs more than what its outputs
    are worth. The two never share a table; of a single table the first is empty.
    """
    half, texts = len(folder.tables) // 2, FEW if folder.kind in (RLMT, RLPT) else 1
    return _take(folder.tables[:half], least, texts), _take(folder.tables[half:][::-1], least, texts)


def last(folder: Folder, least: int) -> list[Sample]:
    """Samples of the last tables, newest first, for the gain along a document."""
    return _take(folder.tables[::-1], least)


def steps_of(samples: Sequence[Sample]) -> str:
    """The steps that samples are of, in words."""
    steps = sorted({sample.step for sample in samples if sample.step is not None})
    if not steps:
        return "one table"
    return f"step {steps[0]:,.0f}" if len(steps) == 1 else f"steps {steps[0]:,.0f} to {steps[-1]:,.0f}"


def _take(tables: Iterable[tuple[int, Path]], least: int, texts: int = 1) -> list[Sample]:
    """The samples of as many tables as it takes for `least` scorable ones of `texts` contexts."""
    found: list[Sample] = []
    for _, path in list(tables)[:_MOST_TABLES]:
        found += table(path)
        known = [sample.context for sample in found if sample.value is not None]
        if (len(known) >= least and len(set(known)) >= texts) or len(found) > _MOST_ROWS:
            break
    return found


def table(path: Path) -> list[Sample]:
    """The samples of one completions table of TRL, of RLP, RLMT or RLPT as its columns say.

    Raises:
        UserError: not a Parquet file, or no completions in it.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        names = pq.read_schema(path).names
        # The prompt repeats the context, and is as long.
        wanted = [n for n in _COLUMNS if n in names and not (n == "prompt" and "rlp/context" in names)]
        rows = pq.read_table(path, columns=wanted + [n for n in names if n.startswith(_OWN)]).to_pylist()
    except (pa.ArrowException, OSError) as error:
        raise UserError(f"{path} is no Parquet file that can be read: {error}; take it away, or restore it") from error
    if "completion" not in names:
        raise UserError(f"{path} has no column `completion`; TRL writes it with `log_completions: true`")
    if "rlmt" in names or "rlmt/status" in names:
        return [_output(row) for row in rows]
    if "rlpt" in names or "rlpt/status" in names:
        return [_prediction(row) for row in rows]
    # With `frozen_gain: false` the column is there, and empty.
    frozen = any(number(row.get("rlp/frozen_gain")) is not None for row in rows)
    gain = "rlp/frozen_gain" if frozen else "rlp/gain" if "rlp/gain" in names else "rlp"
    return [_sample(row, gain) for row in rows]


def _sample(row: Mapping[str, Any], gain: str) -> Sample:
    context = row.get("rlp/context")
    prompt = _text(row.get("prompt"))
    direct = number(row.get("rlp/frozen"))
    return Sample(
        id=str(row.get("rlp/id") or (context if context is not None else prompt)),
        context=prompt if context is None else str(context),
        target=str(row.get("rlp/target") or ""),
        text=_text(row.get("completion")),
        value=number(row.get(gain)),
        accuracy=number(row.get("rlp/accuracy")),
        baseline_accuracy=number(row.get("rlp/baseline_accuracy")),
        direct=number(row.get("rlp/baseline")) if direct is None else direct,
        reason=row.get("rlp/unscorable"),
        step=number(row.get("step")),
        frozen=gain == "rlp/frozen_gain",
    )


def _output(row: Mapping[str, Any]) -> Sample:
    """An output of RLMT; its prompt stands for its row, which the table does not name."""
    prompt = _chat(row.get("prompt"))
    thought, answer, status = (row.get(f"rlmt/{name}") for name in ("thought", "answer", "status"))
    return Sample(
        id=prompt,
        context=prompt,
        target="",
        text=_text(row.get("completion")) if answer is None else str(answer),
        value=number(row.get("rlmt/score")),
        reason=row.get("rlmt/unscorable"),
        step=number(row.get("step")),
        thought=None if thought is None else str(thought),
        answer=None if answer is None else str(answer),
        status=None if status is None else str(status),
        paid=number(row.get("rlmt")),
    )


def _prediction(row: Mapping[str, Any]) -> Sample:
    """An output of RLPT; without tags its text stands for the prediction."""
    prompt, prediction = _chat(row.get("prompt")), row.get("rlpt/prediction")
    return Sample(
        id=str(row.get("rlpt/id") or prompt),
        # The words that ask are the same everywhere, and those of MSR stand behind the text.
        context=material(prompt),
        target=str(row.get("rlpt/reference") or ""),
        text=_text(row.get("completion")) if prediction is None else str(prediction),
        value=number(row.get("rlpt/score")),
        reason=row.get("rlpt/unscorable"),
        step=number(row.get("step")),
        answer=None if prediction is None else str(prediction),
        status=str(row.get("rlpt/status") or "unknown"),
        paid=number(row.get("rlpt")),
        covered=number(row.get("rlpt/covered")),
    )


def _chat(value: Any) -> str:
    """A prompt as text; of a conversation of several messages each with its role."""
    said = [m for m in value if isinstance(m, Mapping)] if isinstance(value, (list, tuple)) else []
    return "\n".join(f"{m.get('role')}: {m.get('content') or ''}" for m in said) if len(said) > 1 else _text(value)


def _text(value: Any) -> str:
    """A prompt or completion as text; a conversation is its contents, one behind the other."""
    if isinstance(value, str):
        return value
    if isinstance(value, (list, tuple)):
        return "\n".join(str(message.get("content") or "") for message in value if isinstance(message, Mapping))
    return "" if value is None else str(value)


def offline(folder: Folder, most_documents: int = 12, most_rows: int = 5000) -> list[Sample]:
    """Samples of the documents with the most positions out of an offline measurement; [] where there is no table."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    path = folder.path / "samples.parquet"
    if not path.is_file():
        return []
    try:
        names = pq.read_schema(path).names
        light = pq.read_table(path, columns=[n for n in ("document", "position") if n in names])
        chosen = _largest(light.to_pylist(), most_documents)
        rows = pq.read_table(
            path, columns=[n for n in _OFFLINE if n in names], filters=pc.field("document").isin(chosen)
        )
    except (pa.ArrowException, OSError, KeyError) as error:
        raise UserError(f"{path} cannot be read: {error}; run `rl-think gain` again") from error
    return [_offline_sample(row) for row in rows.slice(0, most_rows).to_pylist()]


def _largest(rows: Sequence[Mapping[str, Any]], most: int) -> list[Any]:
    places: dict[Any, set[Any]] = {}
    for row in rows:
        places.setdefault(row["document"], set()).add(row.get("position"))
    return sorted(places, key=lambda document: -len(places[document]))[:most]


def _offline_sample(row: Mapping[str, Any]) -> Sample:
    return Sample(
        id=f"{row.get('document')}:{row.get('position')}",
        context=str(row.get("context") or ""),
        target=str(row.get("target") or ""),
        text=_text(row.get("thought")),
        value=number(row.get("gain")),
        accuracy=number(row.get("accuracy")),
        baseline_accuracy=number(row.get("baseline_accuracy")),
        direct=number(row.get("baseline")),
        reason=row.get("unscorable"),
    )
