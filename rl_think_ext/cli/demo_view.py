"""What the demo shows: live progress, a table, thoughts before and after, a picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from transformers import TrainerCallback

KINDS = ("correct", "steps", "echo", "chat", "other")


class LiveProgress(TrainerCallback):
    """One line that moves: the gain against the frozen start and the thought length of the last step."""

    def __init__(self, name: str, steps: int) -> None:
        text = TextColumn(
            "{task.description}  gain {task.fields[gain]:+.2f} nats  thought {task.fields[length]:.0f} tokens"
        )
        self.progress = Progress(text, BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self.task = self.progress.add_task(name, total=steps, gain=0.0, length=0.0)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Show the bar."""
        self.progress.start()

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """Move it."""
        if logs and "rlp/gain_frozen" in logs:
            gain, length = logs["rlp/gain_frozen"] or 0.0, logs["rlp/thought_length"]
            self.progress.update(self.task, completed=state.global_step, gain=float(gain), length=float(length))

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Leave the last state standing."""
        self.progress.stop()


def show(results: list[dict[str, Any]]) -> None:
    """Print the table before → after, the controls and sample thoughts."""
    console = Console()
    table = Table(title="held-out programs: before → after RLP")
    for column in ("seed", "gain [nats, at most 2.30]", "accuracy", "correct steps", "seconds"):
        table.add_column(column, justify="right")
    for result in results:
        old, new = result["before"], result["after"]
        cells = (f"{old['gain']:+.2f} → {new['gain']:+.2f}", f"{old['accuracy']:.2f} → {new['accuracy']:.2f}")
        table.add_row(
            str(result["seed"]),
            *cells,
            f"{old['correct']:.2f} → {new['correct']:.2f}",
            f"{result['train_seconds']:.0f}",
        )
        for kind, name in (("continued", "plain text"), ("worked", "worked steps")):
            if kind in result:
                row = result[kind]
                table.add_row(name, f"{row['gain']:+.2f}", f"{row['accuracy']:.2f}", f"{row['correct']:.2f}", "same")
    console.print(table)
    for sample in results[0]["thoughts"][:4]:
        console.print(f"[bold]{sample['context']}[/bold] … {sample['target']}", highlight=False)
        for when in ("before", "after"):
            console.print(f"  {when:<6} <think>{sample[when]}", highlight=False, markup=False)


def draw(results: list[dict[str, Any]], path: Path) -> None:
    """Gain while training, and what thoughts were before and after."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for result in results:
        steps = [log["step"] for log in result["history"]]
        left.plot(steps, [log.get("gain_frozen", np.nan) for log in result["history"]], label=f"seed {result['seed']}")
    left.axhline(np.log(10), color="grey", linestyle=":", label="ceiling, ln 10")
    left.axhline(0, color="grey", linewidth=0.5)
    left.set(
        xlabel="optimizer step", ylabel="gain against the frozen start [nats]", title="gain of thoughts in training"
    )
    left.legend()
    height = np.arange(len(KINDS))
    for offset, when in ((-0.2, "before"), (0.2, "after")):
        shares = [np.mean([result[when][kind] for result in results]) for kind in KINDS]
        right.barh(height + offset, shares, 0.38, label=when)
    right.set(yticks=height, yticklabels=KINDS, xlabel="share", xlim=(0, 1), title="thoughts on held-out programs")
    right.invert_yaxis()
    right.legend()
    figure.savefig(path, dpi=120)
    plt.close(figure)
