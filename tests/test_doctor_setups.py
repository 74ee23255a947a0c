"""`rl-think doctor` on set-ups that are really broken: each has a sentence of its own, and the exit status is true."""

import contextlib
import io
import json
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from rl_think_ext import cli
from rl_think_ext.kernels import native
from rl_think_ext.tiny import PROGRAMS_MODEL, TEXT_TOKENIZER

TRAIN, STOCK = "recipes/rlp/tiny/train.yaml", "recipes/rlp/tiny/trl.yaml"


class Report(NamedTuple):
    """What the command said."""

    status: int
    findings: list

    def at(self, state):
        return [finding for finding in self.findings if finding["state"] == state]


def doctor(*words):
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        status = cli.main(["doctor", *map(str, words), "--json"])
    return Report(status, json.loads(said.getvalue())["findings"])


def run_file(place, base=TRAIN, **changes):
    """A copy of a recipe with other keys; None takes a key out."""
    config = yaml.safe_load(Path(base).read_text()) | {"output_dir": str(place / "out")} | changes
    path = place / "run.yaml"
    path.write_text(yaml.safe_dump({key: value for key, value in config.items() if value is not None}))
    return path


def distribution(place, patch, name, version, points=""):
    """Make a distribution appear installed: what importlib.metadata reads is this folder."""
    folder = place / f"{name}-{version}.dist-info"
    folder.mkdir(parents=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (folder / "entry_points.txt").write_text(points)
    patch.syspath_prepend(str(place))


def model_copy(place, **generation):
    folder = place / "model"
    shutil.copytree(PROGRAMS_MODEL, folder)
    path = folder / "generation_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | generation))
    return folder


# --- Set-ups, each broken in one way: a function (folder, patch) -> the command's words ---


def version_outside_the_range(place, patch):
    distribution(place / "site", patch, "peft", "0.1.0")
    return []


def version_untested(place, patch):
    distribution(place / "site", patch, "accelerate", "1.14.9")
    return []


def data_extra_missing(place, patch):
    patch.setitem(sys.modules, "nltk", None)
    return []


def trl_missing(place, patch):
    patch.setitem(sys.modules, "trl", None)
    return [run_file(place)]


def trl_lost_a_private_name(place, patch):
    import trl

    patch.delattr(trl.GRPOTrainer, "_calculate_rewards")
    return []


def trl_untested(place, patch):
    import trl

    patch.setattr(trl, "__version__", "1.17.0")
    return []


def vllm_outside_trls_range(place, patch):
    distribution(place / "site", patch, "vllm", "0.1.0")
    (place / "site/vllm.py").write_text("")
    return []


def without_kernels(patch):
    patch.setattr(native, "_loaded", lambda: (None, "No module named '_native'"))
    patch.setattr(native, "module", lambda: None)
    patch.setattr(native, "_backends", lambda: ("torch",))
    return []


def no_kernels(place, patch):
    return without_kernels(patch)


def no_compiler(place, patch):
    patch.setenv("PATH", str(place))
    patch.delenv("CXX", raising=False)
    return without_kernels(patch)


def plugin_raises(place, patch):
    distribution(place / "site", patch, "evil", "1.0", "[verl.plugins]\nevil = evil_plugin\n")
    (place / "site/evil_plugin.py").write_text("raise RuntimeError('no licence for hf_abcdefghij')\n")
    return []


def plugin_imports_what_is_not_there(place, patch):
    distribution(place / "site", patch, "late", "1.0", "[verl.plugins]\nlate = late_plugin\n")
    (place / "site/late_plugin.py").write_text("import rl_think_ext.trl\nimport surely_not_installed\n")
    return []


def verl_untested(place, patch):
    distribution(place / "site", patch, "verl", "0.10.0")
    return []


def verl_name_that_cannot_be_imported(place, patch):
    patch.setitem(sys.modules, "rl_think_ext.verl.rlmt_reward", None)
    patch.setattr("rl_think_ext.verl.plugin.FAILURES", [])
    return []


def verl_told_to_leave_our_plugin_out(place, patch):
    patch.setenv("VERL_USE_EXTERNAL_PLUGINS", "late,others")
    return []


def file_is_no_yaml(place, patch):
    (place / "run.yaml").write_text("model_name_or_path: [unclosed\n")
    return [place / "run.yaml"]


def file_is_not_there(place, patch):
    return [place / "gone.yaml"]


def key_given_twice(place, patch):
    (place / "run.yaml").write_text("max_steps: 1\nmax_steps: 2\n")
    return [place / "run.yaml"]


def key_unknown(place, patch):
    return [run_file(place, max_step=3)]


def key_unknown_to_the_launcher_too(place, patch):
    return [run_file(place, STOCK, num_procesess=2)]


def key_of_the_wrong_type(place, patch):
    return [run_file(place, max_steps="many")]


def setting_unknown(place, patch):
    return [run_file(place, rl_think={"rlp": {"baselin": "ema"}})]


def settings_file_missing(place, patch):
    return [run_file(place, STOCK, env={"RL_THINK_CONFIG": "nowhere/rlp.yaml"})]


def setting_is_not_rlp(place, patch):
    return [run_file(place, scale_rewards="group")]


def setting_differs_from_rlp(place, patch):
    return [run_file(place, beta=0.04)]


def bf16_on_a_cpu(place, patch):
    return [run_file(place, bf16=True)]


def bf16_where_no_gpu_is(place, patch):
    import torch

    patch.setattr(torch.cuda, "is_available", lambda: False)
    return [run_file(place, bf16=None, use_cpu=None)]


def file_without_rlp(place, patch):
    return [run_file(place, rl_think=None)]


def further_reward_is_not_there(place, patch):
    return [run_file(place, reward_funcs=["nowhere_at_all.reward"])]


def model_is_not_there(place, patch):
    return [run_file(place, model_name_or_path="./no-model")]


def model_is_not_cached(place, patch):
    return [run_file(place, model_name_or_path="nobody/nothing-1B")]


def model_is_a_pickle(place, patch):
    folder = model_copy(place)
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    return [run_file(place, model_name_or_path=str(folder))]


def weights_are_cut_off(place, patch):
    folder = model_copy(place)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:100_000])
    return [run_file(place, model_name_or_path=str(folder))]


def tokenizer_outgrew_the_model(place, patch):
    folder = model_copy(place)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": 70}))
    return [run_file(place, model_name_or_path=str(folder))]


def tags_of_several_tokens(place, patch):
    from models import qwen3

    folder = place / "model"
    qwen3(4096).save_pretrained(folder)
    shutil.copytree(TEXT_TOKENIZER, folder, dirs_exist_ok=True)
    written = json.loads((folder / "tokenizer.json").read_text())
    written["added_tokens"] = [token for token in written["added_tokens"] if "think" not in token["content"]]
    (folder / "tokenizer.json").write_text(json.dumps(written))
    return [run_file(place, model_name_or_path=str(folder))]


def stock_sampler_runs_on(place, patch):
    return [run_file(place, STOCK, model_name_or_path=str(model_copy(place, eos_token_id=[1])))]


def dataset_lacks_a_column(place, patch):
    (place / "data").mkdir()
    (place / "data/train.jsonl").write_text(json.dumps({"prompt": "a=1<think>", "context": "a=1"}) + "\n")
    return [run_file(place, dataset_name=str(place / "data"))]


def dataset_is_of_other_text(place, patch):
    (place / "data").mkdir()
    row = {"prompt": "Paris is<think>", "context": "Paris is", "target": " a city", "id": "doc:3"}
    (place / "data/train.jsonl").write_text(json.dumps(row) + "\n")
    return [run_file(place, dataset_name=str(place / "data"))]


def prompt_longer_than_the_model(place, patch):
    return [run_file(place, max_completion_length=120)]


def output_not_writable(place, patch):
    (place / "file").write_text("")
    return [run_file(place, output_dir=str(place / "file/out"))]


def disk_is_full(place, patch):
    patch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10**6, 10**6 - 1000, 1000))
    return [run_file(place)]


def checkpoint_without_an_ema(place, patch):
    folder = checkpoint(place, 20)
    (folder / "rl_think/ema.safetensors").unlink()
    return [run_file(place, resume_from_checkpoint=str(folder))]


def checkpoint_with_a_broken_average(place, patch):
    folder = checkpoint(place, 20)
    (folder / "rl_think/ema.json").write_text("")
    return [run_file(place, resume_from_checkpoint=str(folder))]


def newest_checkpoint_is_cut_off(place, patch):
    checkpoint(place, 20)
    (checkpoint(place, 30) / "trainer_state.json").unlink()
    return [run_file(place, resume_from_checkpoint=True)]


def run_begins_anew_beside_checkpoints(place, patch):
    checkpoint(place, 40)
    return [run_file(place)]


def weights_in_shards(place, patch):
    return [run_file(place, STOCK, accelerate_config="zero3")]


def checkpoint(place, step):
    folder = place / f"out/checkpoint-{step}"
    (folder / "rl_think").mkdir(parents=True)
    (folder / "trainer_state.json").write_text("{}")
    for name, decay in (("ema", 0.999), ("frozen", 1.0)):
        (folder / f"rl_think/{name}.safetensors").write_bytes(b"")
        (folder / f"rl_think/{name}.json").write_text(json.dumps({"decay": decay}))
    return folder


SETUPS = {
    version_outside_the_range: ("broken", "peft 0.1.0 is outside the supported range >=0.19"),
    version_untested: ("warn", "accelerate 1.14.9 is supported, but 1.15.0 is the tested version"),
    data_extra_missing: ("absent", "nltk cannot be imported"),
    trl_missing: ("broken", "trl is not there"),
    trl_lost_a_private_name: ("broken", "has no GRPOTrainer._calculate_rewards"),
    trl_untested: ("warn", "trl 1.17.0 is not the tested 1.16.x"),
    vllm_outside_trls_range: ("warn", "vllm 0.1.0 is outside the range"),
    no_compiler: ("warn", "No C++ compiler is found (looked for c++, g++"),
    no_kernels: ("warn", "The compiled kernels are not there (No module named '_native')"),
    plugin_raises: ("broken", "The plugin `evil` (evil_plugin) raises RuntimeError"),
    plugin_imports_what_is_not_there: ("broken", "No module named 'surely_not_installed'"),
    verl_untested: ("warn", "verl 0.10.0 is not the tested 0.9.1"),
    verl_name_that_cannot_be_imported: ("broken", "RLMTRewardManager cannot be used under verl"),
    verl_told_to_leave_our_plugin_out: ("warn", "VERL_USE_EXTERNAL_PLUGINS=late,others leaves rl_think out"),
    file_is_no_yaml: ("broken", "run.yaml, line 2: not plain YAML"),
    file_is_not_there: ("broken", "gone.yaml: No such file"),
    key_given_twice: ("broken", "run.yaml, line 2: the key `max_steps` is given twice"),
    key_unknown: ("broken", "unknown key `max_step`; did you mean `max_steps`?"),
    key_unknown_to_the_launcher_too: ("broken", "unknown key `num_procesess`; did you mean `num_processes`?"),
    key_of_the_wrong_type: ("broken", "run.yaml: `max_steps`: invalid int value: 'many'"),
    setting_unknown: ("broken", "unknown key `baselin`; did you mean `baseline`?"),
    settings_file_missing: ("broken", "RL_THINK_CONFIG=nowhere/rlp.yaml: no such file"),
    setting_is_not_rlp: ("broken", "scale_rewards: 'group' is not RLP"),
    setting_differs_from_rlp: ("warn", "beta: 0.04 differs from RLP"),
    bf16_on_a_cpu: ("broken", "bf16 on a CPU (TRL's default) rounds the rewards away"),
    bf16_where_no_gpu_is: ("broken", "bf16 (TRL's default) needs a GPU, and torch sees none"),
    file_without_rlp: ("warn", "has no `rl_think:` block"),
    further_reward_is_not_there: ("broken", "The reward nowhere_at_all.reward raises"),
    model_is_not_there: ("broken", "there is no folder ./no-model"),
    model_is_not_cached: ("unchecked", "nobody/nothing-1B is taken as a hub name and is not in the cache"),
    model_is_a_pickle: ("broken", "holds pytorch_model.bin, and only safetensors are loaded"),
    weights_are_cut_off: ("broken", "model.safetensors cannot be read"),
    tokenizer_outgrew_the_model: ("broken", "The tokenizer has 80 entries, the model an embedding for 70"),
    tags_of_several_tokens: ("broken", "</think> is 5 tokens here"),
    stock_sampler_runs_on: ("broken", "sampling would not stop at </think>: add 3 to `eos_token_id`"),
    dataset_lacks_a_column: ("broken", "column `target` is missing; there are prompt, context"),
    dataset_is_of_other_text: ("broken", "row doc:3: `context` holds the unknown token"),
    prompt_longer_than_the_model: ("broken", "do not fit into the model's 128 positions"),
    output_not_writable: ("broken", "file/out: Not a directory"),
    disk_is_full: ("broken", "Only 1 kB free"),
    checkpoint_without_an_ema: ("broken", "No EMA file in checkpoint-20: rl_think/ema.safetensors is missing"),
    checkpoint_with_a_broken_average: ("broken", "checkpoint-20/rl_think/ema.json cannot be read as JSON: Expecting"),
    newest_checkpoint_is_cut_off: ("warn", "No trainer_state.json in checkpoint-30"),
    run_begins_anew_beside_checkpoints: ("warn", "already holds checkpoint-40"),
    weights_in_shards: ("broken", "DeepSpeed ZeRO-3 splits the weights over processes"),
}


@pytest.fixture(scope="module")
def reports(tmp_path_factory):
    """Every set-up examined once."""
    found = {}
    for setup in SETUPS:
        with pytest.MonkeyPatch.context() as patch:
            found[setup] = doctor(*setup(tmp_path_factory.mktemp(setup.__name__), patch))
    return found


@pytest.mark.parametrize("setup", SETUPS, ids=lambda setup: setup.__name__)
def test_set_up_is_told_by_its_own_sentence(reports, setup):
    state, words = SETUPS[setup]
    report = reports[setup]
    said = [finding for finding in report.at(state) if words in finding["found"]]
    assert len(said) == 1, report.findings
    assert said[0]["todo"].strip()
    assert report.status == bool(report.at("broken"))
    assert (state == "broken") <= (report.status == 1)


def test_no_two_set_ups_share_a_sentence(reports):
    said = {
        setup.__name__: [f["found"] for f in reports[setup].at(state) if words in f["found"]]
        for setup, (state, words) in SETUPS.items()
    }
    assert max(Counter(sentence for found in said.values() for sentence in found).values()) == 1


def test_one_fault_is_one_broken_line(reports):
    """What cannot be looked at because of it is not broken as well."""
    alone = [s for s, (state, _) in SETUPS.items() if state == "broken" and s not in (trl_missing, model_is_not_there)]
    assert {s.__name__: len(reports[s].at("broken")) for s in alone} == {s.__name__: 1 for s in alone}


def test_an_exception_that_is_not_ours_brings_its_trace_without_secrets(reports):
    (finding,) = reports[plugin_raises].at("broken")
    assert 'evil_plugin.py", line 1' in finding["trace"]
    assert "hf_***" in finding["found"] and "hf_abc" not in json.dumps(finding)
