"""`rl-think train --config run.yaml`: TRL's GRPO keys plus a `rl_think:` block, through ThinkGRPOTrainer."""

from __future__ import annotations

import dataclasses
import os
import textwrap
from collections.abc import Mapping
from typing import Any, get_args, get_type_hints

from rl_think_ext import settings
from rl_think_ext.errors import UserError
from rl_think_ext.methods.rlp import RLPConfig

HELP = """usage: rl-think train --config RUN.yaml [--KEY VALUE ...]

RLP through TRL's GRPOTrainer. RUN.yaml holds TRL's own keys (those of `trl grpo`) and a block with the method:

  model_name_or_path: Qwen/Qwen3-1.7B-Base
  dataset_name: data/rlp            # built by `rl-think data rlp`
  output_dir: out/rlp
  per_device_train_batch_size: 16   # whole groups: a multiple of num_generations over all processes
  num_generations: 16
  max_completion_length: 2048
  rl_think:
    rlp:
      num_target_tokens: 1
      baseline: ema

The run ends with report.html in its output_dir; `log_completions: true` gives it the thoughts, too.
--KEY VALUE on the command line overrides a TRL key. With several processes: torchrun --nproc_per_node N -m
rl_think_ext.cli.train --config RUN.yaml. `resume_from_checkpoint: true` goes on from the last checkpoint.

settings of rl_think: rlp:
"""


def run(argv: list[str]) -> int:
    """Train as the YAML file says; returns the exit status."""
    if not argv or argv[0] in ("-h", "--help"):
        print(HELP + _settings_help())
        return 0
    if "--config" not in argv or argv.index("--config") + 1 >= len(argv):
        raise UserError("say which run: rl-think train --config RUN.yaml")
    at = argv.index("--config")
    path, rest = argv[at + 1], argv[:at] + argv[at + 2 :]
    config = settings.read_file(path)
    rlp = settings.build(RLPConfig, settings.method_block(_block(config, path), "rlp", f"{path}: rl_think"), path)
    _export(config.pop("env", None) or {}, path)
    from rl_think_ext.trl.launch import train

    folder = train(config, rest, rlp, path)
    if folder is not None:
        from rl_think_ext.report import write

        try:
            print(f"report: {write([folder])}")
        except UserError as error:
            # The model is saved: a report that cannot be written does not make the run a failure.
            print(f"no report: {error}")
    return 0


def _block(config: dict[str, Any], path: str) -> Mapping[str, Any]:
    block = config.pop("rl_think", None) or {}
    if not isinstance(block, Mapping):
        raise UserError(f"{path}: `rl_think:` holds {block!r}; expected `rlp:` and its settings below it")
    return block


def _export(env: Any, path: str) -> None:
    if not isinstance(env, Mapping):
        raise UserError(f"{path}: `env:` holds {env!r}; expected `NAME: value` lines")
    os.environ.update({str(key): str(value) for key, value in env.items()})


def _settings_help() -> str:
    """Name, choices, default and text of each setting, out of the dataclass and its own docstring."""
    doc = " ".join((RLPConfig.__doc__ or "").split("Args:", 1)[-1].split())
    fields = dataclasses.fields(RLPConfig)
    places = [doc.index(f"{f.name}:") for f in fields] + [len(doc)]
    hints = get_type_hints(RLPConfig)
    lines = []
    for f, start, end in zip(fields, places, places[1:], strict=False):
        kind = " | ".join(get_args(hints[f.name])) or hints[f.name].__name__
        lines.append(f"  {f.name}: {kind}, default {f.default}")
        text = doc[start + len(f.name) + 1 : end].strip()
        lines += textwrap.wrap(text, 100, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines)


if __name__ == "__main__":
    import sys

    sys.exit(run(sys.argv[1:]))
