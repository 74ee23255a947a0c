"""`logprob_kernel`: TRL's question for log-probs answered by the kernels gives TRL's own numbers, and nothing else."""

import copy
from types import MethodType, SimpleNamespace

import pytest
import torch
from models import qwen3
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
)

from rl_think_ext.errors import UserError
from rl_think_ext.methods.rlp import RLPConfig
from rl_think_ext.scoring.likelihood import Likelihood, Query
from rl_think_ext.tiny import PROGRAMS_MODEL
from rl_think_ext.tiny.programs import rl_rows
from rl_think_ext.trl import ThinkGRPOConfig, ThinkGRPOTrainer, policy_logprob

pytest.importorskip("trl")
from datasets import Dataset
from trl.trainer.utils import add_fused_lm_head

# Odd: no block of any kernel divides it.
VOCAB, PROMPT, KEEP = 61, 5, 6
SMALL = {
    "vocab_size": VOCAB,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
    "initializer_range": 0.4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def llama():
    return LlamaForCausalLM(LlamaConfig(**SMALL, tie_word_embeddings=False))


def gemma2():
    # A cap that bends most logits of these weights, without dropout or sliding windows in the way.
    return Gemma2ForCausalLM(Gemma2Config(**SMALL, head_dim=8, final_logit_softcapping=2.0))


def phi():
    model = PhiForCausalLM(PhiConfig(**{**SMALL, "num_key_value_heads": 2}, resid_pdrop=0.0, embd_pdrop=0.0))
    nn.init.normal_(model.lm_head.bias)
    return model


def granite():
    return GraniteForCausalLM(GraniteConfig(**SMALL, logits_scaling=4.0))


def adapter(model, **changes):
    found = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj", "v_proj"], **changes))
    for name, p in found.named_parameters():
        if "lora_B" in name:  # zero at the start: nothing would show
            nn.init.normal_(p, std=0.3)
    return found


MODELS = {
    "qwen3 tied": lambda: qwen3(VOCAB, tie_word_embeddings=True),
    "llama separate head": llama,
    "gemma2 soft cap": gemma2,
    "phi bias": phi,
    "granite scale": granite,
    "lora": lambda: adapter(qwen3(VOCAB)),
    "lora and a trained copy of the head": lambda: adapter(llama(), modules_to_save=["lm_head"]),
}


def base_of(model):
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def seeded(make):
    torch.manual_seed(0)
    return make().train()


def pair(make, temperature=1.0, entropy=True):
    """The same model twice: as TRL patches it, and with ours over it."""
    theirs, ours = seeded(make), seeded(make)
    for model in (theirs, ours):
        add_fused_lm_head(base_of(model), temperature, outputs=("log_probs", "entropy"))
    policy_logprob.install(ours, temperature, entropy=entropy)
    return theirs, ours


def batch():
    """Three rows, left-padded prompts and completions of 6, 3 and 1 tokens: ids, mask and TRL's labels."""
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(3, VOCAB, (3, PROMPT + KEEP), generator=generator)
    seen = torch.ones_like(ids)
    seen[1, :2] = seen[2, :4] = seen[1, PROMPT + 3 :] = seen[2, PROMPT + 1 :] = 0
    labels = ids.masked_fill(seen == 0, -100)
    labels[:, :PROMPT] = -100
    return ids, seen, labels


def ask(model, labels=None):
    ids, seen, wanted = batch()
    out = model(input_ids=ids, attention_mask=seen, labels=wanted if labels is None else labels, fused_lm_head=True)
    return out.log_probs[:, -KEEP:], None if out.entropy is None else out.entropy[:, -KEEP:]


def gradients(model, entropy_too=False):
    logprob, _ = ask(model)
    weights = torch.linspace(-1, 1, logprob.numel()).view_as(logprob)
    (logprob * weights).sum().backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def assert_same_gradients(theirs, ours):
    expected, found = gradients(theirs), gradients(ours)
    assert expected.keys() == found.keys() and expected
    for name, grad in expected.items():
        assert (found[name] - grad).norm() <= 1e-5 * grad.norm() + 1e-7, name


# --- one forward and backward ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("name", MODELS)
def test_log_probs_entropies_and_gradients_are_trls(name, temperature):
    theirs, ours = pair(MODELS[name], temperature)
    (expected, expected_entropy), (found, entropy) = ask(theirs), ask(ours)
    assert expected.abs().max() > 1
    assert torch.allclose(found, expected, atol=1e-5, rtol=1e-5)
    assert torch.allclose(entropy, expected_entropy, atol=1e-5, rtol=1e-5)
    assert not entropy.requires_grad
    assert_same_gradients(theirs, ours)


def test_the_log_probs_are_the_plain_logits_at_the_temperature():
    _, ours = pair(gemma2, 0.7)
    ids, seen, labels = batch()
    logits = ours(input_ids=ids, attention_mask=seen).logits[:, :-1].double() / 0.7
    plain = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    expected = torch.where(labels[:, 1:] != -100, plain, 0.0)[:, -KEEP:]
    assert torch.allclose(ask(ours)[0].double(), expected, atol=1e-5)


def test_masked_positions_hold_0_and_are_never_computed(monkeypatch):
    _, ours = pair(llama)
    _, _, labels = batch()
    rows = []
    original = policy_logprob.linear_masked_logprob

    def spy(hidden, weight, labels, mask, **rest):
        rows.append(int(mask.sum()))
        return original(hidden.masked_fill(~mask[..., None], torch.nan), weight, labels, mask, **rest)

    monkeypatch.setattr(policy_logprob, "linear_masked_logprob", spy)
    found = ask(ours)
    outside = labels[:, -KEEP:] == -100
    for values in found:
        assert values.isfinite().all()
        assert (values[outside] == 0).all() and (values[~outside] != 0).all()
    # Ratios of the loss at these places are exp(0 - 0).
    assert (torch.exp(found[0] - found[0].detach())[outside] == 1).all()
    assert rows == [6 + 3 + 1]


def test_a_batch_without_any_label_gives_a_zero_with_a_gradient():
    theirs, ours = pair(llama)
    nothing = torch.full_like(batch()[0], -100)
    for model in (theirs, ours):
        logprob, _ = ask(model, nothing)
        assert (logprob == 0).all()
        logprob.sum().backward()
        assert all(p.grad is None or (p.grad == 0).all() for p in model.parameters())


def test_gradient_checkpointing_changes_nothing():
    theirs, ours = pair(llama)
    ours.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    assert_same_gradients(theirs, ours)


def test_the_trained_copy_of_the_head_learns_and_the_original_is_the_reference():
    theirs, ours = pair(MODELS["lora and a trained copy of the head"])
    for model in (theirs, ours):
        copied = base_of(model).lm_head.modules_to_save["default"]
        torch.manual_seed(1)
        nn.init.normal_(copied.weight)
    assert any("lm_head.modules_to_save" in name for name in gradients(ours))
    tuned = ask(ours)[0]
    assert torch.allclose(tuned, ask(theirs)[0], atol=1e-5)
    with ours.disable_adapter(), theirs.disable_adapter():
        assert torch.allclose(ask(ours)[0], ask(theirs)[0], atol=1e-5)
        assert not torch.allclose(ask(ours)[0], tuned, atol=1e-2)


def test_bf16_autocast_rounds_operands_and_not_logits():
    theirs, ours = pair(llama)
    ids, seen, labels = batch()
    with torch.autocast("cpu", torch.bfloat16):
        found, _ = ask(ours)
        rounded, _ = ask(theirs)
        hidden = ours.model(input_ids=ids, attention_mask=seen).last_hidden_state[:, :-1]
    logits = hidden.bfloat16().double() @ ours.lm_head.weight.bfloat16().double().T
    exact = logits.log_softmax(-1).gather(-1, ids[:, 1:, None])[..., 0]
    exact = torch.where(labels[:, 1:] != -100, exact, 0.0)[:, -KEEP:]
    assert found.dtype == torch.float32
    assert (found - exact).abs().max() < 1e-5 < 1e-3 < (rounded - exact).abs().max()
    # The gradients are those of the weights' own dtype.
    assert all(grad.dtype == torch.float32 for grad in gradients(ours).values())


@pytest.mark.parametrize("make", [llama, gemma2, phi, granite])
def test_bf16_weights_pass_the_check_at_the_start_and_give_float32(make):
    ours = seeded(make).bfloat16()
    add_fused_lm_head(ours, 0.5, outputs=("log_probs", "entropy"))
    policy_logprob.install(ours, 0.5, entropy=True)
    assert all(values.dtype == torch.float32 for values in ask(ours))
    assert gradients(ours)["model.embed_tokens.weight"].dtype == torch.bfloat16


def test_a_reference_that_accelerate_has_put_into_autocast_answers_in_it():
    from accelerate.utils.operations import convert_outputs_to_fp32

    ours = pair(llama, 0.7)[1]
    prepared = seeded(llama)
    add_fused_lm_head(prepared, 0.7)
    # As Accelerator(mixed_precision="bf16").prepare_model does, without the state that it leaves for other tests.
    inner = torch.autocast("cpu", torch.bfloat16)(prepared.forward.__func__)
    prepared.forward = MethodType(convert_outputs_to_fp32(MethodType(inner, prepared).__func__), prepared)
    trainer = SimpleNamespace(
        args=ThinkGRPOConfig("unused", use_cpu=True, bf16=False),
        aux_loss_enabled=False,
        temperature=0.7,
        model=seeded(llama),
        ref_model=prepared,
        accelerator=SimpleNamespace(unwrap_model=lambda model: model),
    )
    policy_logprob.install_all(trainer)
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        logprob, entropy = ask(prepared)
        assert torch.equal(logprob, ask(ours)[0])
    assert entropy is None


# --- sharded weights ------------------------------------------------------------------------------------------------


def test_the_heads_weight_may_be_there_while_its_own_forward_and_backward_run():
    # What ZeRO-3 does, by the same kind of hooks: a weight of shape (0,) outside them.
    theirs, ours = pair(llama)
    head, whole, seen = ours.lm_head, ours.lm_head.weight.data, []

    def gather(*_):
        head.weight.data = whole

    def release(*_):
        seen.append(head.weight.shape)
        head.weight.data = torch.empty(0)

    release()
    head.register_forward_pre_hook(gather)
    head.register_forward_hook(release)
    head.register_full_backward_pre_hook(gather)
    assert_same_gradients(theirs, ours)
    assert seen == [(VOCAB, 16)] * 2


@pytest.fixture
def one_process_group(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("own_group", [False, True])
def test_the_head_is_unsharded_under_fsdp2(one_process_group, own_group):
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import DTensor

    theirs, ours = pair(llama)
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (1,))
    if own_group:
        fully_shard(ours.lm_head, mesh=mesh)
    fully_shard(ours, mesh=mesh)
    assert isinstance(ours.lm_head.weight, DTensor)
    expected, found = gradients(theirs), gradients(ours)
    for name, grad in expected.items():
        assert (found[name].full_tensor() - grad).norm() <= 1e-5 * grad.norm() + 1e-7, name


# --- the scorer -----------------------------------------------------------------------------------------------------


def test_the_scorer_is_unaffected_to_the_bit():
    theirs, ours = pair(gemma2, 0.7)
    queries = [Query((5, 6, 7), (8, 9)), Query((10, 11), (12, 13))]
    expected = Likelihood(theirs, 0)(queries)
    assert all(torch.equal(a, b) for a, b in zip(Likelihood(ours, 0)(queries), expected, strict=True))
    ask(ours)
    assert torch.equal(Likelihood(ours, 0)(queries)[0], expected[0])
    plain = seeded(gemma2).eval()(input_ids=torch.tensor([[5, 6, 7]])).logits
    assert torch.equal(ours.eval()(input_ids=torch.tensor([[5, 6, 7]])).logits, plain)


def test_weights_swapped_in_place_are_the_ones_that_answer():
    _, ours = pair(llama)
    before = ask(ours)[0]
    with torch.no_grad():
        ours.lm_head.weight.mul_(0.5)
    assert not torch.allclose(ask(ours)[0], before, atol=1e-2)
    other = copy.deepcopy(ours.lm_head)
    assert torch.equal(other(torch.ones(16)), ours.lm_head(torch.ones(16)))


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "setting", [{"use_liger_kernel": True}, {"cast_lm_head_to_fp32": True}, {"entropy_coef": 0.01}, {"aux": True}]
)
def test_settings_that_the_kernels_do_not_compute_are_refused(setting, tmp_path):
    aux = setting.pop("aux", False)
    name = next(iter(setting), "router_aux_loss_coef")
    args = ThinkGRPOConfig(str(tmp_path), use_cpu=True, bf16=False, **setting)
    with pytest.raises(UserError, match=f"`logprob_kernel: true` and `{name}` do not go together"):
        policy_logprob.check_settings(SimpleNamespace(args=args, aux_loss_enabled=aux))


def test_adaptive_entropy_is_refused():
    args = SimpleNamespace(
        use_liger_kernel=False, cast_lm_head_to_fp32=False, entropy_coef=0.0, use_adaptive_entropy=True
    )
    with pytest.raises(UserError, match="`use_adaptive_entropy` do not go together"):
        policy_logprob.check_settings(SimpleNamespace(args=args, aux_loss_enabled=False))


def test_an_adapter_on_the_head_is_refused():
    model = get_peft_model(llama(), LoraConfig(r=2, target_modules=["q_proj", "lm_head"]))
    add_fused_lm_head(base_of(model))
    with pytest.raises(UserError, match=r"not a plain nn\.Linear \(an adapter on it"):
        policy_logprob.install(model, 1.0)


def test_a_head_with_hooks_is_refused():
    model = llama()
    model.lm_head.register_forward_hook(lambda module, args, out: out + 1)
    with pytest.raises(UserError, match="hooks of somebody else"):
        policy_logprob.install(model, 1.0)


def test_a_model_without_a_body_of_its_own_is_refused():
    with pytest.raises(UserError, match="Linear is not a body with a head"):
        policy_logprob.install(nn.Linear(2, 2), 1.0)


class Shifted(LlamaForCausalLM):
    """Does to its logits what no setting tells."""

    def forward(self, *args, **kwargs):
        out = super().forward(*args, **kwargs)
        out.logits[..., ::2] += 0.1 if out.logits.dtype == torch.float32 else 1.0
        return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logits_that_nobody_knows_of_are_found_at_the_start(dtype):
    torch.manual_seed(0)
    model = Shifted(LlamaConfig(**SMALL)).to(dtype)
    add_fused_lm_head(model)
    before = model.forward
    with pytest.raises(UserError, match="does something to its logits that is not known here"):
        policy_logprob.install(model, 1.0)
    assert model.forward == before


# --- the trainer ----------------------------------------------------------------------------------------------------

TINY = {
    "per_device_train_batch_size": 8,
    "num_generations": 4,
    "max_completion_length": 12,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "constant",
    "bf16": False,
    "gradient_checkpointing": False,
    "use_cpu": True,
    "report_to": "none",
    "logging_steps": 1,
    "disable_tqdm": True,
    "save_strategy": "no",
    "max_steps": 3,
}
LORA = {"peft_config": LoraConfig(r=2, target_modules=["q_proj", "v_proj"])}


def trainer_of(out, kernel, record, peft=None, **settings):
    """A trainer on completions that are sampled once, for whichever trainer comes first."""
    args = ThinkGRPOConfig(str(out), logprob_kernel=kernel, **{**TINY, **settings})
    data = Dataset.from_list(rl_rows(0, 64))
    rlp = RLPConfig(num_target_tokens=2, ema_decay=0.9)
    trainer = ThinkGRPOTrainer(str(PROGRAMS_MODEL), args, rlp=rlp, train_dataset=data, **(peft or {}))
    generate, calls = trainer._generate_single_turn, []

    def replay(prompt_ids, *rest, **kwargs):
        if len(calls) == len(record):
            record.append(generate(prompt_ids, *rest, **kwargs))
        calls.append(1)
        # What is drawn behind the sampling (the order of the batch) is the same, sampled or not.
        torch.manual_seed(len(calls))
        return copy.deepcopy(record[len(calls) - 1])

    trainer._generate_single_turn = replay
    return trainer


def run(out, kernel, record, **settings):
    """Logged numbers of each step, the last generation batch, the weights that moved."""
    trainer = trainer_of(out, kernel, record, **settings)
    seen = {}
    original = trainer._generate_and_score_completions

    def spy(inputs):
        seen["batch"] = original(inputs)
        return seen["batch"]

    trainer._generate_and_score_completions = spy
    start = {name: p.detach().clone() for name, p in trainer.model.named_parameters() if p.requires_grad}
    trainer.train()
    moved = {name: p.detach() - start[name] for name, p in trainer.model.named_parameters() if p.requires_grad}
    return [log for log in trainer.state.log_history if "loss" in log], seen["batch"], moved


def assert_same_runs(tmp_path, **settings):
    record = []
    logs, their_batch, their_moves = run(tmp_path / "theirs", False, record, **settings)
    our_logs, our_batch, our_moves = run(tmp_path / "ours", True, record, **settings)
    assert len(logs) == len(our_logs) == TINY["max_steps"]
    # Times, and how far rounding moves a score.
    timed = ("time", "seconds", "share", "noise", "noise_to_spread")
    for one, other in zip(logs, our_logs, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            if one[key] is not None and not key.endswith(timed):
                assert other[key] == pytest.approx(one[key], rel=2e-4, abs=2e-5), key
    for name, move in their_moves.items():
        assert (our_moves[name] - move).norm() <= 1e-2 * move.norm(), name
    return their_batch, our_batch


def test_training_both_ways_logs_the_same_numbers(tmp_path):
    assert_same_runs(tmp_path, temperature=0.8, gradient_accumulation_steps=2)


@pytest.mark.parametrize("peft", [None, LORA], ids=["whole", "lora"])
def test_old_and_reference_log_probs_are_trls(tmp_path, peft):
    theirs, ours = assert_same_runs(tmp_path, num_iterations=2, beta=0.1, peft=peft)
    mask = theirs["completion_mask"].bool()
    assert not mask.all()
    for name in ("old_per_token_logps", "ref_per_token_logps"):
        assert torch.allclose(ours[name], theirs[name], atol=1e-4)
        assert (ours[name][~mask] == 0).all()


def test_training_runs_through_the_kernels(tmp_path, monkeypatch):
    asked = []
    original = policy_logprob.linear_masked_logprob

    def spy(hidden, *args, **kwargs):
        asked.append((kwargs["entropy"], kwargs["temperature"], torch.is_grad_enabled()))
        return original(hidden, *args, **kwargs)

    monkeypatch.setattr(policy_logprob, "linear_masked_logprob", spy)
    trainer = trainer_of(tmp_path, True, [], beta=0.1, num_iterations=2, temperature=0.8, max_steps=2)
    assert len(asked) == 1  # the check at the start
    trainer.train()
    assert {temperature for _, temperature, _ in asked} == {0.8}
    # One batch of samples: its old and reference log-probs, and the losses of two steps.
    assert [what[::2] for what in asked[1:]] == [(True, False), (False, False), (True, True), (True, True)]


def test_the_loss_and_gradients_of_a_step_are_trls(tmp_path):
    record, found = [], []
    for kernel in (False, True):
        trainer = trainer_of(tmp_path / str(kernel), kernel, record, temperature=0.8, max_completion_length=20)
        trainer.model.train()
        rows = [row for row in rl_rows(0, 2) for _ in range(4)]
        trainer.current_gradient_accumulation_steps = 1
        loss = trainer._compute_loss(trainer.model, trainer._generate_and_score_completions(rows))
        loss.backward()
        grads = torch.cat([p.grad.flatten() for p in trainer.model.parameters()])
        found.append((loss.detach(), grads, trainer._metrics["train"]["entropy"][-1]))
    (loss, grads, entropy), (our_loss, our_grads, our_entropy) = found
    assert grads.norm() > 0
    assert our_loss == pytest.approx(float(loss), rel=1e-5, abs=1e-7)
    assert (our_grads - grads).norm() <= 1e-5 * grads.norm()
    assert our_entropy == pytest.approx(entropy, rel=1e-5)


def test_the_option_is_off_by_default_and_an_unknown_model_is_refused_by_the_trainer(tmp_path, monkeypatch):
    plain = trainer_of(tmp_path, False, [])
    assert type(plain.model.get_output_embeddings()) is nn.Linear
    with pytest.raises(UserError, match="`logprob_kernel: true` and `entropy_coef`"):
        trainer_of(tmp_path, True, [], entropy_coef=0.1)
