"""`rl-think replay`: stored completions of a run, scored again with other settings or another model."""

from __future__ import annotations


def run(argv: list[str]) -> int:
    """Score again as the flags say, print old against new; returns the exit status."""
    import tyro

    from rl_think_ext.cli.pairs import gathered
    from rl_think_ext.offline.replay import ReplayConfig, run_replay

    config = tyro.cli(ReplayConfig, args=gathered(argv), prog="rl-think replay")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    from rl_think_ext.offline.show import show_replay

    found = run_replay(config)
    show_replay(found)
    print(f"details in {found['folder']}: replay.json, replay.parquet")
    return 0
