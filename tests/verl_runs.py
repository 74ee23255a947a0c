"""Real runs of verl's main_ppo loop on a CPU: one Ray cluster a session (fixture `ray_cluster`), tiny models.

    config = compose(tmp_path, "trainer.total_training_steps=2", "data.train_files=...")
    steps = run(config)          # [{"step": 1, "actor/pg_loss": ...}, ...], what verl's file logger was given

`compose` is what `python -m verl.trainer.main_ppo OVERRIDES` would be given; RUN is what makes it small and CPU only.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[1]
CHAT_MODEL = ROOT / "recipes/rlmt/tiny/models/policy"
ONE_TYPE = "{param_dtype:fp32,reduce_dtype:fp32,buffer_dtype:fp32}"

# In every Ray process, before it imports verl.
ENVIRONMENT = {
    "PYTHONPATH": f"{ROOT / 'tests'}{os.pathsep}{ROOT}",
    "VERL_USE_EXTERNAL_MODULES": "support.verl_cpu",
    "VERL_PLATFORM": "cpu",
    "VERL_ENGINE_DEVICE": "cuda",  # which of verl's engine classes: FSDP's is registered for cuda
    "TRANSFER_QUEUE_ENABLE": "1",  # run_ppo sets it where it starts Ray itself
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "OMP_NUM_THREADS": "1",
    "RAY_DEDUP_LOGS": "0",
}

RUN = [
    f"actor_rollout_ref.model.path={CHAT_MODEL}",
    "+actor_rollout_ref.model.override_config.attn_implementation=sdpa",
    "actor_rollout_ref.model.use_remove_padding=False",
    "actor_rollout_ref.model.enable_gradient_checkpointing=False",
    "actor_rollout_ref.actor.strategy=fsdp2",
    "actor_rollout_ref.actor.use_torch_compile=False",
    f"++actor_rollout_ref.actor.fsdp_config.mixed_precision={ONE_TYPE}",
    f"++actor_rollout_ref.ref.fsdp_config.mixed_precision={ONE_TYPE}",
    "actor_rollout_ref.actor.fsdp_config.model_dtype=fp32",
    "actor_rollout_ref.ref.fsdp_config.model_dtype=fp32",
    "actor_rollout_ref.actor.ppo_mini_batch_size=4",
    "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=8",
    "actor_rollout_ref.actor.optim.lr=1e-3",
    "actor_rollout_ref.rollout.name=hfcpu",
    "actor_rollout_ref.rollout.n=4",
    "actor_rollout_ref.rollout.tensor_model_parallel_size=1",
    "actor_rollout_ref.rollout.n_gpus_per_node=1",
    "actor_rollout_ref.rollout.agent.num_workers=1",
    "actor_rollout_ref.rollout.calculate_log_probs=True",
    "actor_rollout_ref.rollout.log_prob_micro_batch_size_per_gpu=8",
    "actor_rollout_ref.ref.log_prob_micro_batch_size_per_gpu=8",
    "algorithm.adv_estimator=grpo",
    "data.train_batch_size=4",
    "data.val_batch_size=4",
    "data.max_prompt_length=48",
    "data.max_response_length=24",
    "data.dataloader_num_workers=0",
    "data.seed=0",
    "reward.num_workers=1",
    "trainer.device=cpu",
    "trainer.nnodes=1",
    "trainer.n_gpus_per_node=1",
    "trainer.logger=[console,file]",
    "trainer.val_before_train=False",
    "trainer.test_freq=-1",
    "trainer.save_freq=-1",
    "trainer.resume_mode=disable",
    "trainer.total_training_steps=2",
    "transfer_queue.backend.SimpleStorage.num_data_storage_units=1",
]
# A rank and a replica on each node of the cluster.
TWO_RANKS = ["trainer.nnodes=2"]


@contextmanager
def cluster() -> Iterator[None]:
    """Two of Ray's nodes on this machine; 32 logical CPUs, because TransferQueue waits for ever where there are few."""
    import ray
    from ray.cluster_utils import Cluster

    # Short, for the names of sockets have a limit; Ray would leave its logs in /tmp/ray for ever.
    with tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        path = f"{folder}/socket"
        worker = f"{sys.executable} -I -S {ROOT / 'tests/support/warm.py'} {path}"
        with pytest.MonkeyPatch.context() as patch:
            for name, value in ENVIRONMENT.items():
                patch.setenv(name, value)
            node = {"num_cpus": 32, "num_gpus": 1, "include_dashboard": False, "object_store_memory": 256 << 20}
            machines = Cluster(initialize_head=True, head_node_args={**node, "temp_dir": folder})
            machines.add_node(**node)
            ray.init(machines.address, runtime_env={"py_executable": worker})
        try:
            with warm_server(path, ray.get(ray.remote(lambda: dict(os.environ)).remote())):
                yield
        finally:
            ray.shutdown()
            machines.shutdown()


@contextmanager
def warm_server(path: str, environment: dict[str, str]) -> Iterator[None]:
    """The process that Ray's workers are forked from, so that none imports verl anew."""
    command = [sys.executable, "-m", "support.warm", path]
    server = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None and server.stdout.readline() == "ready\n"
        yield
    finally:
        server.terminate()
        server.communicate()


def compose(folder: Path, *overrides: str) -> Any:
    """verl's configuration, resolved by hydra from RUN and the overrides; everything written goes to `folder`."""
    import hydra

    places = [
        f"trainer.project_name={folder}",  # the file logger's folder
        "trainer.experiment_name=metrics",
        f"trainer.default_local_dir={folder / 'checkpoints'}",
        "hydra.searchpath=[pkg://rl_think_ext.verl.config]",
    ]
    with hydra.initialize_config_module("verl.trainer.config", version_base=None):
        return hydra.compose("ppo_trainer", [*RUN, *places, *overrides])


def run(config: Any, kill_after_step: int | None = None) -> list[dict[str, Any]]:
    """Train as main_ppo does; the metrics of each step that was logged, `step` among them.

    With `kill_after_step` the run is killed as soon as that step's metrics are there.
    """
    import ray
    from verl.trainer.main_ppo import TaskRunnerV1, run_ppo
    from verl.trainer.ppo.utils import need_critic, need_reference_policy
    from verl.utils.config import validate_config

    validate_config(config, need_reference_policy(config), need_critic(config))
    log = Path(config.trainer.project_name, f"{config.trainer.experiment_name}.jsonl")
    log.unlink(missing_ok=True)
    runner = Runner(TaskRunnerV1)
    over = threading.Event()
    if kill_after_step is not None:
        threading.Thread(target=runner.kill_after, args=(log, kill_after_step, over), daemon=True).start()
    try:
        run_ppo(config, runner)
    except ray.exceptions.RayActorError:
        if not runner.killed:
            raise
    finally:
        over.set()
        runner.kill()
        remove_placement_groups()
        wait_until_free()
    return metrics(log)


class Runner:
    """Stands in for verl's class of the run's actor, to keep hold of the actor."""

    def __init__(self, actor_class: Any) -> None:
        self.actor_class = actor_class
        self.actor: Any = None
        self.killed = False

    def remote(self) -> Any:
        self.actor = self.actor_class.remote()
        return self.actor

    def kill(self) -> None:
        import ray

        if self.actor is not None:
            ray.kill(self.actor)

    def kill_after(self, log: Path, step: int, over: threading.Event) -> None:
        while not over.wait(0.05):
            if any(row["step"] >= step for row in metrics(log)):
                self.killed = True
                self.kill()
                return


def metrics(log: Path) -> list[dict[str, Any]]:
    if not log.exists():
        return []
    whole = log.read_text(encoding="utf-8").rpartition("\n")[0]  # the last line may be half written
    return [{"step": row["step"], **row["data"]} for row in map(json.loads, whole.splitlines())]


def remove_placement_groups() -> None:
    """Ray keeps those of a dead actor until its driver, which is the test session, ends."""
    from ray.util import get_placement_group, placement_group_table, remove_placement_group

    for group in placement_group_table().values():
        if group["state"] != "REMOVED":
            remove_placement_group(get_placement_group(group["name"]))


def wait_until_free(seconds: float = 120) -> None:
    """The actors of a run die after it, one behind the other; their names and resources are needed again."""
    import ray

    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        free, all_of_it = ray.available_resources(), ray.cluster_resources()
        names = ray.util.list_named_actors(all_namespaces=True)
        if not names and all(free.get(name, 0) == all_of_it[name] for name in ("CPU", "GPU")):
            return
        time.sleep(0.1)
    raise TimeoutError(f"actors left by a run: {names}; {free} of {all_of_it} is free")
