"""RLMT under TRL's real trainer: what the reward model sees, what is paid, what stops sampling, what is refused."""

from __future__ import annotations

import json
import pickle
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from datasets import Dataset
from models import qwen3
from reward_models import reward_tokenizer, save_reward_model
from stub_server import Reply, StubServer
from transformers import AutoModelForSequenceClassification, AutoTokenizer
from trl_runs import TINY, ScriptedMixin, logs, save_policy, table_of

from rl_think_ext.errors import UserError
from rl_think_ext.formats import render_zero
from rl_think_ext.methods.rlmt import RLMTConfig
from rl_think_ext.scoring.chat_prompt import check_end_of_turn
from rl_think_ext.scoring.complete import StopText
from rl_think_ext.scoring.outputs import cut_behind, reader
from rl_think_ext.scoring.preference import FIELDS, repetition
from rl_think_ext.trl import PreferenceScore, RLMTGRPOConfig, RLMTTrainer, ShapingTerm
from rl_think_ext.trl.step_reward import TIME_SHARE

trl = pytest.importorskip("trl")

QUESTION = [{"role": "user", "content": "Name a colour."}]
OUTPUTS = (
    "<think>SECRET plan</think>Blue.",
    "<think>SECRET, another</think>\n\nRed, like a rose.",
    "<think>SECRET never closed",
    "<think>a</think>b <THINK>SECRET</THINK>",
)


@pytest.fixture(scope="module")
def reward_folder(tmp_path_factory):
    return save_reward_model(tmp_path_factory.mktemp("reward"), "llama")


@pytest.fixture(scope="module")
def policy_folder(tmp_path_factory):
    return save_policy(tmp_path_factory.mktemp("policy"))


def rows(n=8, **columns):
    return Dataset.from_list([{"id": f"q{i}", "prompt": QUESTION, **columns} for i in range(n)])


class Scripted(ScriptedMixin, RLMTTrainer):
    said = OUTPUTS


def trainer_of(kind, out, policy, config, data=None, **settings):
    args = RLMTGRPOConfig(str(out), **{**TINY, **settings})
    return kind(str(policy), args, rlmt=config, train_dataset=data if data is not None else rows())


@pytest.fixture
def run(tmp_path, policy_folder, reward_folder):
    """A scripted trainer for settings of RLMT."""

    def make(kind=Scripted, data=None, config=None, **settings):
        given = RLMTConfig(**{"reward_model": str(reward_folder), **(config or {})})
        return trainer_of(kind, tmp_path / "run", policy_folder, given, data, **settings)

    return make


def oracle(folder, answer, chat=QUESTION):
    """The score by transformers alone, in float64: one conversation, one forward."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float64).eval()
    text = tokenizer.apply_chat_template([*chat, {"role": "assistant", "content": answer}], tokenize=False)
    with torch.no_grad():
        return float(model(**tokenizer(text, add_special_tokens=False, return_tensors="pt")).logits[0, 0])


def test_the_answer_alone_is_scored_and_malformed_outputs_get_the_floor(run, reward_folder):
    trainer = run()
    trainer.train()
    shown = table_of(trainer)
    blue, red = oracle(reward_folder, "Blue."), oracle(reward_folder, "Red, like a rose.")
    worst = min(blue, red)
    assert shown["rlmt"] == pytest.approx([blue, red, worst, worst], abs=1e-5)
    assert shown["rlmt/score"][:2] == pytest.approx([blue, red], abs=1e-5)
    assert shown["rlmt/score"][2:] == [None, None]
    assert shown["rlmt/status"] == ["ok", "ok", "no_close", "extra_tags"]
    assert shown["rlmt/thought"] == ["SECRET plan", "SECRET, another", "SECRET never closed", "a"]
    assert shown["rlmt/answer"] == ["Blue.", "Red, like a rose.", None, None]
    assert shown["rlmt/unscorable"][2:] == ["malformed: no_close", "malformed: extra_tags"]
    assert logs(trainer, "rlmt/score") == pytest.approx([(blue + red) / 2], abs=1e-5)
    for status, share in {"ok": 0.5, "no_close": 0.25, "extra_tags": 0.25, "truncated": 0.0, "no_open": 0.0}.items():
        assert logs(trainer, f"rlmt/status/{status}") == [share]
    rewards = torch.tensor([blue, red, worst, worst], dtype=torch.float64)
    wanted = (rewards - rewards.mean()) / (rewards.std() + 1e-4)
    assert shown["advantage"] == pytest.approx(wanted.tolist(), abs=1e-4)


def test_metrics_are_those_of_the_batch(run):
    trainer = run()
    trainer.train()
    encode = trainer.processing_class.encode
    lengths = [len(encode(text)) for text in ("SECRET plan", "SECRET, another", "SECRET never closed", "a")]
    assert logs(trainer, "rlmt/thought_length") == [pytest.approx(sum(lengths) / 4)]
    answers = [len(encode(text)) for text in ("Blue.", "Red, like a rose.")]
    assert logs(trainer, "rlmt/answer_length") == [sum(answers) / 2]
    assert logs(trainer, "rlmt/unscorable") == [0.0] and logs(trainer, "rlmt/no_score") == [0.0]
    assert logs(trainer, "rlmt/truncated") == [0.0] and logs(trainer, "rlmt/zero_variance_groups") == [0.0]
    spread = torch.tensor(table_of(trainer)["rlmt/score"][:2]).std()
    assert logs(trainer, "rlmt/score_spread") == [pytest.approx(float(spread), abs=1e-5)]
    for name in ("score_noise", "scoring_seconds", "scoring_share", "reward_model_num_asked", "prompts_cut"):
        assert len(logs(trainer, f"rlmt/{name}")) == 1


def test_f27_copies_and_repetition_are_logged(run):
    question = "Name a colour that is neither red nor blue, please."

    class Copies(Scripted):
        said = (
            f"<think>a</think>You say: {question}",
            "<think>b</think>" + "Green. " * 12,
            "<think>c</think>Green, I should say.",
            f"<think>{question}",
        )

    trainer = run(Copies, data=rows().map(lambda row: {"prompt": [{"role": "user", "content": question}]}))
    trainer.train()
    assert logs(trainer, "rlmt/answer_copies_prompt") == [pytest.approx(1 / 3)]
    shares = [repetition(text) for text in (f"You say: {question}", ("Green. " * 12).strip(), "Green, I should say.")]
    assert shares[1] > 0.7 > shares[0] and shares[2] == 0.0
    assert logs(trainer, "rlmt/answer_repetition") == [pytest.approx(sum(shares) / 3, abs=1e-5)]


def test_f22_unscorable_outputs_leave_their_group(run, reward_folder):
    trainer = run(config={"malformed": "unscorable"})
    trainer.train()
    shown = table_of(trainer)
    blue, red = oracle(reward_folder, "Blue."), oracle(reward_folder, "Red, like a rose.")
    assert shown["rlmt"][2:] == [None, None]
    pair = torch.tensor([blue, red], dtype=torch.float64)
    wanted = (pair - pair.mean()) / (pair.std() + 1e-4)
    assert shown["advantage"] == pytest.approx([*wanted.tolist(), 0.0, 0.0], abs=1e-4)
    assert logs(trainer, "rlmt/unscorable") == [0.5]


def test_a_stated_floor_is_paid_and_says_when_it_lies_too_high(run, reward_folder):
    blue, red = oracle(reward_folder, "Blue."), oracle(reward_folder, "Red, like a rose.")
    middle = (blue + red) / 2
    trainer = run(config={"floor": middle})
    trainer.train()
    assert table_of(trainer)["rlmt"][2:] == pytest.approx([middle, middle], abs=1e-6)
    assert logs(trainer, "rlmt/below_floor") == [0.25]


def test_the_papers_parser_scores_what_the_paper_scores(run, reward_folder):
    trainer = run(config={"malformed": "paper-strict"})
    trainer.train()
    shown = table_of(trainer)
    assert shown["rlmt"][2] == pytest.approx(oracle(reward_folder, "[NULL]"), abs=1e-5)
    assert shown["rlmt/status"][2] == "no_close"
    trainer = run(config={"malformed": "paper-lenient"})
    trainer.train()
    assert table_of(trainer)["rlmt"][2] == pytest.approx(oracle(reward_folder, OUTPUTS[2]), abs=1e-5)


def test_the_full_output_is_scored_where_the_ablation_asks_for_it(run, reward_folder):
    trainer = run(config={"score": "full"})
    trainer.train()
    assert table_of(trainer)["rlmt"][0] == pytest.approx(oracle(reward_folder, OUTPUTS[0]), abs=1e-5)


def test_the_control_without_a_thought_is_one_key(run, reward_folder):
    class Plain(Scripted):
        said = ("Blue.", "<think>SECRET</think>Red.", "Green.", "Blue.")

    trainer = run(Plain, config={"style": "none"})
    trainer.train()
    shown = table_of(trainer)
    assert shown["rlmt/status"] == ["ok", "extra_tags", "ok", "ok"]
    assert shown["rlmt/thought"] == [None] * 4
    assert shown["rlmt"][0] == shown["rlmt"][3] == pytest.approx(oracle(reward_folder, "Blue."), abs=1e-5)


def classify(answer):
    """A stub of vLLM's `/classify` that scores by a function of the ids."""

    def reply(request):
        inputs = request.json["input"]
        data = [{"index": i, "probs": [answer(ids)]} for i, ids in reversed(list(enumerate(inputs)))]
        return Reply({"data": data, "usage": {"prompt_tokens": sum(map(len, inputs))}})

    return reply


def test_f23_nothing_of_a_thought_is_on_the_wire(run, reward_folder):
    tokenizer = AutoTokenizer.from_pretrained(reward_folder)
    with StubServer(classify(lambda ids: float(len(ids)))) as server:
        trainer = run(config={"server": server.url})
        trainer.train()
    bodies = [request.json for request in server.requests]
    texts = [tokenizer.decode(ids) for body in bodies for ids in body["input"]]
    assert any("Blue." in text for text in texts)
    assert not any("SECRET" in text or "think" in text for text in texts)
    assert all(set(body) <= {"model", "input", "use_activation"} for body in bodies)
    assert all(ids.count(tokenizer.bos_token_id) == 1 for body in bodies for ids in body["input"])
    lengths = [len(tokenizer.encode(text, add_special_tokens=False)) for text in texts]
    assert table_of(trainer)["rlmt"][0] in lengths


def test_f01_a_server_that_is_gone_is_no_zero_and_the_step_goes_on(run):
    config = {"server": "http://127.0.0.1:9", "deadline": 1.0, "retries": 0, "max_failed_steps": 9}
    trainer = run(config=config)
    trainer.train()
    shown = table_of(trainer)
    assert shown["rlmt"] == [None] * 4
    assert shown["advantage"] == [0.0] * 4
    assert logs(trainer, "rlmt/no_score") == [0.5] and logs(trainer, "rlmt/unscorable") == [1.0]
    assert "SECRET" not in shown["rlmt/unscorable"][0]


def test_f06_no_score_for_several_steps_raises(run):
    config = {"server": "http://127.0.0.1:9", "deadline": 1.0, "retries": 0, "max_failed_steps": 2}
    with pytest.raises(UserError, match=r"no answer was scored in 2 steps in a row: malformed.*reward server"):
        run(config=config, max_steps=5).train()


def test_f06_a_fixed_floor_hides_no_dead_server(run):
    config = {"server": "http://127.0.0.1:9", "deadline": 1.0, "retries": 0, "max_failed_steps": 2, "floor": -1.0}
    with pytest.raises(UserError, match=r"no answer was scored in 2 steps in a row: malformed.*reward server"):
        run(config=config, max_steps=5).train()


def test_f10_the_reward_scores_in_another_process_without_a_trainer(reward_folder):
    reward = pickle.loads(pickle.dumps(PreferenceScore(RLMTConfig(reward_model=str(reward_folder)))))  # noqa: S301
    said = [[{"role": "assistant", "content": text}] for text in OUTPUTS]
    values = reward(prompts=[QUESTION] * 4, completions=said)
    assert values[0] == pytest.approx(oracle(reward_folder, "Blue."), abs=1e-5)
    assert values[2] == values[3] == min(values[:2])
    assert reward(prompts=[], completions=[]) == []


def test_f32_completions_that_are_no_text_are_a_type_error(reward_folder):
    reward = PreferenceScore(RLMTConfig(reward_model=str(reward_folder)))
    with pytest.raises(TypeError, match="completion 0 of the batch holds NoneType"):
        reward(prompts=[QUESTION], completions=[[{"role": "assistant", "content": None}]])
    with pytest.raises(UserError, match="row 0 of the batch, column `prompt`, message 1: tool calls"):
        reward(prompts=[[{"role": "user", "content": "a", "tool_calls": [1]}]], completions=["b"])


def test_f33_a_prompt_of_text_needs_the_chat_beside_it(reward_folder):
    reward = PreferenceScore(RLMTConfig(reward_model=str(reward_folder)))
    with pytest.raises(UserError, match="row q7: column `prompt` is text, and there is no column `messages`"):
        reward(prompts=["User: hm"], completions=["b"], id=["q7"])


def test_f47_groups_within_the_noise_teach_nothing(run):
    trainer = run()
    table = torch.full((8, len(FIELDS)), torch.nan)
    table[:, 0] = torch.tensor([1.0, 1.001, 1.0005, 1.0, 1.0, 2.0, 3.0, float("nan")])
    table[:, 1] = 0.0
    rewards = trainer.preference._rewards(table, 0.002)
    assert rewards[:4].unique().numel() == 1 and rewards[:4].mean() == pytest.approx(1.000375)
    assert rewards[4:7].tolist() == [1.0, 2.0, 3.0] and rewards[7].isnan()


def test_shaping_terms_are_paid_by_reward_weights_and_missing_with_the_score(tmp_path, policy_folder, reward_folder):
    class Stock(trl.GRPOTrainer):
        said = OUTPUTS
        _generate_single_turn = ScriptedMixin._generate_single_turn

    reward = PreferenceScore(RLMTConfig(reward_model=str(reward_folder), malformed="unscorable"))
    names = ("format", "thought_length", "answer_length")
    funcs = [reward, *(ShapingTerm(name) for name in names)]
    values = {**TINY, "reward_weights": [1.0, 0.5, -0.1, -0.2]}
    trainer = Stock(str(policy_folder), funcs, args=trl.GRPOConfig(str(tmp_path), **values), train_dataset=rows())
    trainer.train()
    shown = table_of(trainer)
    assert shown["rlmt_format"][:2] == [1.0, 1.0] and shown["rlmt_format"][2:] == [None, None]
    encode = trainer.processing_class.encode
    assert shown["rlmt_answer_length"][0] == pytest.approx(len(encode("Blue.")) / 40)
    assert shown["rlmt_thought_length"][1] == pytest.approx(len(encode("SECRET, another")) / 40)
    assert shown["advantage"][2:] == [0.0, 0.0]


def length_reward(completions, **kwargs):
    return [float(len(str(completion))) for completion in completions]


def test_f12_no_score_beside_another_reward_is_no_zero(tmp_path, policy_folder, reward_folder):
    config = RLMTConfig(reward_model=str(reward_folder), malformed="unscorable")
    args = RLMTGRPOConfig(str(tmp_path), **TINY)
    trainer = Scripted(str(policy_folder), args, rlmt=config, reward_funcs=[length_reward], train_dataset=rows())
    trainer.train()
    assert table_of(trainer)["advantage"][2:] == [0.0, 0.0]
    funcs = [PreferenceScore(config), length_reward]
    args = trl.GRPOConfig(str(tmp_path), **TINY)
    stock = trl.GRPOTrainer(str(policy_folder), funcs, args=args, train_dataset=rows())
    with pytest.raises(UserError, match="beside other rewards the stock trainer counts"):
        stock.train()


SAID = {
    "Name a colour.": "<think>a plan</think><response>Blue.</response>",
    "Name a fruit.": "<think>another and a longer plan</think><response>An apple, or two.</response>",
}


def memorise(folder, steps=90):
    """Weights that say SAID behind the zero prompt and then go on, and a tokenizer without a chat template."""
    from transformers import AutoModelForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder)
    ids, labels = [], []
    for question, text in SAID.items():
        prompt = tokenizer.encode(render_zero([{"role": "user", "content": question}], "response", "Go."))
        said = tokenizer.encode(text + " And then it goes on and on and on")
        ids.append([*prompt, *said, *[0] * (80 - len(prompt + said))])
        labels.append([*[-100] * len(prompt), *said, *[-100] * (80 - len(prompt + said))])
    optimizer = torch.optim.Adam(model.parameters(), 2e-2)
    for _ in range(steps):
        loss = model(input_ids=torch.tensor(ids), labels=torch.tensor(labels)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 0.05
    tokenizer.chat_template = None
    tokenizer.padding_side = "left"
    return model, tokenizer


@pytest.mark.parametrize("pad", ["pad", "eos"])
def test_hazard_10_zero_rollouts_stop_at_the_response_without_vllm(tmp_path, policy_folder, reward_folder, pad):
    model, tokenizer = memorise(policy_folder)
    if pad == "eos":
        tokenizer.pad_token = tokenizer.eos_token
    (tmp_path / "words.txt").write_text("Go.")
    config = RLMTConfig(style="response", reward_model=str(reward_folder), instruction_file=str(tmp_path / "words.txt"))
    settings = {"temperature": 0.01, "max_completion_length": 60, "per_device_train_batch_size": 8}
    args = RLMTGRPOConfig(str(tmp_path), **{**TINY, **settings})
    data = Dataset.from_list([{"prompt": [{"role": "user", "content": question}]} for question in SAID])
    trainer = RLMTTrainer(model, args, rlmt=config, processing_class=tokenizer, train_dataset=data)
    trainer.train()
    shown = table_of(trainer)
    assert shown["rlmt/status"] == ["ok"] * 8 and set(shown["rlmt/answer"]) == {"Blue.", "An apple, or two."}
    assert {said[0]["content"] for said in shown["completion"]} == set(SAID.values())
    # What ended first is padded while the other is sampled: padding is no part of an output.
    lengths = [len(tokenizer.encode(text)) for text in SAID.values()]
    assert logs(trainer, "completions/min_length") == [min(lengths)]
    assert logs(trainer, "completions/max_length") == [max(lengths)]
    assert "generate" not in vars(trainer.accelerator.unwrap_model(trainer.model_wrapped))


def test_zero_rollouts_stop_where_tokens_are_words(tmp_path, reward_folder):
    # transformers' own stop strings raise for the tokenizer of the miniature task; the instruction names the stop, too.
    config = RLMTConfig(style="response-only", reward_model=str(reward_folder), max_failed_steps=9)
    args = RLMTGRPOConfig(str(tmp_path), **TINY)
    policy = str(Path(__file__).parents[1] / "recipes/rlmt/tiny/models/policy")
    trainer = RLMTTrainer(policy, args, rlmt=config, train_dataset=rows())
    trainer.train()
    assert logs(trainer, "completions/mean_length")[0] > 1


def test_a_stop_that_the_prompt_names_ends_nothing(policy_folder):
    tokenizer = AutoTokenizer.from_pretrained(policy_folder)
    prompt, stop = tokenizer.encode("end with </response> a"), StopText(tokenizer, "</response>")
    said = tokenizer.encode("b</response>")
    for num in range(1, len(said) + 1):
        found = stop(torch.tensor([[*prompt, *said[:num]]]), torch.empty(0))
        assert found.tolist() == [num == len(said)]


def test_cut_behind_keeps_the_token_that_ends_the_stop(policy_folder):
    tokenizer = AutoTokenizer.from_pretrained(policy_folder)
    ids = tokenizer.encode("a</response>\n\nb</response>c", add_special_tokens=False)
    for num in range(len(ids) + 1):
        text = tokenizer.decode(ids[:num])
        wanted = next((n for n in range(num + 1) if "</response>" in tokenizer.decode(ids[:n])), num)
        assert cut_behind(ids[:num], "</response>", tokenizer) == ids[:wanted], text


def test_what_reaches_vllms_sampling_params(tmp_path, policy_folder, reward_folder, monkeypatch):
    from trl.generation import vllm_generation

    from rl_think_ext.trl import rlmt_trainer

    args = RLMTGRPOConfig(str(tmp_path), use_vllm=True, generation_kwargs={"seed": 1}, **TINY)
    rlmt_trainer.tell_vllm_to_stop(args, "</response>")
    taken = {}

    def sampling_params(**given):
        taken.update(given)
        raise StopIteration

    monkeypatch.setattr(vllm_generation, "SamplingParams", sampling_params, raising=False)
    # TRL's own generation, up to where vLLM takes over.
    own = SimpleNamespace(
        mode="colocate", generation_kwargs=args.generation_kwargs, structured_outputs_regex=None, is_vlm=False,
        repetition_penalty=1.0, temperature=1.0, top_p=1.0, top_k=-1, min_p=0.0, max_completion_length=40,
        logprobs=0, enable_sleep_mode=False, tensor_parallel_size=1, accelerator=SimpleNamespace(is_main_process=True),
    )  # fmt: skip
    profiler = SimpleNamespace(__enter__=lambda: None, __exit__=lambda *_: None)
    with pytest.raises(StopIteration):
        vllm_generation.VLLMGeneration.generate(own, [[1, 2]], None, 1, profiler)
    assert taken["stop"] == ["</response>"] and taken["include_stop_str_in_output"] is True and taken["seed"] == 1


def checked(trainer_kind, policy, reward_folder, tmp_path, config=None, settings=None, data=None):
    given = RLMTConfig(**{"reward_model": str(reward_folder), **(config or {})})
    return trainer_of(trainer_kind, tmp_path, policy, given, data, **(settings or {}))


@pytest.mark.parametrize(
    ("config", "settings", "data", "message"),
    [
        ({"reward_model": ""}, {}, None, "`reward_model:` names no model"),
        ({}, {}, {"prompt": "text", "messages": QUESTION}, "style think needs chats in the column `prompt`"),
        ({"style": "response"}, {"mask_truncated_completions": True}, None, "would drop every output"),
        ({"style": "response"}, {"use_transformers_continuous_batching": True}, None, "cannot stop at </response>"),
    ],
)
def test_settings_that_are_no_rlmt_are_refused(tmp_path, policy_folder, reward_folder, config, settings, data, message):
    with pytest.raises(UserError, match=message):
        checked(RLMTTrainer, policy_folder, reward_folder, tmp_path, config, settings, rows(**data) if data else None)


def test_a_policy_without_a_chat_template_is_told_what_to_do(tmp_path, policy_folder, reward_folder):
    tokenizer = AutoTokenizer.from_pretrained(policy_folder)
    tokenizer.chat_template = None
    with pytest.raises(UserError, match="no chat template: a raw base model takes `style: response`"):
        RLMTTrainer(
            str(policy_folder),
            RLMTGRPOConfig(str(tmp_path), **TINY),
            rlmt=RLMTConfig(reward_model=str(reward_folder)),
            processing_class=tokenizer,
            train_dataset=rows(),
        )


def test_the_stock_trainer_cannot_stop_at_a_text_without_vllm(tmp_path, policy_folder, reward_folder):
    reward = PreferenceScore(RLMTConfig(style="response", reward_model=str(reward_folder)))
    prompt = render_zero(QUESTION, "response")
    data = Dataset.from_list([{"prompt": prompt, "messages": QUESTION}] * 4)
    args = trl.GRPOConfig(str(tmp_path), **TINY)
    stock = trl.GRPOTrainer(str(policy_folder), reward, args=args, train_dataset=data)
    with pytest.raises(UserError, match="the stock trainer cannot stop at </response> without vLLM"):
        stock.train()


def test_hazard_18_a_template_that_opens_the_thought_is_a_prefilled_one(tmp_path, policy_folder, reward_folder):
    class Prefilled(Scripted):
        said = ("plan</think>Blue.", "plan, cut off", "plan</think>Red.", "<think>plan</think>Green.")

    tokenizer = AutoTokenizer.from_pretrained(policy_folder)
    tokenizer.chat_template = tokenizer.chat_template.replace("assistant\n' }}", "assistant\n<think>\n' }}")
    tokenizer.padding_side = "left"
    trainer = Prefilled(
        str(policy_folder),
        RLMTGRPOConfig(str(tmp_path), **TINY),
        rlmt=RLMTConfig(reward_model=str(reward_folder)),
        processing_class=tokenizer,
        train_dataset=rows(),
    )
    trainer.train()
    assert table_of(trainer)["rlmt/status"] == ["ok", "no_close", "ok", "ok"]


THINKS = (
    "{{ '<|im_start|>assistant\n' + ('<think>\n' if enable_thinking | default(true) else '<think>\n\n</think>\n\n') }}"
)


@pytest.mark.parametrize(
    ("style", "options", "message"),
    [
        ("none", {}, "style none: the chat template ends its prompt with .*enable_thinking: false"),
        ("none", {"enable_thinking": False}, None),
        ("think", {"enable_thinking": False}, "style think: .*no thought follows.*enable_thinking: true"),
        ("think", {}, None),
    ],
)
def test_hazard_18_a_prompt_that_thinks_against_the_style_is_refused(
    tmp_path, policy_folder, reward_folder, style, options, message
):
    class Short(Scripted):
        said = ("Blue.", "a plan without its end")

    tokenizer = AutoTokenizer.from_pretrained(policy_folder)
    tokenizer.chat_template = tokenizer.chat_template.replace("{{ '<|im_start|>assistant\n' }}", THINKS)
    tokenizer.padding_side = "left"
    assert "enable_thinking" in tokenizer.chat_template
    args = RLMTGRPOConfig(str(tmp_path), chat_template_kwargs=options, **TINY)
    given = {"rlmt": RLMTConfig(style=style, reward_model=str(reward_folder)), "train_dataset": rows()}
    if message is None:
        trainer = Short(str(policy_folder), args, processing_class=tokenizer, **given)
        trainer.train()
        assert table_of(trainer)["rlmt/status"] == [{"none": "ok", "think": "no_close"}[style]] * 4
        return
    with pytest.raises(UserError, match=message):
        Short(str(policy_folder), args, processing_class=tokenizer, **given)


@pytest.mark.parametrize("family", ["llama", "qwen"])
def test_the_frame_of_a_base_model_begins_as_its_texts_do(tmp_path, policy_folder, reward_folder, family):
    # Llama begins every text with its BOS, Qwen has none; a chat gets what the template writes.
    tokenizer = reward_tokenizer(family)
    tokenizer.chat_template = None
    ids = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": 0, "bos_token_id": tokenizer.bos_token_id}
    model = qwen3(len(tokenizer), max_position_embeddings=512, **ids)
    config = RLMTConfig(style="response", reward_model=str(reward_folder))
    args = RLMTGRPOConfig(str(tmp_path), **TINY)
    trainer = RLMTTrainer(model, args, rlmt=config, processing_class=tokenizer, train_dataset=rows())
    chats, texts = ([row["prompt"] for row in rows(2)], [render_zero(QUESTION, "response")] * 2)
    one, other = trainer._tokenize_prompts(chats)[0], trainer._tokenize_prompts(texts)[0]
    assert one == other
    assert one[0].count(tokenizer.bos_token_id) == (family == "llama")


def test_a_tokenizer_that_hides_its_tags_shows_no_thought(policy_folder, run):
    tokenizer = AutoTokenizer.from_pretrained(policy_folder)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<think>", "</think>"]})
    ids = [*tokenizer.encode("<think>SECRET</think>Blue.", add_special_tokens=False), tokenizer.eos_token_id]
    assert "<think>" not in tokenizer.decode(ids, skip_special_tokens=True)
    read = reader(tokenizer, [tokenizer.eos_token_id], 40)
    assert read(ids).text == "<think>SECRET</think>Blue." and read(ids).finished
    assert not read(ids[:-1] * 20).finished and read([]).finished


def test_special_tokens_that_have_no_name_are_no_part_of_an_answer(policy_folder, tmp_path):
    # As Llama 3 has them: end of a message and end of the text are special, and neither is eos, bos or pad.
    tokenizer = AutoTokenizer.from_pretrained(policy_folder)
    tokenizer.add_tokens(["<|eom_id|>", "<response>", "</response>"], special_tokens=True)
    tokenizer.save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    end = tokenizer.convert_tokens_to_ids("<|eom_id|>")
    assert end not in tokenizer.all_special_ids
    read = reader(tokenizer, [tokenizer.eos_token_id, end], 40)
    for said in ("<think>a</think>Blue.", "<think>a</think><response>Blue.</response>"):
        ids = [*tokenizer.encode(said, add_special_tokens=False), end]
        assert (read(ids).text, read(ids).finished) == (said, True)


def test_a_turn_that_sampling_does_not_end_is_warned_about(policy_folder):
    tokenizer = AutoTokenizer.from_pretrained(policy_folder)
    assert check_end_of_turn(tokenizer, [tokenizer.eos_token_id]) == []
    assert "ends an assistant's turn with '<|im_end|>'" in check_end_of_turn(tokenizer, [3])[0]


def test_the_deadline_is_under_half_of_the_processes_own(run, monkeypatch):
    assert TIME_SHARE < 0.5
    trainer = run(config={"server": "http://127.0.0.1:9", "deadline": 600.0}, ddp_timeout=100)
    assert trainer.preference.scorer.model.endpoint.config.deadline == pytest.approx(45.0)


def test_settings_are_announced_kept_and_recorded(run, capsys):
    trainer = run()
    assert "[rl_think] RLMT settings" in capsys.readouterr().out
    trainer.train()
    folder = Path(trainer.args.output_dir) / "rl_think"
    kept = json.loads((folder / "settings.json").read_text())
    assert kept["rlmt"]["style"] == "think" and kept["fingerprint"]
    about = json.loads((folder / "run.json").read_text())
    assert about["method"] == "rlmt" and about["trainer"] == "Scripted"
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    assert any("rlmt/score" in line for line in lines)


def test_f39_a_password_in_the_address_is_nowhere(run, capsys):
    trainer = run(config={"server": "http://me:hunter2@127.0.0.1:9/?key=hunter3", "deadline": 0.5, "retries": 0})
    trainer.train()
    said = capsys.readouterr()
    kept = [path.read_bytes() for path in Path(trainer.args.output_dir).rglob("*") if path.is_file()]
    assert kept and not any(b"hunter" in text for text in (said.out.encode(), said.err.encode(), *kept))
    assert "server=http://127.0.0.1:9/" in said.out


def test_the_kernel_gives_the_same_loss(run):
    plain, kernel = run(max_steps=2), run(max_steps=2, logprob_kernel=True)
    plain.train()
    kernel.train()
    assert logs(kernel, "loss") == pytest.approx(logs(plain, "loss"), abs=1e-5)
    one, other = dict(plain.model.named_parameters()), dict(kernel.model.named_parameters())
    assert all(torch.allclose(one[name], other[name], atol=1e-4) for name in one)


def test_prompts_that_are_cut_for_the_reward_model_are_counted(run):
    chat = [{"role": "user", "content": "Name a colour. " * 60}]
    trainer = run(data=rows(prompt=chat), config={"max_length": 100})
    trainer.train()
    assert logs(trainer, "rlmt/prompts_cut") == [0.5]


def test_f06_an_evaluation_in_small_batches_does_not_end_a_run(tmp_path, policy_folder, reward_folder):
    class Malformed(Scripted):
        @property
        def said(self):
            return OUTPUTS[:2] if self.model.training else OUTPUTS[2:]

    small = {"eval_strategy": "steps", "eval_steps": 1, "per_device_eval_batch_size": 1, "num_generations_eval": 1}
    args = RLMTGRPOConfig(str(tmp_path), **{**TINY, **small, "max_steps": 2})
    config = RLMTConfig(reward_model=str(reward_folder))
    trainer = Malformed(str(policy_folder), args, rlmt=config, train_dataset=rows(), eval_dataset=rows(8))
    trainer.train()
    assert logs(trainer, "eval_rlmt/status/ok") == [0.0, 0.0] and len(logs(trainer, "rlmt/score")) == 2


def test_hazard_14_a_checkpoint_inside_a_generation_cycle_is_warned_about(run):
    cycle = {"num_iterations": 2, "steps_per_generation": 2, "save_strategy": "steps"}
    with pytest.warns(UserWarning, match="save_steps: 3 is no multiple of the 4 steps"):
        run(**cycle, save_steps=3)


def test_an_evaluation_has_metrics_of_its_own(tmp_path, policy_folder, reward_folder):
    args = RLMTGRPOConfig(str(tmp_path), **{**TINY, "eval_strategy": "steps", "eval_steps": 1})
    config = RLMTConfig(reward_model=str(reward_folder))
    trainer = Scripted(str(policy_folder), args, rlmt=config, train_dataset=rows(), eval_dataset=rows(4))
    trainer.train()
    assert logs(trainer, "eval_rlmt/score")


def test_alarms_of_a_dying_run_are_said_once():
    from rl_think_ext.methods.rlmt_alarms import RLMTAlarms

    alarms, said = RLMTAlarms(), defaultdict(int)
    for step in range(12):
        metrics = {
            "score": float(step), "answer_length": 10.0 + 40 * step, "thought_length": 50.0 / (1 + step),
            "status/ok": 0.3, "truncated": 0.5, "no_score": 0.2, "below_floor": 0.1, "zero_variance_groups": 0.9,
            "score_noise": 0.5, "score_spread": 1.0,
        }  # fmt: skip
        for text in alarms(metrics):
            said[text.split(" of ")[-1][:30]] += 1
    assert len(said) == 8 and set(said.values()) == {1}
    assert RLMTAlarms()({"score": None, "status/ok": float("nan")}) == []
