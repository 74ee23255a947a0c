"""The miniature task of RLPT: its texts are cut as said, its checker is exact, and held-out programs stay held out."""

from __future__ import annotations

import hashlib
import json
import random
import re
import subprocess
import sys
from collections import Counter
from functools import cache
from itertools import islice
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import yaml

from rl_think_ext.errors import UserError
from rl_think_ext.methods.rlpt import Reward, RLPTConfig, extract_prediction
from rl_think_ext.scoring.judge import Pair, RuleJudge
from rl_think_ext.segment import sentence_spans
from rl_think_ext.template import CLOSE_PREDICTION, OPEN_PREDICTION
from rl_think_ext.tiny import segment_controls, segment_data, segment_models
from rl_think_ext.tiny.programs import Program
from rl_think_ext.tiny.segment_examples import QUALITY, Chat, output, quiz_rows, reasoning, rows
from rl_think_ext.tiny.segment_measure import measure
from rl_think_ext.tiny.segment_tokenizer import TAGS, build_tokenizer
from rl_think_ext.tiny.segment_training import Loaded, chat_loss, frame, load_policy
from rl_think_ext.tiny.segments import Document, checked, documents, positions, prompt

RECIPES = Path(__file__).parents[1] / "recipes/rlpt/tiny"
POLICY = RECIPES / "models/policy"
PROGRAM = Program(5, ("+4", "*3", "-6", "+1", "*3"))
TEXT = Document(PROGRAM, (1, 2))


@cache
def policy() -> Loaded:
    return load_policy(str(POLICY))


def test_a_document_is_worked_out_by_hand() -> None:
    assert PROGRAM.values == (5, 9, 7, 1, 2, 6)
    assert TEXT.text == "Take a=5 b=a+4 c=b*3 d=c-6 e=d+1 f=e*3. So d is 1. So e is 2, so f is 6."
    assert list(TEXT.targets) == [1] and list(Document(PROGRAM, (1, 1, 1)).targets) == [1, 2]
    asr, msr = TEXT.segment("asr", 1), TEXT.segment("msr", 1)
    assert asr.reference.text == "So d is 1. So e is 2, so f is 6." and asr.reference.ends == (10, 32)
    assert (msr.context, msr.next_segment) == (asr.context, " So e is 2, so f is 6.")
    assert msr.reference.text == "So d is 1."


def test_punkt_cuts_where_the_sentences_end() -> None:
    for document in documents("train", 3, 300):
        assert [document.text[a:b] for a, b in sentence_spans(document.text)] == list(document.sentences)
        for task in ("asr", "msr"):
            for target in document.targets:
                found = document.segment(task, target)
                assert document.text.startswith(found.context + found.reference.text + found.next_segment)


@pytest.mark.parametrize(
    ("said", "prefix", "strict", "results"),
    [
        ("So d is 1.", 1, 1, 1),
        ("so d is 1", 1, 1, 1),
        ("So d is 1, so e is 2.", 1, 0, 2),
        ("So d is 1. So e is 2. So f is 6.", 1, 0, 3),
        ("So d is 1. So e is 2. So f is 6. So g is 1.", 0, 0, 3),
        ("So d is 1. So e is 3.", 0, 0, 1),
        ("So d is 2. So e is 2.", 0, 0, 0),
        ("So e is 2.", 0, 0, 0),
        # The judge's rule takes a sentence that was begun; the checker wants its result.
        ("So d is", 0, 0, 0),
        ("So d is 1, so e is", 1, 0, 1),
        ("So d is 1, well", 0, 0, 1),
        ("hmm So d is 1.", 0, 0, 1),
        ("So d is 1 so d is 1", 0, 0, 1),
        ("", 0, 0, 0),
        (None, 0, 0, 0),
    ],
)
def test_the_checker_says_what_a_prediction_is_worth(said: str | None, prefix: int, strict: int, results: int) -> None:
    assert checked(TEXT, 1, said) == {"prefix": prefix, "strict": strict, "results": results}


def test_the_rule_judge_agrees_with_the_checker_on_whole_sentences() -> None:
    rng, seen = random.Random(1), Counter[tuple[str, float]]()
    kinds: tuple[Reward, ...] = ("prefix", "strict")
    judges = {kind: RuleJudge(RLPTConfig(judge="rule", reward=kind)) for kind in kinds}
    for document, target, segment in positions("dev", 5, 600, "asr"):
        said = extract_prediction(output(rng, document, target, {"right": 0.5, "wrong": 0.5}, one_more=0.5))
        for kind, judge in judges.items():
            [score] = judge([Pair(segment.reference.shown(kind), said or "")])
            assert score.value == checked(document, target, said)[kind]
            seen[kind, score.value] += 1
    assert len(seen) == 4 and min(seen.values()) > 50


def test_where_a_sentence_ends_is_chance_and_what_it_says_is_not() -> None:
    """What strict and prefix differ in: the best that strict can do without seeing behind the gap is a coin's."""
    first = Counter(document.grouping[0] for document in documents("train", 4, 4000))
    assert 0.46 < first[1] / 4000 < 0.54
    assert {kind: checked(Document(PROGRAM, (2, 1)), 1, "So d is 1.")[kind] for kind in ("prefix", "strict")} == {
        "prefix": 1.0,
        "strict": 0.0,
    }


def test_no_training_text_is_about_a_held_out_program() -> None:
    held = {
        (document.program.first, document.program.operations[:3])
        for part in ("dev", "test")
        for document in documents(part, 7, 800)
    }
    program = re.compile(r"a=(\d) b=a([-+*]\d) c=b([-+*]\d) d=c([-+*]\d)")
    texts = [f"{chat.prompt or ''}{chat.said}" for chat in islice(rows(1), 3000)]
    texts += [row["text"] for row in segment_data.tables()["texts/train.parquet"]]
    texts += [row["prompt"][0]["content"] for row in quiz_rows(segment_data.SEED, 1000)]
    texts += [row["prompt"][0]["content"] for row in segment_data.sft_rows(segment_data.SEED, 1000)]
    seen = {(int(first), tuple(more)) for text in texts for first, *more in program.findall(text)}
    assert len(seen) > 4000 and not seen & held
    assert documents("dev", 1, 40) == documents("dev", 1, 80)[:40] != documents("dev", 2, 40)


def test_the_writer_is_mostly_wrong_and_follows_its_own_steps() -> None:
    assert QUALITY["right"] <= 0.12 and sum(QUALITY.values()) == pytest.approx(1)
    rng = random.Random(2)
    kinds = Counter(reasoning(rng, PROGRAM)[0] == PROGRAM.gold for _ in range(3000))
    assert 0.08 < kinds[True] / 3000 < 0.13
    slipped = [output(rng, TEXT, 1, {"wrong": 1.0}, one_more=0.0) for _ in range(50)]
    told = [re.search(r"d=c-6=(\d)", said) for said in slipped]
    assert [extract_prediction(said) for said in slipped] == [f"So d is {found[1]}." for found in told if found]
    assert len({found[1] for found in told if found}) > 5


def test_the_policy_reads_and_writes_the_very_text_of_the_whole_prompts() -> None:
    tokenizer = build_tokenizer()
    for tag in TAGS:
        ids = tokenizer(tag)["input_ids"]
        assert len(ids) == 1 and tokenizer.decode(ids, skip_special_tokens=True) == tag
    for chat in islice(rows(3), 600):
        text = ("" if chat.prompt is None else frame(tokenizer, chat.prompt)) + chat.said
        ids = tokenizer(text)["input_ids"]
        assert tokenizer.decode(ids) == text and tokenizer.unk_token_id not in ids
        assert len(ids) <= 160
    assert len(tokenizer) < 200


def test_the_loss_is_on_what_is_said_and_on_nothing_else() -> None:
    model, tokenizer = policy()
    same = [Chat("Take a=5 b=a+4. What is b?", r" \boxed{9}"), Chat("Take a=5 b=a+4. What is b?", r" \boxed{9}")]
    alone = chat_loss(model, tokenizer, same[:1])
    text = frame(tokenizer, same[0].prompt or "")
    ids = tokenizer(text + r" \boxed{9}<|im_end|>", return_tensors="pt")["input_ids"]
    logprob = model(ids).logits[0, :-1].log_softmax(-1).gather(1, ids[0, 1:, None])[-2:, 0]
    assert alone.item() == pytest.approx(-logprob.mean().item(), abs=1e-5)
    assert chat_loss(model, tokenizer, [*same, Chat(None, "a=5 b=a+4=9")]).item() != pytest.approx(alone.item())


def test_shipped_files_are_small_and_have_the_recorded_hashes() -> None:
    record = json.loads((RECIPES / "models/made.json").read_text())
    for name, digest in record["sha256"].items():
        assert hashlib.sha256((RECIPES / "models" / name).read_bytes()).hexdigest() == digest, name
    assert "policy/model.safetensors" in record["sha256"] and record["parameters"] <= 350_000
    assert sum(path.stat().st_size for path in RECIPES.rglob("*") if path.is_file()) < 2.2e6


def test_shipped_tokenizer_and_texts_are_those_in_the_code() -> None:
    shipped, made = policy()[1], build_tokenizer()
    assert shipped.get_vocab() == made.get_vocab() and shipped.chat_template == made.chat_template
    for name, table in segment_data.tables().items():
        assert pq.read_table(RECIPES / name).to_pylist() == table, name


def test_shipped_data_asks_what_the_code_asks() -> None:
    """`rl-think data rlpt` has cut the shipped texts into the very positions of `Document.segment`."""
    from rl_think_ext.data.segment_rows import segment_of

    texts = segment_data.documents_of_training()
    tasks = Counter[str]()
    for row in pq.read_table(RECIPES / "data/train.parquet").to_pylist():
        found, document = segment_of(row, "a row"), texts[int(row["id"].split(":")[1].split("/")[1])]
        assert found == document.segment(found.task, len(sentence_spans(found.context)))
        assert row["prompt"] == [{"role": "user", "content": prompt(found)}] and row["position"] == len(found.context)
        tasks[found.task] += 1
    assert min(tasks["asr"], tasks["msr"]) > 900


def test_the_shipped_policy_is_mostly_wrong() -> None:
    found = measure(policy(), "dev", 34, 128)
    for task in ("asr", "msr"):
        assert 0.85 < found[f"{task}/ok"] < 1
        # Enough is right to select from, and most is wrong.
        assert 0.03 < found[f"{task}/prefix"] < 0.4
    again = measure(policy(), "dev", 34, 128, tasks=("asr",))
    assert again == {name: value for name, value in found.items() if name in again}


def test_controls_read_the_same_documents_and_mixed_reads_worked_steps() -> None:
    rng = random.Random(0)
    worked = segment_controls.worked(rng, TEXT)
    assert PROGRAM.gold in worked.said and OPEN_PREDICTION in worked.said and CLOSE_PREDICTION in worked.said
    plain = segment_controls.plain(rng, documents("train", 1, 5))
    assert plain.prompt is None and plain.said.count("Take") == segment_controls.PACKED
    assert "=" + "9 c=" not in plain.said


@pytest.mark.parametrize("kind", segment_controls.CONTROLS)
def test_a_control_trains_for_its_time(kind: segment_controls.Control) -> None:
    made = load_policy(str(POLICY))
    before = made[0].get_input_embeddings().weight.clone()
    texts = documents("train", 1, 50)
    assert segment_controls.train_control(kind, made, texts, seconds=0.2, seed=0, batch=4) >= 1
    assert not torch.equal(before, made[0].get_input_embeddings().weight)


def test_a_few_steps_write_a_policy_that_loads_and_is_not_lost(tmp_path: Path) -> None:
    argv = ["--output", str(tmp_path / "made"), "--steps", "2", "--dev-rows", "4"]
    before = torch.get_num_threads()
    segment_models.main(argv)
    torch.set_num_threads(before)
    assert load_policy(str(tmp_path / "made/policy"))[0].num_parameters() == policy()[0].num_parameters()
    with pytest.raises(UserError, match="--overwrite"):
        segment_models.main(argv)
    assert "--steps 2" in json.loads((tmp_path / "made/made.json").read_text())["command"]


def test_the_recipes_agree() -> None:
    names = ("train.yaml", "trl.yaml", "settings.yaml")
    train, stock, settings = (yaml.safe_load((RECIPES / name).read_text()) for name in names)
    assert train.pop("rl_think") == {"trainer": "grpo", **settings}
    assert stock.pop("env") == {"RL_THINK_CONFIG": "recipes/rlpt/tiny/settings.yaml"}
    assert stock.pop("reward_funcs") == ["rl_think_ext.trl.rlpt"]
    assert {key for key in train if train[key] != stock.get(key)} == {"output_dir"} and set(train) == set(stock)


@pytest.mark.slow
def test_forty_steps_raise_the_accuracy_on_held_out_programs(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "rl_think_ext.cli.train", "--config", "recipes/rlpt/tiny/train.yaml"]
    more = ["--output_dir", str(tmp_path), "--max_steps", "40", "--seed", "3"]
    subprocess.run([*command, *more], check=True, cwd=RECIPES.parents[2])
    before, after = (measure(made, "dev", 35, 256) for made in (policy(), load_policy(str(tmp_path))))
    for task in ("asr", "msr"):
        assert before[f"{task}/prefix"] < 0.35
        assert after[f"{task}/prefix"] > 0.6
