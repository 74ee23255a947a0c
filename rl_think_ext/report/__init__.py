"""The report: one self-contained HTML file out of a run's folder, or of two side by side.

It reads what TRL and the run itself left behind and nothing else: no tracker, no model, no network.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rl_think_ext.errors import UserError

FILE = "report.html"


def write(folders: Sequence[Path], output: Path | None = None) -> Path:
    """Write the report of one or two folders and return its path; the same folders give the same bytes.

    Args:
        folders: Output folders of `rl-think train`, `trl grpo` or `rl-think gain`.
        output: The file, or a folder for report.html; None: in the folder itself, for two in the current one.

    Raises:
        UserError: not one or two folders, one without a run, a broken file, or an output that cannot be written.
    """
    from rl_think_ext.report.folder import read
    from rl_think_ext.report.page import render

    if not 1 <= len(folders) <= 2:
        raise UserError(f"a report shows one folder or two side by side, got {len(folders)}")
    found = [read(Path(folder)) for folder in folders]
    target = output or (found[0].path / FILE if len(found) == 1 else Path(FILE))
    target = target / FILE if target.is_dir() else target
    page = render(found)
    partial = target.with_name(f".{target.name}.partial")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(page, encoding="utf-8", errors="replace", newline="\n")
        partial.replace(target)
    except OSError as error:
        raise UserError(f"cannot write {target}: {error.strerror}; choose another --output") from error
    return target
