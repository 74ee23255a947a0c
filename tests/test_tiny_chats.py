"""The chat task of RLMT: its checks are right, held-out letters stay held out, and the reward is learned, not noise."""

from __future__ import annotations

import hashlib
import json
import math
import subprocess
import sys
from functools import cache
from itertools import permutations
from pathlib import Path

import pytest
import torch
import yaml
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rl_think_ext.errors import UserError
from rl_think_ext.template import join, split
from rl_think_ext.tiny import chat_data, chat_models
from rl_think_ext.tiny.chat_examples import pairs, sft_rows
from rl_think_ext.tiny.chat_measure import correlation, load_policy, load_reward, means, measure, pair_accuracy, scores
from rl_think_ext.tiny.chat_tokenizers import policy_tokenizer, reward_tokenizer
from rl_think_ext.tiny.chats import (
    VOWELS,
    Request,
    checks,
    messages,
    prompt_rows,
    read,
    requests,
    satisfaction,
)

RECIPES = Path(__file__).parents[1] / "recipes/rlmt/tiny"
MODELS = RECIPES / "models"
REQUEST = Request("kcambe", ("sorted", "no vowels", "count first"))

Made = tuple[PreTrainedModel, PreTrainedTokenizerBase]


@cache
def policy() -> Made:
    return load_policy(str(MODELS / "policy"))


@cache
def reward() -> Made:
    return load_reward(str(MODELS / "reward"))


def test_a_request_is_worked_out_by_hand() -> None:
    assert REQUEST.text == "letters k c a m b e , sorted , no vowels , count first"
    assert REQUEST.thought == "keep k c m b sort b c k m count 4"
    assert REQUEST.answer == "count 4 list b c k m"
    assert Request("fbd", ("none after d", "backwards")).answer == "list d b"
    assert Request("fbad", ("none before b",)).thought == "keep f b d"
    assert read(REQUEST.text) == REQUEST


@pytest.mark.parametrize(
    ("answer", "broken"),
    [
        ("count 4 list b c k m", set()),
        ("count 3 list b c k m", {"count"}),
        ("count 4 list b c k", {"all"}),
        ("count 3 list b c k", {"all", "count"}),
        ("count 4 list b c m k", {"order"}),
        ("count 4 list a b c k m", {"only"}),
        ("count 4 list b b c k m", {"only"}),
        ("count 4 list bc k m", {"form", "only", "all"}),
        ("count 4 list b c k m t", {"only"}),
        ("list b c k m", {"form", "count"}),
        ("count 4 list b", {"all", "order"}),
        ("count 4 list B c k m", {"form", "only", "all"}),
        ("count 4 b c k m", {"form", "only", "all", "order"}),
        ("count 4 list", {"form", "only", "all", "order"}),
        ("keep k c m b count 4 list b c k m", {"form", "only", "all", "order", "count"}),
        ("count 4 list b c k m list", {"form", "only"}),
        ("", {"form", "only", "all", "order", "count"}),
        (None, {"form", "only", "all", "order", "count"}),
    ],
)
def test_the_checks_say_which_constraints_an_answer_breaks(answer: str | None, broken: set[str]) -> None:
    assert {name for name, kept in checks(REQUEST, answer).items() if not kept} == broken


def test_one_answer_alone_keeps_every_constraint() -> None:
    right = [
        items
        for length in range(1, 5)
        for items in permutations("kcamb", length)
        if satisfaction(REQUEST, f"count {length} list {' '.join(items)}") == 1
    ]
    assert right == [("b", "c", "k", "m")]
    for request in requests("train", 3, 2000):
        assert satisfaction(request, request.answer) == 1
        assert not set(request.kept) & set(VOWELS) or "no vowels" not in request.clauses


def test_no_training_text_is_about_a_held_out_set_of_letters() -> None:
    held = {frozenset(r.letters) for part in ("dev", "test") for r in requests(part, 7, 500)}
    assert not {frozenset(r.letters) for r in requests("dev", 1, 500)} & {
        frozenset(r.letters) for r in requests("test", 1, 500)
    }
    seen = [request for request, *_ in pairs("train", 1, 1000)] + requests("train", 1, 1000)
    seen += [read(row["prompt"][0]["content"]) for row in sft_rows(chat_data.SEED, 1000)]
    assert not {frozenset(request.letters) for request in seen} & held


def test_a_seed_gives_the_same_texts() -> None:
    assert requests("train", 1, 40) == requests("train", 1, 80)[:40] != requests("train", 2, 40)
    assert list(pairs("dev", 1, 40)) == list(pairs("dev", 1, 40)) != list(pairs("dev", 2, 40))
    assert sft_rows(1, 40) == sft_rows(1, 40) != sft_rows(2, 40)
    assert len({row["id"] for part in ("train", "dev", "test") for row in prompt_rows(part, 0, 9)}) == 27


def test_the_better_answer_of_a_pair_keeps_more() -> None:
    judged = list(pairs("dev", 3, 1000))
    assert all(satisfaction(request, better) > satisfaction(request, worse) for request, better, worse in judged)
    assert len({satisfaction(request, worse) for request, _, worse in judged}) > 5


def test_the_writer_is_mediocre_and_keeps_the_form() -> None:
    rows = sft_rows(4, 1000)
    right = 0
    for row in rows:
        parts = split(join(row["thought"], row["answer"], "think"))
        assert (parts.thought, parts.answer, parts.status) == (row["thought"], row["answer"], "ok")
        right += satisfaction(read(row["prompt"][0]["content"]), row["answer"]) == 1
    assert 0.2 < right / len(rows) < 0.5


def test_the_policy_reads_and_writes_the_very_text() -> None:
    tokenizer = policy_tokenizer()
    for tag in ("<think>", "</think>"):
        assert len(tokenizer(tag)["input_ids"]) == 1
        assert tokenizer.decode(tokenizer(tag)["input_ids"], skip_special_tokens=True) == tag
    assert len(tokenizer("<response>")["input_ids"]) > 1
    for row in sft_rows(5, 500):
        said = {"role": "assistant", "content": join(row["thought"], row["answer"], "think")}
        text = tokenizer.apply_chat_template([*row["prompt"], said], tokenize=False)
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == text and tokenizer.unk_token_id not in ids
    assert tokenizer.decode(tokenizer("<think></response></think>")["input_ids"]) == "<think></response></think>"


def test_the_reward_model_reads_with_other_ids_and_a_bos_of_its_own() -> None:
    theirs, ours = policy_tokenizer(), reward_tokenizer()
    chat = [*messages(REQUEST), {"role": "assistant", "content": REQUEST.answer}]
    text = ours.apply_chat_template(chat, tokenize=False)
    ids = ours.apply_chat_template(chat, return_dict=True)["input_ids"]
    assert ids.count(ours.bos_token_id) == 1
    # What a naive caller gets: the template's BOS and the tokenizer's.
    assert ours(text)["input_ids"] == [ours.bos_token_id, *ids]
    assert ours.decode(ids) == text and ours.unk_token_id not in ids
    same = [word for word, i in ours.get_vocab().items() if theirs.get_vocab().get(word) == i]
    assert len(same) < 5


def test_shipped_files_are_small_and_have_the_recorded_hashes() -> None:
    record = json.loads((MODELS / "made.json").read_text())
    for name, digest in record["sha256"].items():
        assert hashlib.sha256((MODELS / name).read_bytes()).hexdigest() == digest, name
    assert {"policy/model.safetensors", "reward/model.safetensors"} <= set(record["sha256"])
    assert record["parameters"]["policy"] <= 350_000 and record["parameters"]["reward"] <= 300_000
    assert sum(path.stat().st_size for path in RECIPES.rglob("*") if path.is_file()) < 2e6


def test_shipped_tokenizers_are_those_in_the_code() -> None:
    for (_, shipped), made in ((policy(), policy_tokenizer()), (reward(), reward_tokenizer())):
        assert shipped.get_vocab() == made.get_vocab()
        assert shipped.chat_template == made.chat_template
        assert len(shipped) < 120


def test_shipped_data_is_what_the_script_writes() -> None:
    import pyarrow.parquet

    for name, rows in chat_data.tables().items():
        assert pyarrow.parquet.read_table(RECIPES / name).to_pylist() == rows, name


def test_the_reward_model_tells_better_from_worse_on_held_out_pairs() -> None:
    judged = list(pairs("test", 31, 600))
    assert pair_accuracy(reward(), judged) > 0.9
    answers = [(request, answer) for request, *two in judged for answer in two]
    assert correlation(reward(), answers) > 0.8


def test_a_correlation_is_that_of_ranks() -> None:
    judged = list(pairs("test", 32, 50))
    answers = [(request, better) for request, better, _ in judged]
    once, twice = correlation(reward(), answers), correlation(reward(), [*answers, *answers])
    assert once == pytest.approx(twice, abs=1e-5)
    assert -1 <= once <= 1


def test_the_reward_model_prefers_the_answer_to_silence_and_to_the_thought() -> None:
    asked = requests("test", 33, 100)
    right = scores(*reward(), [(r, r.answer) for r in asked])
    for spoilt in ("", "list", "hmm well"):
        assert (right > scores(*reward(), [(r, spoilt) for r in asked])).float().mean() > 0.97
    assert (right > scores(*reward(), [(r, r.thought) for r in asked])).float().mean() > 0.97


def test_the_shipped_policy_is_mediocre_in_both_styles() -> None:
    asked = requests("test", 34, 192)
    for style in ("think", "none"):
        found = measure(policy(), reward(), asked, style)
        assert 0.25 < found["ok"] < 0.65
        # Of the outputs that are ok: enough are right to select from, and most are wrong.
        assert 0.05 < found["exact"] / found["ok"] < 0.5
    assert measure(policy(), reward(), asked, "none") == pytest.approx(found, nan_ok=True)


def test_a_mean_leaves_out_what_is_not_there() -> None:
    found = means({"score": [1.0, math.nan, 3.0], "none": [math.nan]})
    assert found["score"] == 2 and math.isnan(found["none"])


def test_a_few_steps_write_models_that_load_and_are_not_lost(tmp_path: Path) -> None:
    argv = [
        "--output",
        str(tmp_path / "made"),
        "--policy-steps",
        "3",
        "--read-steps",
        "3",
        "--judge-steps",
        "3",
        "--dev-rows",
        "8",
    ]
    before = torch.get_num_threads()
    chat_models.main(argv)
    torch.set_num_threads(before)
    assert load_policy(str(tmp_path / "made/policy"))[0].num_parameters() == policy()[0].num_parameters()
    assert load_reward(str(tmp_path / "made/reward"))[0].config.num_labels == 1
    with pytest.raises(UserError, match="--overwrite"):
        chat_models.main(argv)
    record = json.loads((tmp_path / "made/made.json").read_text())
    assert "--read-steps 3" in record["command"] and record["dev"]["pair_accuracy"] >= 0


def test_data_is_not_lost(tmp_path: Path) -> None:
    chat_data.main(["--output", str(tmp_path)])
    with pytest.raises(UserError, match="--overwrite"):
        chat_data.main(["--output", str(tmp_path)])


def test_examples_are_made_without_torch() -> None:
    code = "import sys, rl_think_ext.tiny.chat_examples; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_the_recipes_agree() -> None:
    train, stock, settings = (yaml.safe_load((RECIPES / name).read_text()) for name in _GRPO)
    assert train.pop("rl_think") == {"trainer": "grpo", **settings}
    assert stock.pop("env") == {"RL_THINK_CONFIG": "recipes/rlmt/tiny/settings.yaml"}
    assert stock.pop("reward_funcs") == ["rl_think_ext.trl.rlmt"]
    assert {key for key in train if train[key] != stock.get(key)} == {"output_dir"} and set(train) == set(stock)


@pytest.mark.slow
def test_grpo_raises_the_held_out_score_and_what_is_true_of_think_outputs(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "rl_think_ext.cli.train", "--config", "recipes/rlmt/tiny/train.yaml"]
    more = ["--output_dir", str(tmp_path), "--max_steps", "60"]
    subprocess.run([*command, *more], check=True, cwd=RECIPES.parents[2])
    asked = requests("test", 35, 256)
    before, after = measure(policy(), reward(), asked), measure(load_policy(str(tmp_path)), reward(), asked)
    assert after["ok"] > 0.9
    assert after["score"] > before["score"] + 0.5
    # Of the outputs that are ok: the form alone does not make it.
    assert after["exact"] / after["ok"] > before["exact"] / before["ok"] + 0.1


_GRPO = ("train.yaml", "trl.yaml", "settings.yaml")
