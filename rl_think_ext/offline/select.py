"""The positions where some thought helps and some does not; the rest is left out, counted by reason.

An advantage is a difference to the group's mean (eq. 7 of RLP), so a group in which every thought hurts has one too: it
rewards the least harm, which is little or misleading signal, and one in which all help rewards differences among good
thoughts. Positions cut at random are mostly of the first kind, and there are enough of them to drown the rest.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rl_think_ext import __version__
from rl_think_ext.data.card import Card, ContentHash, versions, whole_folder
from rl_think_ext.errors import UserError
from rl_think_ext.offline.rows import Dataset, Rows, document_of
from rl_think_ext.offline.summary import Measured

# A factor of 1.65 in the target's probability. Any thought at all moves a prediction a little: in the
# miniature task the best of eight thoughts at a random cut gains up to 0.2, and what is kept hardly changes from 0.3
# to 1.5.
MIN_GAIN = 0.5
KEPT = "kept"
_NONE, _ALL, _ALIKE, _UNSCORABLE = (
    "no thought helps",
    "every thought helps",
    "the thoughts hardly differ",
    "no thought can be scored",
)
REASONS = (KEPT, _NONE, _ALL, _ALIKE, _UNSCORABLE)


def judge(gains: Sequence[float], min_gain: float) -> str:
    """What a position is: kept, or why it is left out; a thought helps when its gain is above `min_gain` nats.

    Gains on both sides of the threshold that lie no further apart than the threshold itself are no signal either.

    >>> [judge(gains, 0.5) for gains in ([1.0, 0.1], [0.2, 0.1], [1.0, 0.6])]
    ['kept', 'no thought helps', 'every thought helps']
    >>> judge([0.51, 0.49], 0.5), judge([], 0.5)
    ('the thoughts hardly differ', 'no thought can be scored')
    """
    if not gains:
        return _UNSCORABLE
    if max(gains) <= min_gain:
        return _NONE
    if min(gains) > min_gain:
        return _ALL
    return KEPT if max(gains) - min(gains) > min_gain else _ALIKE


@dataclass(frozen=True)
class Selection:
    """Which rows are kept, the threshold that was used, and how many positions there are by reason."""

    rows: Sequence[int]
    min_gain: float
    counts: Mapping[str, int]

    @classmethod
    def of(cls, measured: Measured, min_gain: float = MIN_GAIN) -> Selection:
        """Judge every position; the threshold is never below the noise of the scores themselves."""
        threshold = max(min_gain, measured.noise)
        found = {p.index: judge(measured.gains.get(p.index, ()), threshold) for p in measured.positions}
        counts = Counter(found.values())
        kept = [index for index, reason in found.items() if reason == KEPT]
        return cls(kept, threshold, {reason: counts[reason] for reason in REASONS})

    def as_dict(self) -> dict[str, Any]:
        """For gain.json."""
        return {"min_gain": self.min_gain, **self.counts}


class SelectedCard(Card):
    """The card of a selected dataset; its text says how it was made."""

    def readme(self) -> str:
        """The dataset card, naming the command that made it."""
        return re.sub(r"by `rl-think data \w+`", "by `rl-think gain --select`", super().readme(), count=1)


def write(
    output: str,
    dataset: Dataset,
    split: str,
    selection: Selection,
    settings: Mapping[str, Any],
    *,
    overwrite: bool = False,
) -> Card:
    """Write the kept rows as train.parquet, unchanged, with a card; other splits of the data go along as they are.

    Raises:
        UserError: no row is left, or the folder cannot be written.
    """
    import pyarrow.parquet as pq

    rows = dataset.rows(split)
    if not selection.rows:
        raise UserError(_nothing_left(selection))
    made = {"train": Rows(rows.table.take(list(selection.rows)))}
    made |= {name: other for name, other in dataset.splits.items() if name not in ("train", split)}
    digest = ContentHash()
    for name, kept in made.items():
        for row in kept:
            digest.add(name, row)
    with whole_folder(os.fspath(output), overwrite=overwrite) as folder:
        for name, kept in made.items():
            pq.write_table(kept.table, folder / f"{name}.parquet", row_group_size=512)
        card = _card(dataset, split, selection, settings, made, digest.hexdigest())
        card.write(folder)
    return card


def _card(
    dataset: Dataset,
    split: str,
    selection: Selection,
    settings: Mapping[str, Any],
    made: Mapping[str, Rows],
    content_hash: str,
) -> Card:
    before = dataset.card
    dropped = {reason: count for reason, count in selection.counts.items() if reason != KEPT and count}
    unmeasured = len(dataset.rows(split)) - sum(selection.counts.values())
    if unmeasured:
        dropped["not measured"] = unmeasured
    return SelectedCard(
        method="rlp",
        source=dataset.name,
        seed=before.seed if before else int(settings.get("seed", 0)),
        num_documents=len({document_of(str(row.get("id")), row) for row in made["train"]}),
        num_rows={name: len(rows) for name, rows in made.items()},
        content_hash=content_hash,
        skipped_documents=dict(before.skipped_documents) if before else {},
        skipped_positions={**(before.skipped_positions if before else {}), **dropped},
        num_cut_contexts=before.num_cut_contexts if before else 0,
        settings={
            **(before.settings if before else {}),
            "selected": {**settings, "min_gain": selection.min_gain, "from_split": split},
            "selected_from_hash": before.content_hash if before else None,
        },
        tokenizer=dict(before.tokenizer) if before and before.tokenizer else None,
        versions={"rl_think_ext": __version__, **versions("torch", "transformers", "pyarrow")},
    )


def _nothing_left(selection: Selection) -> str:
    listed = ", ".join(f"{reason} {count}" for reason, count in selection.counts.items() if reason != KEPT)
    return (
        f"--select: no position carries a signal above {selection.min_gain:g} nats ({listed}): more thoughts per "
        "position (--num-thoughts), a smaller --min-gain or another text may give some"
    )
