"""`rl-think`: one file a command; this top level reads the first word, prints help and imports nothing else."""

from __future__ import annotations

import sys
from importlib import import_module

COMMANDS = {
    "demo": "teach the embedded model to think with RLP, on this machine, in minutes",
    "train": "RLP, RLMT or RLPT through TRL's trainers from one YAML file (TRL's keys plus a `rl_think:` block)",
    "data": "build data out of texts and chats: contexts and targets, prompts, segments, warm start, pairs",
    "gain": "no training: how much does thinking help this model on this text? Select the positions where it does",
    "report": "one HTML file out of a run's folder, or of two side by side",
    "replay": "score a run's stored completions again, with other settings or another model",
    "judge": "does RLPT's judge agree with labelled pairs, can it be talked round, is it fast enough for a step?",
    "doctor": "is this machine, this environment, this configuration fit to run? What is wrong, and what to do",
}


def usage() -> str:
    """What `rl-think --help` prints."""
    width = max(map(len, COMMANDS))
    rows = "\n".join(f"  {name:<{width}}  {text}" for name, text in COMMANDS.items())
    return (
        "usage: rl-think COMMAND [OPTIONS]\n\nTeach language models to think with RL.\n\n"
        f"commands:\n{rows}\n\n`rl-think COMMAND --help` explains one of them."
    )


def main(argv: list[str] | None = None) -> int:
    """Entry point of the console script; returns the exit status."""
    args = sys.argv[1:] if argv is None else argv
    if not args or args[0] in ("-h", "--help", "help"):
        print(usage())
        return 0
    if args[0] in ("-V", "--version"):
        from rl_think_ext import __version__

        print(__version__)
        return 0
    if args[0] not in COMMANDS:
        from difflib import get_close_matches

        near = get_close_matches(args[0], COMMANDS, 1)
        hint = f" Did you mean `{near[0]}`?" if near else ""
        print(f"rl-think: there is no command `{args[0]}`.{hint}\n\n{usage()}", file=sys.stderr)
        return 2
    from rl_think_ext.errors import UserError

    try:
        return int(import_module(f"rl_think_ext.cli.{args[0]}").run(args[1:]) or 0)
    except UserError as error:
        print(f"rl-think {args[0]}: {error}", file=sys.stderr)
        return 1
