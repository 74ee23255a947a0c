"""Every command and snippet of the pages is run; a block that nobody knows how to run makes a test fail.

A new block is found by itself, on every page of PAGES. To add one, write it as a reader needs it, and
- name a file in its first line where it is one (`# run.yaml: …`, `# my_rewards.py: …`): the page's other blocks see it;
- begin a YAML block with its command (`# trl grpo --config x.yaml`) where `rl-think train --config` is not the one;
- for a new command add a line to COMMANDS, for a new thing that commands read a line to PROPS, and to WORDS what this
  machine has instead of what a page names;
- use ```text for what a program says. Commands in backticks within a sentence are checked by name and flags, not run.

Python blocks of one page run one after the other in one process, `>>>` blocks as doctests. What is fast runs in
`make test`, what trains in `make test-slow`.
"""

from __future__ import annotations

import doctest
import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import yaml
from docs_checks import check_block, check_links, check_words, kind_of, starts_a_run
from docs_runner import NOT_RUN, ROOT, Block, Command, Machine, Prop, Stage, blocks, commands, rule_of, spans

from rl_think_ext.cli.train import METHODS
from rl_think_ext.errors import UserError

PAGES = sorted(
    {
        ROOT / "README.md",
        *ROOT.glob("docs/**/*.md"),
        *ROOT.glob("recipes/**/README.md"),
        *ROOT.glob("examples/**/*.md"),
        *ROOT.glob("examples/**/*.ipynb"),
    }
)

# What a page names -> what this machine has instead.
WORDS = {
    "Qwen/Qwen3-1.7B-Base": "models/tiny",
    "max_completion_length: 2048": "max_completion_length: 8",
    "out/rlp/checkpoint-100": "out/rlp/checkpoint-2",
    "my_org/my_policy": "recipes/rlmt/tiny/models/policy",
    "my_org/my_reward_model": "recipes/rlmt/tiny/models/reward",
    "Skywork/Skywork-Reward-Llama-3.1-8B-v0.2": "recipes/rlmt/tiny/models/reward",
    "/shared/data/rlp": "data/rlp",
    "server: http://localhost:8000": "backend: local",
    "max_completion_length: 4096": "max_completion_length: 48",
    "bf16: true": "bf16: false",
    "my_org/my_cold_start": "recipes/rlpt/tiny/models/policy",
    "my_corpus.jsonl": "recipes/rlpt/tiny/texts",
    "server: http://judge:8000\n    judge_model: my_org/my_judge": "judge: rule",
    "max_completion_length: 8192": "max_completion_length: 48",
}
# What a page's own run.yaml gets, where it says nothing else, to run on a CPU.
KEYS = {"use_cpu": "true", "bf16": "false", "gradient_checkpointing": "false", "report_to": "none", "dtype": "float32"}
# Put behind a command that trains. A page's own batch is left as it is, so that it is known to fit its groups.
SMALL = "--max_steps 2 --save_strategy no --logging_steps 1"
TINY = f"{SMALL} --max_completion_length 8 --per_device_train_batch_size 8 --num_generations 4"
RLMT_TINY = f"{SMALL} --per_device_train_batch_size 8 --num_generations 4"
# The tiny model's weights are random: its thoughts hardly move a prediction.
FEW = "--num-thoughts 8 --max-thought-tokens 8 --max-positions 24 --min-gain 0.000001"
MAIN_PPO = "python -m verl.trainer.main_ppo"
COMMANDS = (
    Command("pip install"),  # its extras and requirements are read; nothing is installed
    Command("ray start"),  # its flags are read; nothing is started
    # Composed by hydra and checked as a run's start does; nothing is started (verl_compose.py).
    Command(MAIN_PPO, slow=True),
    Command("make demo", "ARGS='--steps 2 --test-rows 8'", slow=True),
    Command("make test", "ARGS='--collect-only -q tests/test_segment.py'"),
    Command("rl-think data rlmt-dpo", "--num-prompts 48 --min-parsed 2", slow=True),
    # Its texts are the miniature task's: sentences of ten characters.
    Command("rl-think data rlpt --input my_corpus.jsonl", "--min-segment-chars 8 --no-rules --dedup exact"),
    Command("rl-think data"),
    Command("rl-think doctor run.yaml", slow=True),
    Command("rl-think doctor --live", slow=True),
    Command("rl-think doctor"),
    Command("rl-think gain", FEW, slow=True),
    Command("rl-think report"),
    Command("rl-think judge check"),
    Command("rl-think replay", slow=True),
    Command("rl-think train --config recipes/rlp/tiny", TINY, slow=True),
    Command("rl-think train --config recipes/rlmt/tiny/sft", SMALL, slow=True),
    Command("rl-think train --config recipes/rlmt/tiny/dpo", SMALL, slow=True),
    Command("rl-think train --config recipes/rlmt/tiny", RLMT_TINY, slow=True),
    Command("trl sft", SMALL, slow=True),
    Command("python -m rl_think_ext.tiny.segment_measure", "--rows 16", slow=True),
    Command("python -m rl_think_ext.tiny.segment_twins", "--seeds 0 --steps 2 --test-rows 8 --seconds 1", slow=True),
    Command("rl-think train", SMALL, slow=True),
    Command("rl-think demo", "--seeds 0 --steps 2 --test-rows 8", slow=True),
    Command("trl grpo --config recipes/rlp/tiny", TINY, slow=True),
    Command("trl grpo --config recipes/rlmt/tiny", RLMT_TINY, slow=True),
    Command("python -m rl_think_ext.tiny.chat_measure", "--rows 64", slow=True),
    Command("python -m rl_think_ext.tiny.chat_twins", "--seeds 0 --steps 2", slow=True),
    Command("trl grpo", SMALL, slow=True),
    Command("python examples/lessons/tag_leak.py", "--steps 5", slow=True),
    Command("python examples/lessons/inflated_gain.py", "--steps 5", slow=True),
    Command("python examples/lessons/unreadable_thoughts.py", "--pretraining 2 --warm 2 --steps 5", slow=True),
    Command("python examples/lessons/selection.py", "--pretraining 2 --steps 5 --num-samples 1", slow=True),
    Command("python examples/lessons/dead_groups.py", "--seeds 0 --steps 5 --num-rows 64 --num-thoughts 2", slow=True),
)


def tiny_model(stage: Stage) -> None:
    from rl_think_ext.tiny.text import save_text_model

    save_text_model(stage.folder / "models/tiny", 32, 1)


def texts(stage: Stage) -> None:
    from rl_think_ext.tiny.prose import prose

    rows = [json.dumps({"id": f"doc{i}", "text": " ".join(prose(i, 3))}) + "\n" for i in range(12)]
    (stage.folder / "my_texts.jsonl").write_text("".join(rows))


def prompts(stage: Stage) -> None:
    asked = ("a poem about rain", "a letter to a neighbour", "ten names for a boat", "a plan for a walk")
    rows = [json.dumps({"prompt": f"Write {what}, number {i}."}) + "\n" for i in range(4) for what in asked]
    (stage.folder / "my_prompts.jsonl").write_text("".join(rows))


def questions(stage: Stage) -> None:
    from datasets import Dataset

    asked = [(f"What is {i} times 3?", str(3 * i)) for i in range(16)]
    rows = [{"id": q, "context": q, "prompt": f"{q}<think>", "target": answer} for q, answer in asked]
    (stage.folder / "data/questions").mkdir(parents=True)
    Dataset.from_list(rows).to_parquet(stage.folder / "data/questions/train.parquet")


def segments(stage: Stage) -> None:
    shutil.copytree(ROOT / "recipes/rlpt/tiny/data", stage.folder / "data/rlpt")


def instruction(stage: Stage) -> None:
    (stage.folder / "my_instruction.txt").write_text("Think in <think>, then go on:\n{context}\n")


def stock_settings(stage: Stage) -> None:
    (stage.folder / "rlp.yaml").write_text("rlp:\n  num_target_tokens: 1\n")


def run_of_readme(stage: Stage) -> None:
    block = next(block for block in blocks(ROOT / "README.md") if block.file == "run.yaml")
    (stage.folder / "run.yaml").write_text(MACHINE.adapted(block.text, is_run=True))


def left_by(line: str, *needs: str) -> Prop:
    """A prop that one command of ours leaves, after the props that it needs."""

    def make(stage: Stage) -> None:
        for name in needs:
            stage.place(name)
        stage.run(line.split(), "PROPS")

    return Prop(make, slow="train" in line or "gain" in line)


RECIPE = f"rl-think train --config recipes/rlp/tiny/train.yaml {TINY} --log_completions true --logging_steps 1"
# What commands read and no block of the page makes.
PROPS = {
    "models/tiny": Prop(tiny_model),
    "my_texts.jsonl": Prop(texts),
    "my_prompts.jsonl": Prop(prompts),
    "my_instruction.txt": Prop(instruction),
    "rlp.yaml": Prop(stock_settings),
    "run.yaml": Prop(run_of_readme, brings=("models/tiny", "data/rlp")),
    "data/rlmt": left_by(
        "rl-think data rlmt --input my_prompts.jsonl --output data/rlmt --test-share 0.2", "my_prompts.jsonl"
    ),
    "data/rlp": left_by(
        "rl-think data rlp --input my_texts.jsonl --output data/rlp --tokenizer models/tiny",
        "my_texts.jsonl",
        "models/tiny",
    ),
    "data/questions": Prop(questions),
    "data/rlpt": Prop(segments),
    "data/rpt": left_by(
        "rl-think data rlp --input my_texts.jsonl --output data/rpt --tokenizer models/tiny --num-positions 4 "
        "--sampler random --elicit instruct",
        "my_texts.jsonl",
        "models/tiny",
    ),
    "out/rlp": left_by(f"{RECIPE} --output_dir out/rlp --save_strategy steps --save_steps 2"),
    "out/rlpt": left_by(f"rl-think train --config recipes/rlpt/tiny/train.yaml {RLMT_TINY} --output_dir out/rlpt"),
    "out/rlp-other": left_by(f"{RECIPE} --output_dir out/rlp-other --seed 1"),
    "out/gain": left_by(
        f"rl-think gain --model models/tiny --data data/rlp --output out/gain {FEW}", "models/tiny", "data/rlp"
    ),
}
MACHINE = Machine(WORDS, KEYS, PROPS)

# --- every block ----------------------------------------------------------------------------------------------------

ALL = [block for page in PAGES for block in blocks(page)]
DOCTESTS = {page: [b for b in ALL if b.page == page and ">>>" in b.text] for page in PAGES}
# A file is imported by the blocks that use it.
SCRIPTS = {
    page: [b for b in ALL if b.page == page and b.language == "python" and not b.file and ">>>" not in b.text]
    for page in PAGES
}


def is_slow(block: Block) -> bool:
    if any(PROPS[name].slow for name in MACHINE.needed(block.text)):
        return True
    if block.language == "sh":
        return any(rule.slow for rule in COMMANDS if re.search(rf"\b{re.escape(rule.starts)}\s", block.text))
    return starts_a_run(block) if block.language == "yaml" else ".train(" in block.text


def marked(found: list[Block]) -> list[pytest.MarkDecorator]:
    return [pytest.mark.slow] if any(map(is_slow, found)) else []


@pytest.fixture(scope="session")
def made() -> dict[str, Path]:
    """Props that were made already, by name."""
    return {}


@pytest.fixture
def stage(tmp_path: Path, made: dict[str, Path]) -> Stage:
    return Stage(tmp_path / "stage", MACHINE, made)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_command_key_and_link_of_a_page_exists(page: Path) -> None:
    check_links(page)
    for block in blocks(page):
        check_block(block, COMMANDS)
    for span in spans(page):
        check_words(span.split(), f"{page.name}: `{span}`")


@pytest.mark.parametrize(
    "block", [pytest.param(b, id=b.name, marks=marked([b])) for b in ALL if b.language in ("sh", "yaml")]
)
def test_block_runs(block: Block, stage: Stage) -> None:
    run(block, stage)


@pytest.mark.parametrize(
    "page", [pytest.param(page, id=page.name, marks=marked(found)) for page, found in SCRIPTS.items() if found]
)
def test_python_of_a_page_runs(page: Path, stage: Stage) -> None:
    run_script(SCRIPTS[page], stage)


@pytest.mark.parametrize("page", [pytest.param(page, id=page.name) for page, found in DOCTESTS.items() if found])
def test_doctests_of_a_page_hold(page: Path, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    run_doctests(DOCTESTS[page], stage, monkeypatch)


def run(block: Block, stage: Stage) -> None:
    check_block(block, COMMANDS)
    if block.language == "sh":
        stage.dress(block)
        for words in commands(block):
            if words[0] not in NOT_RUN:
                stage.run(on_the_wire(words, stage, block), block.name)
    elif starts_a_run(block) and not is_used(block):
        stage.dress(block)
        run_config(block, stage)


def is_used(block: Block) -> bool:
    """Whether a command of the same page reads this block as its file: then it runs there."""
    others = [other for other in blocks(block.page) if other.language == "sh"]
    return block.file is not None and any(block.file in words for other in others for words in commands(other))


def on_the_wire(words: list[str], stage: Stage, block: Block) -> list[str]:
    rule = rule_of(words, COMMANDS, block.name)
    sent = [MACHINE.adapted(word) for word in words] + shlex.split(rule.behind)
    if " ".join(words[:3]) == MAIN_PPO:
        sent[1:3] = ["tests/verl_compose.py"]
    # .venv is ready, whatever the times of the files say: nothing is installed here.
    return [sent[0], "-o", ".venv/.ready", *sent[1:]] if sent[0] == "make" else sent


def run_config(block: Block, stage: Stage) -> None:
    """Start a run's YAML; what a fragment leaves out comes from the recipe of the miniature task."""
    is_whole = "model_name_or_path" in yaml.safe_load(block.text)
    given = yaml.safe_load(MACHINE.adapted(block.text, is_whole))
    told = re.match(r"# ((?:\w+=\S+ )?(?:rl-think train|trl grpo)) --config", block.text)
    named = any(str(name).startswith("rl_think_ext.trl.") for name in given.get("reward_funcs", []))
    command = told[1] if told else "trl grpo" if named and "rl_think" not in given else "rl-think train"
    method, trainer = kind_of(given.get("rl_think", {}))
    method = next((name for name in METHODS if f"rl_think_ext.trl.{name}" in given.get("reward_funcs", [])), method)
    if not is_whole:
        recipe = "trl.yaml" if "trl grpo" in command else "train.yaml" if trainer == "grpo" else f"{trainer}.yaml"
        given = yaml.safe_load((ROOT / "recipes" / method / "tiny" / recipe).read_text()) | given
    (stage.folder / "block.yaml").write_text(yaml.safe_dump(given | {"output_dir": "out/block"}))
    said = stage.run([*command.split(), "--config", "block.yaml", *(SMALL if is_whole else TINY).split()], block.name)
    assert f"{method.upper()} settings" in said, f"{block.name}: {method.upper()} did not run"


def run_script(found: list[Block], stage: Stage) -> None:
    for block in found:
        stage.dress(block)
    (stage.folder / "page.py").write_text(MACHINE.adapted("\n".join(block.text for block in found)))
    stage.run([sys.executable, "page.py"], found[0].name)


def run_doctests(found: list[Block], stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    for block in found:
        stage.dress(block)
    monkeypatch.chdir(stage.folder)
    monkeypatch.syspath_prepend(stage.folder)
    text = MACHINE.adapted("\n".join(block.text for block in found))
    case = doctest.DocTestParser().get_doctest(text, {}, found[0].name, str(found[0].page), found[0].line)
    said: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS)
    assert runner.run(case, out=said.append).failed == 0, "".join(said)


# --- the net holds --------------------------------------------------------------------------------------------------

DATA = "data rlp --input my_texts.jsonl --output data/rlp"
BROKEN = {
    "no such program": ("sh", f"rl-thnik {DATA}", "nobody knows how to run `rl-thnik data"),
    "no such command": ("sh", f"rl-think dta {DATA}", "nobody knows how to run `rl-think dta"),
    "no such flag": ("sh", f"rl-think {DATA.replace('input', 'inptu')}", "has no flag --inptu"),
    "a command that fails": ("sh", f"rl-think {DATA.replace('my_texts', 'nowhere')}", "ended with 1:.*nowhere.jsonl"),
    "no such extra": ("sh", "pip install -e '.[tlr]'", "there is no extra"),
    "no such package": ("sh", "pip install trol", "trol is no dependency"),
    "no such flag of Ray": ("sh", "ray start --haed --port=6379", "has no flag --haed"),
    "no such key of verl": (
        "sh",
        f"{MAIN_PPO} data.trian_files=a",
        "ended with 1:.*Could not override 'data.trian_files'",
    ),
    "no such target": ("sh", "make dmo", "nobody knows how to run `make dmo`"),
    "a shell": ("sh", "rl-think doctor | cat", "needs a shell"),
    "no such setting": ("yaml", "rlp:\n  baselin: ema", "did you mean `baseline`"),
    "no such value": ("yaml", "baseline: emma", "is one of ema"),
    "no such key of the trainer": ("yaml", "max_step: 3", "did you mean `max_steps`"),
    "key given twice": ("yaml", "rlp:\n  baseline: ema\n  baseline: live", "given twice"),
    "a run that fails": ("yaml", "scale_rewards: group", "ended with 1:.*is not RLP"),
    "python that raises": ("python", "assert 1 + 1 == 3", "ended with 1:.*AssertionError"),
    "python that is none": ("python", "1 +", "invalid syntax"),
    "another number": ("python", ">>> 1 + 1\n3", "Expected:\n *3"),
    "open JSON": ("json", '{"gain": ', "Expecting value"),
    "another language": ("perl", "print 1", "nobody knows how to run ```perl"),
    "no language": ("", "rl-think doctor", "nobody knows how to run ```"),
}


def run_page(page: Path, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    for block in blocks(page):
        run(block, stage)
        if block.language == "python" and ">>>" in block.text:
            run_doctests([block], stage, monkeypatch)
        elif block.language == "python":
            run_script([block], stage)


@pytest.mark.parametrize(("language", "text", "said"), BROKEN.values(), ids=BROKEN)
def test_broken_block_is_caught(
    language: str, text: str, said: str, tmp_path: Path, stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "page.md").write_text(f"# A page\n\n```{language}\n{text}\n```\n")
    with pytest.raises((AssertionError, UserError, ValueError, SyntaxError), match=f"(?s){said}"):
        run_page(tmp_path / "page.md", stage, monkeypatch)


def test_block_that_is_right_passes(tmp_path: Path, stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    install, settings = "```sh\npip install -e '.[trl]'  # once\n```", "```yaml\nrlp:\n  baseline: live\n```"
    numbers = "```python\n>>> 1 + 1\n2\n```"
    (tmp_path / "page.md").write_text(f"{install}\n\nand `rl-think demo --steps 5`\n\n{settings}\n\n{numbers}\n")
    assert spans(tmp_path / "page.md") == ["rl-think demo --steps 5"]
    run_page(tmp_path / "page.md", stage, monkeypatch)


def test_broken_span_is_caught() -> None:
    with pytest.raises(AssertionError, match="no flag --seds"):
        check_words("rl-think demo --seds 0 1".split(), "page")


def test_broken_link_is_caught(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("[here](page.md), [there](https://example.invalid), ![picture](gone.png#top)\n")
    with pytest.raises(AssertionError, match=r"gone\.png#top leads nowhere"):
        check_links(tmp_path / "page.md")


def test_every_page_is_found() -> None:
    found = {str(page.relative_to(ROOT)) for page in PAGES}
    named = {"README.md", "docs/methods.md", "docs/trl.md", "docs/extending.md", "recipes/rlp/tiny/README.md"}
    assert named | {"examples/quickstart.ipynb"} <= found
