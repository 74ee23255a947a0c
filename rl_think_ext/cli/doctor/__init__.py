"""`rl-think doctor`: is this machine, this environment, this configuration fit to run, and what is to be done?"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import tyro

from rl_think_ext.cli.doctor import (
    config,
    data,
    model,
    output,
    place,
    related,
    reward,
    rlmt,
    rlpt,
    trainers,
    verl,
)
from rl_think_ext.cli.doctor.case import BlockedError, Case, Check, Finding, environment, examine, quiet_libraries
from rl_think_ext.errors import UserError

_RUN_FILE = "Correct the YAML file; `rl-think train --help` lists the settings."
_SETTINGS = "Correct the settings where they are given."
_CHATS = "Build the data anew with `rl-think data rlmt` (rlmt-sft, rlmt-dpo), or choose another `dataset_name:`."
_DATA = "Build the data anew with `rl-think data rlp`, or choose another `dataset_name:`."

# The file comes first, so that its `env:` holds for everything behind it.
FILE = (Check("configuration", "file", config.check_file, "Correct this file, or name another one."),)
MACHINE = (
    Check("this machine", "Python", place.check_python, "Make a new environment."),
    Check("this machine", "versions", place.check_versions, "Install rl_think_ext anew."),
    Check("this machine", "backends", place.check_backends, "Install torch anew: pip install torch"),
    Check("this machine", "compiler", place.check_compiler, "Install a C++ compiler."),
    Check("this machine", "devices", place.check_devices, "Install torch anew: pip install torch"),
    Check("trainers", "trl", trainers.check_trl, "Install the tested one: pip install 'trl~=1.16.0'"),
    Check("trainers", "rewards", trainers.check_rewards, "Install it anew: pip install 'rl_think_ext[trl]'"),
    Check("trainers", "verl", verl.check_verl, "Install it anew: pip install 'rl_think_ext[verl]'"),
    Check("trainers", "plugins", trainers.check_plugins, "Uninstall the plugin."),
    Check("trainers", "data extra", trainers.check_data, "pip install 'rl_think_ext[data]'"),
)
KEYS = Check("configuration", "TRL's keys", config.check_arguments, _RUN_FILE)
MODEL = Check("model", "model", model.check_model, "Correct `model_name_or_path:`.")
RLP = (
    Check("configuration", "RLP settings", config.check_method, _SETTINGS),
    KEYS,
    Check("configuration", "reward_funcs", config.check_other_rewards, "Correct `reward_funcs:`."),
    MODEL,
    Check("model", "tags", model.check_tags, "Choose or prepare a tokenizer that has the tags."),
    Check("model", "stop", model.check_stop, "Without a stop what follows the thought would be trained as thought."),
    Check("data", "dataset", data.check_dataset, _DATA),
    Check("data", "rows", data.check_rows, _DATA),
)
RLMT = (
    Check("configuration", "RLMT settings", config.check_method, _SETTINGS),
    KEYS,
    MODEL,
    Check(
        "model", "template", rlmt.check_template, "Give the policy a chat template: `chat_template_path:` in its SFT."
    ),
    Check("reward model", "reward model", reward.check_reward_model, "Correct `reward_model:`, or take another one."),
    Check("reward model", "server", reward.check_server, "Correct `server:` in `rlmt:`."),
    Check("data", "dataset", data.check_dataset, _CHATS),
    Check("data", "rows", rlmt.check_dataset_rows, _CHATS),
    Check("run", "start", rlmt.check_start, "Correct the key that is named."),
)
_SEGMENTS = "Build the data anew with `rl-think data rlpt`, or choose another `dataset_name:`."
RLPT = (
    Check("configuration", "RLPT settings", config.check_method, _SETTINGS),
    KEYS,
    MODEL,
    Check("model", "tags", rlpt.check_tags, "Give the tokenizer the tags as tokens of their own."),
    Check("judge", "judge", rlpt.check_judge, "Correct `server:`, `judge_model:` or `judge_prompt:` in `rlpt:`."),
    Check("data", "dataset", data.check_dataset, _SEGMENTS),
    Check("data", "rows", rlpt.check_rows, _SEGMENTS),
    Check("run", "start", rlpt.check_start, "Correct the key that is named."),
)
RELATED = (
    Check("configuration", "settings", config.check_method, _SETTINGS),
    KEYS,
    MODEL,
    Check("run", "run", related.check_run, "Correct the key that is named."),
)
RUN = (
    Check("run", "output_dir", output.check_output, "Choose another `output_dir:`, or give yourself the right."),
    Check("run", "disk", output.check_space, "Choose another `output_dir:`."),
    Check("run", "resume", output.check_resume, "Take `resume_from_checkpoint:` out, or name a checkpoint."),
    Check("run", "processes", output.check_processes, "Correct the launcher's keys."),
)


@dataclass(frozen=True)
class DoctorOptions:
    """Is this machine, this environment, this configuration fit to run, and what is to be done?

    what is checked:
      always         Python, versions against the supported and the tested ones,
                     backends, compiler, devices, trainers, rewards, plugins,
                     without a file also what verl knows of ours
      with a file    (of `rl-think train` or `trl grpo`) settings and where each
                     comes from, TRL's keys, model, tags or chat template, stops,
                     dataset, room in its rows, the reward model or the judge and
                     its server's key, output folder, disk, checkpoints, sharding

    Nothing is downloaded, and nothing written but the cache of `datasets`.

    exit status:
      1              something is BROKEN
      0              all is well, or there are warnings, or optional parts are
                     not there, or not checked (a model that is not in the cache)

    examples:
      rl-think doctor                  this machine and environment
      rl-think doctor run.yaml         and all that the run meets at its start
      rl-think doctor --live run.yaml  one row through template, sampler,
                                       splitter and scorer, id by id, and what
                                       a reward model or a judge is shown of it
      rl-think doctor run.yaml --json  for a script
    """

    config: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[CONFIG.yaml]")] = None
    """The YAML file of a run, for `rl-think train` or for `trl grpo`."""
    json: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print JSON instead of a table."""
    trace: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Print the whole trace of what is broken, not its last lines."""
    live: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Sample one output for one row of the run's dataset and show the ids at every boundary, and the scores. Only this
    asks the server of a reward model or a judge."""
    row: int = 0
    """The row of --live, from 0."""


def run(argv: list[str]) -> int:
    """Examine, show, and say by the exit status whether something is broken."""
    options = tyro.cli(DoctorOptions, args=argv, prog="rl-think doctor")
    if options.live and options.config is None:
        raise UserError("--live needs the YAML file of a run: rl-think doctor --live RUN.yaml")
    case = Case(options.config, offline=os.environ.get("HF_HUB_OFFLINE", "0").lower() in ("1", "true", "yes", "on"))
    with environment(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false"), quiet_libraries():
        return _live(case, options) if options.live else _checked(case, options)


def examined(case: Case) -> list[Finding]:
    """What all checks find that the machine, and the file's method, have."""
    if not case.path:
        return examine(case, MACHINE)
    first = examine(case, (*FILE, *MACHINE))
    try:
        kinds = {"rlmt": RLMT, "rlpt": RLPT, **dict.fromkeys(related.METHODS, RELATED)}
        own = kinds.get(config.file(case).method, RLP)
    except BlockedError:
        own = RLP
    return first + examine(case, (*own, *RUN))


def _checked(case: Case, options: DoctorOptions) -> int:
    from rl_think_ext.cli.doctor import view

    findings = examined(case)
    show = view.as_json if options.json else view.table
    show(findings, options.trace)
    return int(is_broken(findings))


def _live(case: Case, options: DoctorOptions) -> int:
    from rl_think_ext.cli.doctor import view

    findings = [finding for finding in examined(case) if finding.state != "ok"]
    if is_broken(findings):
        (view.as_json if options.json else view.table)(findings, options.trace)
        return 1
    look, show = _livings(config.file(case))
    try:
        seen = look(case, options.row)
    except BlockedError as error:
        raise UserError(
            f"--live needs {error}, which is not on this machine: `rl-think doctor {case.path}` says how to get it"
        ) from error
    show(seen, options.json)
    return 0


def _livings(it: config.File) -> tuple[Callable[[Case, int], Any], Callable[[Any, bool], None]]:
    """What takes a row of this kind of run through its parts, and what shows it."""
    if it.method == "rlp":
        from rl_think_ext.cli.doctor import live, live_view

        return live.sample, lambda seen, json: (live_view.as_json if json else live_view.show)(seen)
    if it.method in related.METHODS:
        return related.sample, lambda seen, json: None
    if it.method == "rlpt":
        from rl_think_ext.cli.doctor import live_rlpt

        return live_rlpt.sample, live_rlpt.show
    from rl_think_ext.cli.doctor import live_rlmt, live_rlmt_view, live_supervised

    if it.trainer == "grpo":
        return live_rlmt.sample, live_rlmt_view.show
    return live_supervised.look, live_rlmt_view.show_example


def is_broken(findings: list[Finding]) -> bool:
    """Whether any of them says that something does not work."""
    return any(finding.state == "broken" for finding in findings)
