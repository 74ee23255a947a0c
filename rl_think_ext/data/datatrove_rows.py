"""The last step of RLPT's pipeline under datatrove: clean texts into rows, the same as `rl-think data rlpt` makes.

    stages[-1].steps[-1:] = rows_steps(RLPTDataConfig(input="raw", output="data/rlpt"))

in place of the writer of datatrove_steps.pipeline: each task then writes rows, and the folder is read by
datasets.load_dataset("parquet", data_dir="data/rlpt").
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from datatrove.data import Document
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.writers import ParquetWriter
from datatrove.utils.typeshelper import StatHints

from rl_think_ext.data.rlpt import RLPTDataConfig
from rl_think_ext.data.rlpt_parts import text_of
from rl_think_ext.data.rlpt_steps import NO_TARGET, Steps
from rl_think_ext.data.segment_rows import schema
from rl_think_ext.data.sources import Document as Text


class RowsStep(PipelineStep):
    """Each text into its rows; what goes is counted by reason in the stage's statistics.

    Args:
        config: The builder's settings; of its steps the tags and the segments are taken here, whatever filters it
            names, and `test_share` is not looked at.
    """

    type = "✂️ - FORMAT"
    name = "RLPT rows"

    def __init__(self, config: RLPTDataConfig) -> None:
        super().__init__()
        self.config = config
        self._steps: Steps | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_steps": None}  # each task makes its own

    def run(self, data: Iterable[Document], rank: int = 0, world_size: int = 1) -> Iterable[Document]:
        """One document for each row: its prompt as the text, the row as the metadata."""
        self._steps = self._steps or Steps(self.config, None)
        for document in data:
            self.stat_update(StatHints.total)
            source = Path(str(document.metadata.get("file_path") or "datatrove")).name
            with self.track_time():
                rows = list(self._rows(Text(document.id, document.text, source)))
            for row in rows:
                yield Document(text=text_of(row["prompt"]), id=row["id"], metadata=row)

    def _rows(self, document: Text) -> Iterable[Any]:
        assert self._steps is not None
        if reason := self._steps.tag_in(document.text):
            self.stat_update(f"dropped_{reason}")
            return
        samples = self._steps.samples
        samples.left_out.clear()
        number = 0
        for row in samples(document):
            number += 1
            yield row
        for reason, count in samples.left_out.items():
            self.stat_update(f"positions_{reason}", value=count)
        self.stat_update("rows", value=number)
        if not number:
            self.stat_update(f"dropped_{NO_TARGET}")


def rows_steps(config: RLPTDataConfig) -> list[PipelineStep]:
    """The rows, and what writes them into `config.output`, a Parquet file for each task."""
    return [RowsStep(config), ParquetWriter(config.output, adapter=_row, schema=schema(config.form))]


def _row(writer: ParquetWriter, document: Document) -> dict[str, Any]:
    return document.metadata
