"""`rl-think train --config run.yaml`: TRL's keys plus a `rl_think:` block, through the trainer of its method."""

from __future__ import annotations

import dataclasses
import os
import re
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args, get_type_hints

from rl_think_ext import settings
from rl_think_ext.errors import UserError
from rl_think_ext.methods.rlmt import RLMTConfig
from rl_think_ext.methods.rlp import RLPConfig
from rl_think_ext.methods.rlpr import RLPRConfig
from rl_think_ext.methods.rlpt import RLPTConfig
from rl_think_ext.methods.rpt import RPTConfig
from rl_think_ext.methods.verifree import VeriFreeConfig

HELP = """usage: rl-think train --config RUN.yaml [--KEY VALUE ...]

One run through TRL. RUN.yaml holds TRL's own keys (those of `trl grpo`, `trl sft`, `trl dpo`) and a block with the
method, rlp, rlmt or rlpt:

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

or, in place of that block:

  rl_think:
    trainer: grpo                   # or sft: the warm start; dpo: preference pairs
    rlmt:
      style: think                  # none: the control without a thought
      reward_model: Skywork/Skywork-Reward-Llama-3.1-8B-v0.2
      server: http://localhost:8000 # vllm serve MODEL --runner pooling

or, on a dataset of `rl-think data rlpt`:

  rl_think:
    rlpt:
      reward: prefix                # or strict
      msr_weight: 0.5               # what a sample of MSR counts beside one of ASR
      server: http://localhost:8000 # vllm serve JUDGE
      judge_model: JUDGE            # judge: rule, in place of both, needs no server

The related rewards rpt, verifree and rlpr (docs/related.md) have blocks of their own in the same place.

The run ends with report.html in its output_dir; `log_completions: true` gives it the thoughts, too.
--KEY VALUE on the command line overrides a TRL key. With several processes: torchrun --nproc_per_node N -m
rl_think_ext.cli.train --config RUN.yaml. `resume_from_checkpoint: true` goes on from the last checkpoint.
"""
METHODS: dict[str, Any] = {"rlp": RLPConfig, "rlmt": RLMTConfig, "rlpt": RLPTConfig}
METHODS |= {"rpt": RPTConfig, "verifree": VeriFreeConfig, "rlpr": RLPRConfig}
TRAINERS = ("grpo", "sft", "dpo")


def run(argv: list[str]) -> int:
    """Train as the YAML file says; returns the exit status."""
    if not argv or argv[0] in ("-h", "--help"):
        print(HELP + "".join(_settings_help(name, kind) for name, kind in METHODS.items()))
        return 0
    if "--config" not in argv or argv.index("--config") + 1 >= len(argv):
        raise UserError("say which run: rl-think train --config RUN.yaml")
    at = argv.index("--config")
    path, rest = argv[at + 1], argv[:at] + argv[at + 2 :]
    config = settings.read_file(path)
    kind, method = method_of(config.pop("rl_think", None) or {}, path)
    _export(config.pop("env", None) or {}, path)
    folder = _train(config, rest, kind, method, path)
    if folder is not None:
        from rl_think_ext.report import write

        try:
            print(f"report: {write([folder])}")
        except UserError as error:
            # The model is saved: a report that cannot be written does not make the run a failure.
            print(f"no report: {error}")
    return 0


def _train(config: dict[str, Any], rest: list[str], kind: str, method: Any, path: str) -> Path | None:
    if isinstance(method, RLPTConfig):
        from rl_think_ext.trl import rlpt_launch

        return rlpt_launch.train(config, rest, method, path)
    if isinstance(method, RPTConfig):
        from rl_think_ext.trl import rpt_launch

        return rpt_launch.train(config, rest, method, path)
    if isinstance(method, (RLPConfig, VeriFreeConfig, RLPRConfig)):
        from rl_think_ext.trl import launch

        return launch.train(config, rest, method, path)
    from rl_think_ext.trl import rlmt_launch

    return rlmt_launch.train(config, rest, kind, method, path)  # type: ignore[arg-type]


def method_of(block: Any, path: str) -> tuple[str, Any]:
    """The trainer and the method's settings out of a file's `rl_think:` block; without one it is RLP as it stands.

    Raises:
        UserError: no mapping, two methods, a trainer that the method has not, or settings that are wrong.
    """
    if not isinstance(block, Mapping):
        names = ", ".join(METHODS)
        raise UserError(f"{path}: `rl_think:` holds {block!r}; expected one of {names} and its settings below it")
    where, inner = f"{path}: rl_think", dict(block)
    kind = inner.pop("trainer", "grpo")
    settings.check_keys(inner, [*METHODS, "trainer"], where)
    if len(inner) > 1:
        raise UserError(f"{where}: {' and '.join(inner)} are given; a run has one method")
    name = next(iter(inner), "rlp")
    known = TRAINERS if name == "rlmt" else TRAINERS[:1]
    if name == "rlpt" and kind == "sft":
        raise UserError(
            f"{where}: RLPT's cold start is plain fine-tuning on instructions: use `trl sft` with TRL's keys alone, "
            "and take what it saves as `model_name_or_path:` here"
        )
    if kind not in known:
        raise UserError(f"{where}: `trainer` is one of {', '.join(known)} for {name}, got {kind!r}")
    return kind, settings.build(METHODS[name], settings.method_block(inner, name, where), path)


def _export(env: Any, path: str) -> None:
    if not isinstance(env, Mapping):
        raise UserError(f"{path}: `env:` holds {env!r}; expected `NAME: value` lines")
    os.environ.update({str(key): str(value) for key, value in env.items()})


def _settings_help(method: str, kind: Any) -> str:
    """Name, choices, default and text of each setting, out of the dataclass and its own docstring."""
    # One entry an argument, as docstrings write them: eight blanks, the name, a colon.
    entries = re.split(r"^ {8}(\w+): ", (kind.__doc__ or "").split("Args:", 1)[-1], flags=re.MULTILINE)[1:]
    texts = {name: " ".join(text.split()) for name, text in zip(entries[::2], entries[1::2], strict=True)}
    hints = get_type_hints(kind)
    lines = [f"\nsettings of rl_think: {method}:"]
    for f in dataclasses.fields(kind):
        hint = hints[f.name]
        choices = " | ".join(getattr(one, "__name__", str(one)).replace("NoneType", "null") for one in get_args(hint))
        lines.append(f"  {f.name}: {choices or hint.__name__}, default {'null' if f.default is None else f.default!s}")
        lines += textwrap.wrap(texts[f.name], 100, initial_indent=" " * 6, subsequent_indent=" " * 6)
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    import sys

    sys.exit(run(sys.argv[1:]))
