"""`rl-think judge check`: does a judge agree with labelled pairs, can it be talked round, is it fast enough?"""

from __future__ import annotations

from rl_think_ext.errors import UserError

USAGE = """\
usage: rl-think judge check [OPTIONS]

commands:
  check  ask a judge about labelled pairs: agreement, repeatability, canaries, latency, tokens per second

for example:
  rl-think judge check --config run.yaml --batch-size 512 --step-seconds 120
  rl-think judge check --server http://localhost:8000 --judge-model Qwen/Qwen3-8B --pairs labelled.jsonl

`rl-think judge check --help` explains every option."""


def run(argv: list[str]) -> int:
    """Ask as the flags say and print what was found; returns the exit status."""
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
        return 0
    if argv[0] != "check":
        raise UserError(f"there is no command `judge {argv[0]}`; there is `judge check`")
    import tyro

    from rl_think_ext.cli.pairs import gathered
    from rl_think_ext.offline.judge_check import JudgeCheckConfig, run_check

    config = tyro.cli(JudgeCheckConfig, args=gathered(argv[1:]), prog="rl-think judge check")
    from tqdm import tqdm

    from rl_think_ext.offline.judge_show import show_check

    with tqdm(desc="asking", unit=" answers", disable=None) as bar:

        def told(done: int, total: int) -> None:
            bar.total, bar.n = total, done
            bar.update(0)

        found = run_check(config, told)
    show_check(found)
    if config.output is not None:
        print(f"details in {config.output}")
    return int(found["outcomes"]["no verdict"] == found["num_pairs"])
