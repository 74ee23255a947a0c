"""`rl-think doctor --live`: one row through the real parts, compared with sums made by hand."""

import contextlib
import io
import json
import shutil

import pytest
import torch
from models import qwen3
from test_doctor_setups import STOCK, TRAIN, run_file

from rl_think_ext import cli
from rl_think_ext.cli.doctor.boundary import visible
from rl_think_ext.scoring.load import load_model, load_tokenizer
from rl_think_ext.tiny import PROGRAMS_MODEL, TEXT_TOKENIZER

CLOSE = 3


def live(*words):
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        assert cli.main(["doctor", "--live", *map(str, words), "--json"]) == 0, said.getvalue()
    return json.loads(said.getvalue())


def part(record, name):
    return next((part["ids"] for part in record["parts"] if part["name"] == name), None)


def settings(**values):
    return {"rl_think": {"rlp": values}}


@pytest.fixture(scope="module")
def model():
    return load_model(str(PROGRAMS_MODEL))


def logprobs(model, prefix):
    with torch.no_grad():
        return model(torch.tensor([prefix])).logits[0, -1].log_softmax(-1)


def test_scores_are_those_of_a_plain_forward(model):
    """Eq. 5 by hand: log p(x | context, thought) - log p(x | context) with the opening tag ruled out."""
    record = live(TRAIN, "--row", "3")
    context, opened, (target,) = part(record, "context"), part(record, "open tag"), part(record, "TARGET")
    row = load_tokenizer(str(PROGRAMS_MODEL))("a=9 b=a+6 c=b+5 d=c*9 e=d-8 e?")["input_ids"]
    assert context == row and opened == [2]
    assert part(record, "close tag") == [CLOSE] and record["closed"]
    assert [*part(record, "thought"), CLOSE] == record["completion"]
    (scored,) = record["targets"]
    reasoned = logprobs(model, context + opened + record["completion"])[target]
    plain = logprobs(model, context)
    assert scored["reasoned"] == pytest.approx(float(reasoned), abs=1e-4)
    assert scored["unmasked"] == pytest.approx(float(plain[target]), abs=1e-4)
    masked = plain[target] - torch.log1p(-plain[2].exp())
    assert scored["baseline"] == pytest.approx(float(masked), abs=1e-4)
    assert record["reward"] == pytest.approx(float(reasoned - masked), abs=1e-4)
    assert not any(remark["moves"] for remark in record["remarks"])


@pytest.mark.parametrize(
    ("given", "sum_of"),
    [
        ({"baseline_mask_open_tag": False}, lambda t: t["reasoned"] - t["unmasked"]),
        ({"baseline": "none"}, lambda t: t["reasoned"]),
    ],
)
def test_gain_column_is_the_reward_that_is_configured(tmp_path, given, sum_of):
    record = live(run_file(tmp_path, **settings(**given)))
    (target,) = record["targets"]
    assert target["gain"] == pytest.approx(sum_of(target), abs=1e-4) == record["reward"]


def test_thought_that_is_cut_off_gets_the_tag_or_no_reward(tmp_path):
    record = live(run_file(tmp_path, max_completion_length=2))
    assert record["status"] == "no_close" and not record["closed"]
    assert part(record, "close added") == [CLOSE] and record["num_sampled"] == 2
    assert record["reward"] is not None
    record = live(run_file(tmp_path, max_completion_length=2, **settings(closing="unscorable")))
    assert record["reward"] is None and record["reason"] == "thought not closed"


def test_targets_behind_the_scored_ones_are_shown_apart(tmp_path):
    record = live(text_run(tmp_path, [text_row()], rl_think={"rlp": {"num_target_tokens": 2}}))
    assert len(record["targets"]) == 2 == len(part(record, "TARGET"))
    assert len(part(record, "not scored")) >= 1
    assert record["reward"] == pytest.approx(sum(t["gain"] for t in record["targets"]), abs=1e-4)


def test_f31_ids_that_text_would_move_are_named(tmp_path):
    """Single characters decode to text that encodes to fewer, longer tokens."""
    row = text_row()
    coder = load_tokenizer(str(TEXT_TOKENIZER))
    row["context_ids"] = [i for c in row["context"] for i in coder(c)["input_ids"]]
    row["target_ids"] = coder(row["target"])["input_ids"]
    record = live(text_run(tmp_path, [row]))
    assert part(record, "context") == row["context_ids"]
    moved = [remark["text"] for remark in record["remarks"] if remark["moves"]]
    assert moved[0].startswith(f"decode → encode moves the context: {len(row['context_ids'])} ids become")
    assert not any("trl grpo" in text for text in moved)
    record = live(text_run(tmp_path, [row], STOCK))
    assert any("`trl grpo` shows the prompt as text" in r["text"] for r in record["remarks"] if r["moves"])


def test_tag_of_several_tokens_is_stopped_at_for_vllm_and_scored(tmp_path):
    row = text_row()
    path = text_run(tmp_path, [row], use_vllm=True, vllm_importance_sampling_correction=False)
    written = json.loads((tmp_path / "model/tokenizer.json").read_text())
    written["added_tokens"] = [token for token in written["added_tokens"] if "think" not in token["content"]]
    (tmp_path / "model/tokenizer.json").write_text(json.dumps(written))
    record = live(path)
    assert len(part(record, "open tag")) > 1
    assert record["reward"] == pytest.approx(record["targets"][0]["gain"], abs=1e-4)


def test_shown_at_80_columns_with_visible_spaces(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    assert cli.main(["doctor", "--live", TRAIN, "--row", "1"]) == 0
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 80
    for words in (
        "BOS          –",
        "2:<think>",
        "3:</think>",
        "␣b=a",
        "thought: ok, closed by the policy",
        "reward (rlp): ",
    ):
        assert words in shown
    assert visible(" a\n\u202e") == "␣a\\n\\u202e"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--live"], "--live needs the YAML file of a run"),
        (["--live", TRAIN, "--row", "4000"], "--row 4000: the dataset has the rows 0 to 3999"),
        (["--live", TRAIN, "--row", "-1"], "--row -1: the dataset has the rows 0 to 3999"),
    ],
)
def test_what_cannot_be_shown_is_refused(words, sentence, capsys):
    assert cli.main(["doctor", *words]) == 1
    assert sentence in capsys.readouterr().err


def test_broken_file_is_told_before_anything_is_sampled(tmp_path, capsys):
    assert cli.main(["doctor", "--live", str(run_file(tmp_path, bf16=True))]) == 1
    shown = capsys.readouterr().out
    assert "bf16" in shown and "id:token" not in shown


def test_model_that_is_not_here_is_not_fetched(tmp_path, capsys):
    path = run_file(tmp_path, model_name_or_path="nobody/nothing-1B")
    assert cli.main(["doctor", "--live", str(path)]) == 1
    assert "which is not on this machine: `rl-think doctor" in capsys.readouterr().err


def text_row():
    context, target = "The function returns a list of", " all the names that are there"
    return {"id": "doc:31", "prompt": context + "<think>", "context": context, "target": target}


def text_run(place, rows, base=TRAIN, **changes):
    """A run on real text: random weights, the shipped byte-level tokenizer, a folder of rows."""
    folder, data = place / "model", place / "data"
    if not folder.exists():
        qwen3(4096, eos_token_id=[1, 4095]).save_pretrained(folder)
        shutil.copytree(TEXT_TOKENIZER, folder, dirs_exist_ok=True)
        data.mkdir()
        (data / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    coder = load_tokenizer(str(TEXT_TOKENIZER))
    close = coder("</think>")["input_ids"]
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [coder.eos_token_id, *close]}))
    changes = {"max_completion_length": 4} | changes
    return run_file(place, base, model_name_or_path=str(folder), dataset_name=str(data), **changes)
