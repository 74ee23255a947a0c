"""What a run writes: its output folder, the disk, checkpoints to resume from; and the processes it runs in."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from rl_think_ext.cli.doctor.case import Case, Finding
from rl_think_ext.cli.doctor.config import arguments, file, method
from rl_think_ext.cli.doctor.model import num_weights
from rl_think_ext.errors import UserError


def check_output(case: Case) -> Iterator[Finding]:
    """The output folder can be written; nothing is left there, not even the folder."""
    wanted = Path(arguments(case).args.output_dir)
    there = nearest(wanted)
    try:
        with tempfile.TemporaryFile(dir=there):
            pass
    except OSError as error:
        raise UserError(f"cannot write to {wanted}: {error.strerror} at {there}") from error
    yield Finding("ok", "output_dir", f"{wanted} can be written.")


def nearest(place: Path) -> Path:
    """The folder itself, or the nearest one above it that is there."""
    return next(path for path in (place.absolute(), *place.absolute().parents) if path.exists())


def check_space(case: Case) -> Iterator[Finding]:
    """Room for the checkpoints that are kept: weights, two moments of the optimizer, the averages."""
    args = arguments(case).args
    there = nearest(Path(args.output_dir))
    free, numbers = shutil.disk_usage(there).free, num_weights(case)
    copies = 3 + len(averages(case))
    kept = 0 if str(getattr(args.save_strategy, "value", args.save_strategy)) == "no" else args.save_total_limit or 2
    # float32 throughout; with an adapter only its few weights are written.
    needed = 4 * numbers * (1 + kept * copies)
    text = f"{_size(free)} free at {there}; the model and {kept} checkpoints take up to {_size(needed)}."
    if free < needed:
        todo = "Make room, lower `save_total_limit`, or choose another output_dir."
        yield Finding("warn" if arguments(case).model.use_peft else "broken", "disk", f"Only {text}", todo)
    else:
        yield Finding("ok", "disk", text)


def _size(number: float) -> str:
    for unit in ("B", "kB", "MB"):
        if number < 1000:
            return f"{number:.0f} {unit}"
        number /= 1000
    return f"{number:,.1f} GB"


def averages(case: Case) -> Mapping[str, float]:
    """The running averages of the weights that the method keeps in its checkpoints: RLMT keeps none."""
    found: Mapping[str, float] = getattr(method(case)[0], "averages", {})
    return found


def check_resume(case: Case) -> Iterator[Finding]:
    """Which checkpoint the run would go on from, and whether it holds what RLP needs (F18, F19)."""
    args = arguments(case).args
    given = str(args.resume_from_checkpoint or "false")
    there = checkpoints(Path(args.output_dir))
    if given.lower() == "false":
        if there:
            found = f"{args.output_dir} already holds {there[0].name}, and this run would begin anew beside it."
            yield Finding("warn", "resume", found, "Say `resume_from_checkpoint: true`, or choose another output_dir.")
        else:
            yield Finding("ok", "resume", "A new run: nothing to resume, nothing in its way.")
        return
    asked = there if given.lower() == "true" else [Path(given)]
    if not asked:
        raise UserError(f"resume_from_checkpoint: there is no checkpoint in {args.output_dir}")
    faults = [(path, fault(path, averages(case))) for path in asked]
    whole = [path for path, wrong in faults if wrong is None]
    for _, wrong in faults[: faults.index((whole[0], None)) if whole else None]:
        # rl-think train passes a broken checkpoint by; TRL's own command takes the newest, whatever is in it.
        passed_by = bool(whole) and not file(case).stock
        todo = f"The run goes on from {whole[0].name}." if passed_by else "Resume from another one, or start a new run."
        yield Finding("warn" if passed_by else "broken", "resume", wrong or "", todo)
    if whole and whole[0] == asked[0]:
        yield Finding("ok", "resume", f"{whole[0].name} is whole.")


def checkpoints(place: Path) -> list[Path]:
    """Checkpoints of a run, newest first."""
    found = [path for path in place.glob("checkpoint-*") if path.name[11:].isdigit()]
    return sorted(found, key=lambda path: -int(path.name[11:]))


def fault(checkpoint: Path, averages: Mapping[str, float]) -> str | None:
    """What a checkpoint lacks, as a sentence, or None; the weights themselves are compared when training resumes."""
    if not checkpoint.is_dir():
        return f"There is no checkpoint {checkpoint}."
    if not (checkpoint / "trainer_state.json").is_file():
        return f"No trainer_state.json in {checkpoint.name}: the run ended while it was written."
    words = {"ema": "EMA file", "frozen": "file of the frozen start"}
    for name, decay in averages.items():
        for ending in ("safetensors", "json"):
            if not (checkpoint / "rl_think" / f"{name}.{ending}").is_file():
                return f"No {words.get(name, name)} in {checkpoint.name}: rl_think/{name}.{ending} is missing."
        path = checkpoint / "rl_think" / f"{name}.json"
        try:
            about = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            return f"{path} cannot be read as JSON: {error}."
        if not isinstance(about, dict):
            return f"{path} holds a {type(about).__name__}, expected an object."
        if about.get("decay") != decay:
            return f"{checkpoint.name} averaged {name} with decay {about.get('decay')}, the settings say {decay}."
    return None


def check_processes(case: Case) -> Iterator[Finding]:
    """Several processes are fine, shards of the weights are not; as far as the file and the environment say it."""
    it, args = file(case), arguments(case).args
    count = os.environ.get("WORLD_SIZE") or it.keys.get("num_processes") or 1
    if kind := sharding(it.keys):
        found = f"{kind} splits the weights over processes: scoring and averaging over shards is not supported."
        yield Finding("broken", "processes", found, "Use DDP, ZeRO-1 or ZeRO-2.")
    elif int(count) > 1 and args.use_cpu and args.resume_from_checkpoint:
        found = "Several processes on a CPU cannot resume: transformers fails while it loads the optimizer."
        yield Finding("warn", "processes", found, "Resume on one process.")
    else:
        yield Finding("ok", "processes", f"As far as the file says: {count}, with whole weights on each.")


def sharding(keys: Mapping[str, Any]) -> str | None:
    """The kind of sharding that TRL's and accelerate's keys ask for, or None."""
    if keys.get("fsdp") or keys.get("use_fsdp"):
        return "FSDP"
    named = keys.get("accelerate_config") or keys.get("config_file")
    plans = [_plan(keys.get("deepspeed")), _plan(named)]
    for plan in plans:
        stage = plan.get("zero_optimization") or plan.get("deepspeed_config") or {}
        if 3 in (stage.get("stage"), stage.get("zero_stage")):
            return "DeepSpeed ZeRO-3"
        if plan.get("distributed_type") == "FSDP":
            return "FSDP"
    return None


def _plan(given: Any) -> Mapping[str, Any]:
    """A plan of deepspeed or accelerate: a mapping, a file, or a name that TRL ships."""
    from rl_think_ext.settings import read_file

    if isinstance(given, Mapping) or not given:
        return given or {}
    shipped = Path(str(import_module("trl").__path__[0])) / "accelerate_configs" / f"{given}.yaml"
    return read_file(given if Path(given).is_file() or not shipped.is_file() else shipped)
