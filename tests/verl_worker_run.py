"""The actor's worker on real FSDP2 engines, without Ray: `start(folder, ranks)` runs `main` in as many processes.

Every process writes what it saw to `rank<k>.json`; the tests know what it should have been.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "rl_think_ext/tiny/programs_model"
FORBIDDEN = 7
TEMPERATURE = 0.7

Ids = tuple[int, ...]
# Prefixes and targets of several lengths, two of them equal.
QUERIES: list[tuple[Ids, Ids]] = [
    ((9, 21, 5, 13, 8), (11,)),
    ((6, 14, 9, 30, 12, 8, 22, 17, 5), (10, 25, 6)),
    ((15, 7), (7, 19)),
    ((9, 21, 5, 13, 8), (28, 9, 16, 5)),
    ((6, 14, 9, 30, 12, 8, 22, 17, 5), (10, 25, 6)),
]
# Prompts, responses, what stands between a response and its target, and the target.
SAMPLES: list[tuple[Ids, Ids, Ids, Ids]] = [
    ((9, 21, 5, 13, 8), (11, 6, 24, 5), (), (17, 8)),
    ((6, 14, 9), (30, 12, 8, 22, 17, 5), (7,), (10, 25, 6)),
    ((15, 7, 12, 19, 26), (7, 19), (), (23,)),
    ((28, 9, 16), (5, 20, 13), (), ()),
]


def start(folder: Path, ranks: int = 1) -> list[dict[str, Any]]:
    """What each of the processes saw."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    common = {
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT / "tests"), os.environ.get("PYTHONPATH"), str(ROOT)])),
        "VERL_USE_EXTERNAL_MODULES": "support.verl_cpu",
        "VERL_PLATFORM": "cpu",
        "VERL_ENGINE_DEVICE": "cuda",
        "OMP_NUM_THREADS": "1",
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
        "WG_PREFIX": "worker",
        "WG_BACKEND": "ray",
    }
    command = [sys.executable, __file__, str(folder)]
    folder.mkdir(exist_ok=True)
    processes = []
    for rank in range(ranks):
        environment = {**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        with (folder / f"rank{rank}.log").open("w") as log:
            processes.append(subprocess.Popen(command, env=environment, stdout=log, stderr=subprocess.STDOUT))
    try:
        codes = [process.wait(timeout=180) for process in processes]
    finally:
        for process in processes:
            process.kill()
    logs = [(folder / f"rank{rank}.log").read_text()[-6000:] for rank in range(ranks)]
    assert not any(codes), "\n".join(logs)
    return [json.loads((folder / f"rank{rank}.json").read_text()) for rank in range(ranks)]


def worker(**changes: Any) -> Any:
    """A fresh worker with a model of its own."""
    from verl.trainer.config import CheckpointConfig
    from verl.workers.config import FSDPEngineConfig, FSDPOptimizerConfig, HFModelConfig, TrainingWorkerConfig

    from rl_think_ext.verl.worker import ThinkTrainingWorker

    model = {name: changes.pop(name) for name in ("lora_rank", "lora_alpha") if name in changes}
    engine = {
        "strategy": "fsdp2",
        "model_dtype": "fp32",
        "mixed_precision": dict.fromkeys(("param_dtype", "reduce_dtype", "buffer_dtype"), "fp32"),
        "use_torch_compile": False,
        "use_dynamic_bsz": True,
        "max_token_len_per_gpu": 64,
        "infer_max_token_len_per_gpu": 64,
        **changes,
    }
    made = ThinkTrainingWorker(
        TrainingWorkerConfig(
            model_type="language_model",
            model_config=HFModelConfig(
                path=str(MODEL),
                override_config={"attn_implementation": "sdpa"},
                use_remove_padding=False,
                enable_gradient_checkpointing=False,
                **model,
            ),
            engine_config=FSDPEngineConfig(**engine),
            optimizer_config=FSDPOptimizerConfig(lr=1e-3, total_training_steps=10, weight_decay=0.0),
            checkpoint_config=CheckpointConfig(),
        )
    )
    made.reset()
    made.set_loss_fn(policy_loss())
    return made


def policy_loss() -> Callable[..., Any]:
    """verl's loss with the settings that make it eq. 8."""
    import hydra
    from verl.utils.config import omega_conf_to_dataclass
    from verl.workers.utils.losses import ppo_loss

    settings = [
        "strategy=fsdp2",
        "loss_agg_mode=seq-mean-token-mean",
        "clip_ratio_c=1e9",
        "ppo_micro_batch_size_per_gpu=4",
        "use_dynamic_bsz=true",
    ]
    with hydra.initialize_config_module("verl.trainer.config", version_base=None):
        config = hydra.compose("ppo_trainer", [f"actor_rollout_ref.actor.{one}" for one in settings])
    return partial(ppo_loss, config=omega_conf_to_dataclass(config.actor_rollout_ref.actor))


def spread_out(score: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """As verl's dispatch: every process takes its share of the rows, and all see all answers."""
    import torch.distributed as dist
    from verl.utils import tensordict_utils as tu

    def over_ranks(data: Any) -> Any:
        own = tu.chunk_tensordict(data, dist.get_world_size())[dist.get_rank()]
        found: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(found, score(own))
        return tu.concat_tensordict([one.exclude("metrics") for one in found])

    return over_ranks


def likelihood(made: Any) -> Any:
    import torch.distributed as dist

    from rl_think_ext.verl.likelihood import RemoteLikelihood

    return RemoteLikelihood(spread_out(made.score), dist.get_world_size(), 40)


def queries() -> list[Any]:
    from rl_think_ext.scoring.likelihood import Query

    return [Query(*one) for one in QUERIES]


def numbers(scored: Any) -> list[list[list[float]]]:
    return [[[v for v in row if v == v] for row in field.tolist()] for field in scored]


def nested(rows: Any) -> Any:
    import torch

    return torch.nested.as_nested_tensor([torch.tensor(list(row)) for row in rows], layout=torch.jagged)


def stock_batch(mask: list[int], advantages: list[float], old: list[list[float]] | None = None) -> Any:
    """SAMPLES of this process as verl's own batch; `mask` and `advantages` one for each sample."""
    import torch.distributed as dist
    from verl.utils import tensordict_utils as tu

    share = len(SAMPLES) // dist.get_world_size()
    own = slice(share * dist.get_rank(), share * (dist.get_rank() + 1))
    samples, lengths = SAMPLES[own], [len(s[1]) for s in SAMPLES[own]]
    masks = nested([m] * n for m, n in zip(mask[own], lengths, strict=True))
    fields = {
        "input_ids": nested(p + r for p, r, _, _ in samples),
        "position_ids": nested(range(len(p + r)) for p, r, _, _ in samples),
        "prompts": nested(p for p, _, _, _ in samples),
        "responses": nested(r for _, r, _, _ in samples),
        "response_mask": masks,
        "loss_mask": masks,
        "advantages": nested([a] * n for a, n in zip(advantages[own], lengths, strict=True)),
    }
    if old is not None:
        fields["old_log_probs"] = nested(old[own])
    told = {"global_batch_size": 4, "mini_batch_size": 4, "epochs": 1, "update_lr_scheduler": True}
    return tu.get_tensordict(fields, {"temperature": TEMPERATURE, **told})


def respond(remote: Any) -> tuple[list[list[float]], list[list[float]]]:
    """Log-probs and entropies of the responses, out of the forward that also scores their targets."""
    from rl_think_ext.scoring.likelihood import Query
    from rl_think_ext.verl.likelihood import Sampled

    asked = [Sampled(p, r, Query(p + r + c, t) if t else None) for p, r, c, t in SAMPLES]
    found = remote.respond(asked, TEMPERATURE)
    spans = [slice(len(p) - 1, len(p + r) - 1) for p, r, _, _ in SAMPLES]
    both = [(one.logprob[span].tolist(), one.entropy[span].tolist()) for one, span in zip(found, spans, strict=True)]
    return [one for one, _ in both], [one for _, one in both]


def metrics_of(output: Any) -> dict[str, list[float]]:
    from verl.utils import tensordict_utils as tu

    return {name: [float(v) for v in values] for name, values in tu.get(output, "metrics").items()}


def refusal(made: Any, folder: Path) -> str | None:
    """Why a checkpoint was not taken up, in our words or in verl's."""
    try:
        made.load_checkpoint(str(folder / "actor"))
    except Exception as error:  # noqa: BLE001 - the tests say which words are right
        return str(error)
    return None


def cases(folder: Path) -> dict[str, Any]:
    """One worker's life: scored, trained, saved and loaded."""
    import torch
    import torch.distributed as dist
    from verl.utils import tensordict_utils as tu

    from rl_think_ext.scoring.ema import bits, local_weights

    found: dict[str, Any] = {}
    made = worker()
    made.average({"ema": 0.0, "slow": 0.75, "frozen": 1.0})
    remote = likelihood(made)
    found["plain"] = numbers(remote(queries()))
    found["restricted"] = numbers(remote(queries(), FORBIDDEN))
    old, entropy = respond(remote)
    found["logprob"], found["entropy"] = old, entropy
    found["beside"] = numbers(remote(list(remote._ready)))
    stock = tu.assign_non_tensor(stock_batch([1] * 4, [0.0] * 4), calculate_entropy=True, compute_loss=False)
    output = made.infer_batch(stock)
    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, [[o.tolist() for o in output[k].unbind()] for k in ("log_probs", "entropy")])
    found["stock"] = [[row for one in gathered for row in one[field]] for field in (0, 1)]

    start = {name: weight.clone() for name, weight in local_weights(made.engine.module).items()}
    found["start"] = made.state()
    found["step"] = metrics_of(made.train_mini_batch(stock_batch([1, 0, 1, 0], [1.0, 2.0, 3.0, 4.0], old)))
    found["trained"] = made.state()
    after = local_weights(made.engine.module)
    by_hand = sum(float((0.75 * start[k] + 0.25 * after[k]).double().sum()) for k in start)
    found["slow_by_hand"] = by_hand
    found["none"] = metrics_of(made.train_mini_batch(stock_batch([0] * 4, [1.0] * 4, old)))
    found["after_none"] = made.state()
    found["not_finite"] = metrics_of(made.train_mini_batch(stock_batch([1] * 4, [torch.inf] * 4, old)))
    found["after_not_finite"] = made.state()

    before = bits(local_weights(made.engine.module))
    for name in ("ema", "frozen"):
        with remote.weights(name):
            found[f"plain_{name}"] = numbers(remote(queries()))
    found["plain_policy"] = numbers(remote(queries()))
    found["same_bits"] = bits(local_weights(made.engine.module)) == before

    made.save_checkpoint(str(folder / "actor"))
    dist.barrier()
    found["files"] = sorted(path.name for path in (folder / "actor/rl_think").glob("*"))
    fresh = worker()
    fresh.average({"ema": 0.0, "slow": 0.75, "frozen": 1.0})
    found["refused"] = refusal(fresh, folder)
    found["loaded"], found["saved"] = fresh.state(), made.state()
    other = worker()
    other.average({"another": 0.5})
    found["missing"] = refusal(other, folder)
    for path in (folder / "actor/rl_think").glob(f"slow.rank{dist.get_rank()}of*"):
        path.rename(path.with_name(path.name.replace(f"of{dist.get_world_size()}", "of64")))
    # verl's own files bear the number, too: what it says of a missing one comes after what we say.
    for path in (folder / "actor").glob(f"model_world_size_*_rank_{dist.get_rank()}.pt"):
        path.unlink()
    dist.barrier()
    found["other_ranks"] = refusal(fresh, folder)

    found |= with_adapter(folder, old)

    away = worker(param_offload=True, optimizer_offload=True)
    away.average({"ema": 0.0})
    away.train_mini_batch(stock_batch([1, 0, 1, 0], [1.0, 2.0, 3.0, 4.0], old))
    found["offloaded"] = away.state()

    gathered_weights = worker(reshard_after_forward=False)
    gathered_weights.average({"frozen": 1.0})
    gathered_weights.train_mini_batch(stock_batch([1] * 4, [1.0, 2.0, 3.0, 4.0], old))
    remote = likelihood(gathered_weights)
    remote(queries())  # leaves the whole weights behind
    with remote.weights("frozen"):
        found["plain_frozen_gathered"] = numbers(remote(queries()))
    return found


def with_adapter(folder: Path, old: list[list[float]]) -> dict[str, Any]:
    """Two steps with LoRA: what the average says, what one made by hand says, and what a second worker takes up."""
    import torch
    import torch.distributed as dist

    from rl_think_ext.scoring.ema import local_weights

    found: dict[str, Any] = {}
    made = worker(lora_rank=2, lora_alpha=4)
    made.average({"ema": 0.5})
    names = found["adapter"] = sorted(made.averages["ema"].average)
    by_hand = {name: local_weights(made.engine.module)[name].detach().clone() for name in names}
    for advantages in ([1.0, 2.0, 3.0, 4.0], [-4.0, 1.0, -2.0, 2.0]):
        made.train_mini_batch(stock_batch([1] * 4, advantages, old))
        weights = local_weights(made.engine.module)
        by_hand = {name: 0.5 * value + 0.5 * weights[name].detach() for name, value in by_hand.items()}
    found["adapter_state"], remote = made.state(), likelihood(made)
    found["adapter_policy"] = numbers(remote(queries()))
    with remote.weights("ema"):
        found["adapter_ema"] = numbers(remote(queries()))

    (folder / "lora").mkdir(exist_ok=True)
    made.save_checkpoint(str(folder / "lora/actor"))
    dist.barrier()
    fresh = worker(lora_rank=2, lora_alpha=4)
    fresh.average({"ema": 0.5})
    found["adapter_refused"] = refusal(fresh, folder / "lora")
    found["adapter_loaded"], remote = fresh.state(), likelihood(fresh)
    found["adapter_policy_loaded"] = numbers(remote(queries()))
    with remote.weights("ema"):
        found["adapter_ema_loaded"] = numbers(remote(queries()))

    with torch.no_grad():
        for name, weight in local_weights(made.engine.module).items():
            if name in by_hand:
                weight.copy_(by_hand[name])
    found["adapter_by_hand"] = numbers(likelihood(made)(queries()))
    return found


def main(folder: Path) -> None:
    import torch.distributed as dist

    found = cases(folder)
    (folder / f"rank{dist.get_rank()}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
