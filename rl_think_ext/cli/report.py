"""`rl-think report DIR [DIR2]`: one HTML file out of a run's folder, or of two side by side."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rl_think_ext.errors import UserError

EXAMPLES = """One self-contained HTML file: alarms, gain and accuracy (RLMT: score, form and lengths) before and after
with intervals, curves, the gain along the text, thoughts and outputs before and after, settings, versions, data. Of
two folders: side by side.

for example: rl-think report out/rlp
             rl-think report out/rlp out/rlp-lower-rate --output compare.html
             rl-think report out/gain        # a folder of rl-think gain

`rl-think train` and `rl-think demo` write it by themselves. Thoughts and texts need `log_completions: true`."""


@dataclass(frozen=True)
class ReportConfig:
    """What to show, and where to put it."""

    folders: tuple[Path, ...]
    """One or two output folders of `rl-think train`, `trl grpo` or `rl-think gain`."""
    output: Path | None = None
    """The HTML file; left out: report.html in the folder, or in the current one for two."""
    open: bool = False
    """Open the page in the browser."""


def run(argv: list[str]) -> int:
    """Write the report and print its path; returns the exit status."""
    import tyro

    config = tyro.cli(
        tyro.conf.configure(tyro.conf.PositionalRequiredArgs)(ReportConfig),
        args=argv,
        prog="rl-think report",
        description=EXAMPLES,
    )
    if not 1 <= len(config.folders) <= 2:
        raise UserError(f"name one run's folder, or two: rl-think report DIR [DIR2]; got {len(config.folders)}")
    try:
        from rl_think_ext.report import write

        path = write(config.folders, config.output)
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is not installed: pip install 'rl_think_ext[data]'") from error
    print(path)
    if config.open:
        import webbrowser

        webbrowser.open(path.resolve().as_uri())
    return 0
