"""`rl-think gain`: no training; how much does thinking help this model on this text, and where?"""

from __future__ import annotations


def run(argv: list[str]) -> int:
    """Measure as the flags say, print the numbers and the verdict; returns the exit status."""
    import tyro

    from rl_think_ext.cli.pairs import gathered
    from rl_think_ext.offline.config import GainConfig

    config = tyro.cli(GainConfig, args=gathered(argv), prog="rl-think gain")
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    from rl_think_ext.offline.gain import run_gain
    from rl_think_ext.offline.show import show_gain

    show_gain(run_gain(config))
    print(f"details in {config.output}: gain.json, samples.parquet, gain.png")
    if config.select:
        print(f"the positions that carry a signal are in {config.select}: `dataset_name: {config.select}`")
    return 0
