"""What tests/test_patches.py asks of a trainer's source tree: one function per patch, each in a process of its own.

A request is a line `PROBE TREE` on stdin, an answer a line of JSON on stdout: what the probe found, or the name and
text of the error that it met; files go to the working directory. The libraries that every probe needs are imported
once, trl and verl never here: each request is a fork, which imports them from its tree.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from contextlib import redirect_stdout
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import datasets  # noqa: F401
import peft  # noqa: F401
import ray
import tensordict
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM

PROMPT_LENGTHS, RESPONSE_LENGTHS = (7, 4, 9), (3, 5, 2)


def tiny_model(seed: int = 0) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 2, "vocab_size": 31}
    heads = {"num_attention_heads": 2, "num_key_value_heads": 2, "max_position_embeddings": 64}
    return LlamaForCausalLM(LlamaConfig(**sizes, **heads, attn_implementation="sdpa"))


def trl_import() -> dict[str, Any]:
    """The start of every FSDP actor, then a critic whose checkpoint has no value head."""
    from verl.models.transformers.monkey_patch import apply_monkey_patch
    from verl.utils.model import load_valuehead_model, patch_valuehead_model

    apply_monkey_patch(tiny_model(), use_remove_padding=False)
    wrapped = torch.nn.Module()
    wrapped.pretrained_model = tiny_model()
    patch_valuehead_model(wrapped)
    found = {"embeddings": wrapped.get_input_embeddings().num_embeddings}
    try:
        load_valuehead_model("/nowhere", torch.float32, LlamaConfig(), False)
    except RuntimeError as error:
        found["critic"] = str(error)
    return found


def worker_class() -> dict[str, Any]:
    """Which class the trainer would start for actor and critic, under hydra's own config of the tree."""
    from hydra import compose, initialize_config_module
    from verl.trainer.ppo.v1 import trainer_base, trainer_separate_async, trainer_sync
    from verl.workers.engine_workers import ActorRolloutRefWorker

    class Named(ActorRolloutRefWorker):
        pass

    module = sys.modules["named_workers"] = type(sys)("named_workers")
    module.Named, module.Stranger = Named, dict
    trainer_base.ray = trainer_separate_async.ray = SimpleNamespace(remote=lambda cls: cls)

    def started(name: str | None, kind: Any) -> str:
        with initialize_config_module("verl.trainer.config", version_base=None):
            overrides = [f"actor_rollout_ref.worker_class={name}"] if name else []
            config = compose("ppo_trainer", overrides=overrides)
        trainer = kind.__new__(kind)
        trainer.config = config
        trainer._init_resource_pool_mgr()
        return next(iter(trainer.role_worker_mapping.values())).__name__

    def refused(name: str, kind: Any) -> str:
        try:
            return started(name, kind)
        except TypeError as error:
            return str(error)

    sync, separate = trainer_sync.PPOTrainerSync, trainer_separate_async.PPOTrainerSeparateAsync
    found = {"default": started(None, sync), "default_async": started(None, separate)}
    found["named"] = started("named_workers.Named", sync)
    found["stranger"] = refused("named_workers.Stranger", sync)
    found["named_async"] = refused("named_workers.Named", separate)
    return found


def response_logits() -> dict[str, Any]:
    """How often the head ran, and what came of it, for packed and for padded micro-batches."""
    from verl.utils import tensordict_utils as tu
    from verl.utils import torch_functional
    from verl.workers.config import FSDPEngineConfig
    from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead
    from verl.workers.utils.padding import response_from_nested

    model, positions = tiny_model(), []
    model.lm_head.register_forward_hook(lambda module, inputs, output: positions.append(output[..., 0].numel()))
    engine = FSDPEngineWithLMHead.__new__(FSDPEngineWithLMHead)
    engine.module, engine.use_ulysses_sp, engine.pad_to_length = model, False, False
    engine.engine_config = FSDPEngineConfig(use_torch_compile=False)
    engine.compute_entropy_from_logits = torch_functional.entropy_from_logits

    def nested(lengths: tuple[int, ...]) -> torch.Tensor:
        rows = [torch.randint(0, 31, (length,)) for length in lengths]
        return torch.nested.as_nested_tensor(rows, layout=torch.jagged)

    torch.manual_seed(1)
    prompts, responses = nested(PROMPT_LENGTHS), nested(RESPONSE_LENGTHS)
    rows = [torch.cat(pair) for pair in zip(prompts.unbind(), responses.unbind(), strict=True)]
    ids = torch.nested.as_nested_tensor(rows, layout=torch.jagged)
    counted = torch.nested.as_nested_tensor([torch.arange(len(row)) for row in rows], layout=torch.jagged)
    tensors = {"input_ids": ids, "position_ids": counted, "prompts": prompts, "responses": responses}

    def run(packed: bool, only_responses: bool) -> dict[str, Any]:
        engine.response_only_logits = only_responses
        flags = {"use_remove_padding": packed, "temperature": 0.7, "calculate_entropy": True}
        batch = tu.get_tensordict(tensors, non_tensor_dict={**flags, "calculate_sum_pi_squared": True})
        inputs, arguments = engine.prepare_model_inputs(batch)
        output = engine.prepare_model_outputs(model(**inputs, use_cache=False), arguments, batch, None)
        of_responses = {name: response_from_nested(value, responses).values() for name, value in output.items()}
        model.zero_grad()
        (of_responses["log_probs"].sum() + 0.1 * of_responses["entropy"].sum()).backward()
        gradient = model.model.embed_tokens.weight.grad
        numbers = {name: value.tolist() for name, value in of_responses.items()}
        return {"positions": positions.pop(), "gradient": gradient.flatten().tolist(), **numbers}

    found: dict[str, Any] = {}
    for layout, packed in {"packed": True, "padded": False}.items():
        found[layout] = {"all": run(packed, False), "only": run(packed, True)}
    # Supervised training has no responses: all logits.
    supervised = {name: tensors[name] for name in ("input_ids", "position_ids")}
    inputs, _ = engine.prepare_model_inputs(tu.get_tensordict(supervised, non_tensor_dict={"temperature": 1.0}))
    found["supervised"] = sorted(inputs)
    return found


def reference_update() -> dict[str, Any]:
    """A worker's reference, moved half-way to its actor, saved, moved again and loaded."""
    os.environ["VERL_PLATFORM"] = "cpu"
    import support.platform  # noqa: F401 (registers the CPU)
    from torch.distributed.fsdp import fully_shard
    from verl.trainer.config import CheckpointConfig
    from verl.trainer.ppo.v1.trainer_base import PPOTrainer
    from verl.utils.checkpoint.fsdp_checkpoint_manager import FSDPCheckpointManager
    from verl.workers.engine.fsdp.transformer_impl import FSDPEngineWithLMHead
    from verl.workers.engine_workers import ActorRolloutRefWorker, TrainingWorker

    folder = Path(tempfile.mkdtemp(dir=Path.cwd()))
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=0, world_size=1)
    mesh = torch.distributed.init_device_mesh("cpu", (1,))

    def trained(seed: int) -> TrainingWorker:
        model = tiny_model(seed)
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh)
        engine = FSDPEngineWithLMHead.__new__(FSDPEngineWithLMHead)
        engine.module = fully_shard(model, mesh=mesh)
        engine._is_offload_param = engine._is_offload_optimizer = False
        engine._uses_fsdp2_cpu_offload_policy = True
        contents = CheckpointConfig(save_contents=["model"], load_contents=["model"])
        engine.checkpoint_manager = FSDPCheckpointManager(model=engine.module, checkpoint_config=contents)
        worker = TrainingWorker.__new__(TrainingWorker)
        worker.engine = engine
        return worker

    worker = ActorRolloutRefWorker.__new__(ActorRolloutRefWorker)
    worker.actor, worker.ref, worker.role = trained(0), trained(1), "actor_rollout_ref"

    def distance(of: TrainingWorker) -> float:
        for module in of.engine.module.modules():
            if hasattr(module, "reshard"):
                module.reshard()
        pairs = zip(of.engine.module.parameters(), tiny_model(0).parameters(), strict=True)
        return max(float((here.full_tensor() - there).abs().max()) for here, there in pairs)

    class Trainer(PPOTrainer):
        def __init__(self) -> None:
            self.timing_raw, self.actor_rollout_wg = {}, worker
            settings = {"ref_update_interval": 2, "ref_update_weight": 0.5}
            self.config = SimpleNamespace(trainer=settings)

    Trainer.__abstractmethods__ = frozenset()
    trainer = Trainer()
    found: dict[str, Any] = {"distances": [distance(worker.ref)]}
    for trainer.global_steps in (1, 2, 3):
        for side in (worker.actor, worker.ref):
            side.engine.module(torch.arange(3)[None])  # leaves the root unsharded
        trainer._maybe_update_ref()
        found["distances"].append(distance(worker.ref))
    worker.save_ref_checkpoint(str(folder / "ref"))
    worker.update_ref(1.0)
    found["distances"].append(distance(worker.ref))
    worker.load_ref_checkpoint(str(folder / "ref"))
    found["distances"].append(distance(worker.ref))
    found["actor_moved"] = distance(worker.actor)
    try:
        worker.load_ref_checkpoint(str(folder / "none"))
    except FileNotFoundError as error:
        found["missing"] = str(error)
    return found


def reward_trainer() -> dict[str, Any]:
    """What a reward function is handed, and what its refusal of every sample costs."""
    from accelerate import PartialState
    from trl.trainer import grpo_trainer, rloo_trainer

    def received(kind: Any) -> Any:
        trainer, seen = kind.__new__(kind), []

        def reward(prompts: list[str], trainer: Any = None, **columns: Any) -> list[None]:
            seen.append((trainer, sorted(columns)))
            return [None] * len(prompts)

        trainer.accelerator = SimpleNamespace(device=torch.device("cpu"), is_main_process=False)
        trainer.reward_funcs, trainer.reward_processing_classes, trainer.reward_func_names = [reward], [None], ["it"]
        trainer.state, trainer.args = SimpleNamespace(global_step=0), SimpleNamespace(report_to=[])
        trainer.environments = None
        inputs = [{"prompt": "a", "target": "b"}] * 2
        rewards = trainer._calculate_rewards(inputs, ["a"] * 2, ["c"] * 2, [[1]] * 2)
        given, columns = seen[0]
        return {"is_trainer": given is trainer, "columns": columns, "unscorable": bool(rewards.isnan().all())}

    PartialState()  # TRL's logger asks for it
    for module in (grpo_trainer, rloo_trainer):
        module.gather = lambda tensor: tensor
    return {"grpo": received(grpo_trainer.GRPOTrainer), "rloo": received(rloo_trainer.RLOOTrainer)}


PROBES = (trl_import, worker_class, response_logits, reference_update, reward_trainer)


def answer(name: str, tree: str) -> dict[str, Any]:
    sys.path.insert(0, tree)
    try:
        with redirect_stdout(sys.stderr):
            found = {probe.__name__: probe for probe in PROBES}[name]()
        loaded = sys.modules["trl" if name == "reward_trainer" else "verl"].__file__
        assert loaded and Path(loaded).is_relative_to(tree), loaded
        return found
    except Exception as error:  # noqa: BLE001 (whatever a trainer raises is the answer)
        return {"error": f"{type(error).__name__}: {error}"}


def main() -> None:
    assert ray and tensordict and transformers
    for line in sys.stdin:
        name, tree = line.split(maxsplit=1)
        read, write = os.pipe()
        if os.fork() == 0:
            with open(write, "w") as stream:
                json.dump(answer(name, tree.strip()), stream)
            os._exit(0)
        os.close(write)
        with open(read, "rb") as stream:
            print(stream.read().decode(), flush=True)
        os.wait()


if __name__ == "__main__":
    main()
