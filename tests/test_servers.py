"""The tiny reward model behind a real vLLM, which `make servers` installs into an environment of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from reward_models import chat, save_reward_model

from rl_think_ext.errors import UserError
from rl_think_ext.methods.rlmt import RLMTConfig
from rl_think_ext.records import Score
from rl_think_ext.scoring.reward_input import RewardInput
from rl_think_ext.scoring.reward_model import LocalRewardModel, load_reward_model
from rl_think_ext.scoring.served import ServedRewardModel

pytestmark = pytest.mark.slow
VENV = Path(__file__).parent.parent / ".venv-servers"
SECONDS_TO_START = 240
CHATS = [chat(f"question {'of ' * (i % 7)}{i}", f"answer {i * i} " * (1 + i % 11)) for i in range(60)]


class Server:
    """vLLM with a reward model, on a port of its own; may be killed and started again."""

    def __init__(self, model: Path, log: Path) -> None:
        self.model, self.log = model, log
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        command = [str(VENV / "bin/python"), "-m", "vllm.entrypoints.openai.api_server", "--model", str(self.model)]
        command += ["--served-model-name", "rm", "--host", "127.0.0.1", "--port", str(self.port), "--runner", "pooling"]
        command += ["--max-model-len", "512", "--enforce-eager", "--dtype", "float32"]
        environment = os.environ | {"VLLM_CPU_KVCACHE_SPACE": "1", "HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env=environment, cwd=self.log.parent, start_new_session=True
            )
        end = time.monotonic() + SECONDS_TO_START
        while not self.healthy():
            assert self.process.poll() is None and time.monotonic() < end, self.log.read_text()[-3000:]
            time.sleep(0.5)

    def healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as reply:
                return bool(reply.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def num_requests(self) -> int:
        return self.log.read_text().count('"POST /classify')

    def stop(self, number: int = signal.SIGTERM) -> None:
        """End the processes of this server's own group."""
        if self.process is None:
            return
        group, self.process = self.process, None
        for sent in (number, signal.SIGKILL):
            try:
                os.killpg(group.pid, sent)
                group.wait(15)
            except ProcessLookupError:
                return
            except subprocess.TimeoutExpired:
                continue


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    if not (VENV / ".ready").exists() or (VENV / ".unfinished").exists():
        pytest.skip("no .venv-servers here: run `make servers` first")
    folder = tmp_path_factory.mktemp("server")
    # vLLM's attention on a CPU takes heads of 32 and more.
    model = save_reward_model(folder / "rm", hidden_size=64, intermediate_size=96, head_dim=32, dtype="float32")
    started = Server(model, folder / "server.log")
    try:
        started.start()
        yield started
    finally:
        started.stop()


def config(running: Server, **changes: object) -> RLMTConfig:
    values = {"reward_model": str(running.model), "dtype": "float32", "retries": 0} | changes
    return RLMTConfig(**values)  # type: ignore[arg-type]


def served(running: Server, **changes: object) -> ServedRewardModel:
    model = load_reward_model(config(running, server=running.url, server_model="rm", **changes))
    assert isinstance(model, ServedRewardModel)
    return model


def largest_difference(one: Sequence[Score], other: Sequence[Score]) -> float:
    assert [score.reason for score in one] == [score.reason for score in other]
    pairs = [(a.value, b.value) for a, b in zip(one, other, strict=True)]
    return max(abs(a - b) for a, b in pairs if a is not None and b is not None)


def test_scores_are_those_of_this_process(server: Server) -> None:
    long = [chat("word " * 900, "answer"), chat("question", "answer " * 900)]
    model, local = served(server), LocalRewardModel(config(server))
    scores = model([*CHATS, *long])
    assert largest_difference(scores, local([*CHATS, *long])) <= 1e-4
    values = [score.value for score in scores if score.value is not None]
    assert len(values) == len(CHATS) + 1 and max(values) - min(values) > 0.1
    assert model.stats["num_cut"] == 1 and model.stats["noise"] <= 1e-4


def test_exactly_one_bos_reaches_the_server(server: Server) -> None:
    model = served(server)
    tokenizer = model.template.tokenizer
    found = model.encode(CHATS[0])
    assert isinstance(found, RewardInput)
    # Text would have got a second one from this tokenizer: the server's count of tokens says what it read.
    assert found.ids.count(tokenizer.bos_token_id) == 1
    text = model.template.text(CHATS[0])
    assert tokenizer(text)["input_ids"].count(tokenizer.bos_token_id) == 2
    num_read = model.endpoint.ask(
        "/classify",
        [{"input": given, "use_activation": False} for given in (found.ids, text)],
        lambda reply: reply["usage"]["prompt_tokens"],
    )
    assert num_read == [len(found.ids), len(found.ids) + 1]


def test_an_input_too_long_for_the_server_does_not_take_others_along(server: Server) -> None:
    model = served(server, max_concurrency=1)
    model.template.max_length = 600
    scores = model([*CHATS[:3], chat("word " * 900, "answer")])
    assert [score.value is None for score in scores] == [False, False, False, True]
    assert "maximum context length is 512 tokens" in str(scores[-1].reason)


def test_f4_another_name_is_a_wrong_setting(server: Server) -> None:
    with pytest.raises(UserError, match="The model `other` does not exist"):
        load_reward_model(config(server, server=server.url, server_model="other"))(CHATS[:2])


def test_f1_killed_in_the_middle_it_scores_no_more_until_it_is_started_again(server: Server) -> None:
    model = served(server, cache_size=0, max_concurrency=1, timeout=5.0, deadline=60.0)
    many = [chat(f"question {i}", f"answer {i}") for i in range(3000)]
    num_before = server.num_requests()
    with ThreadPoolExecutor(1) as pool:
        later = pool.submit(model, many)
        while server.num_requests() < num_before + 3:
            assert not later.done()
            time.sleep(0.01)
        server.stop(signal.SIGKILL)
        scores = later.result()
    values = [score.value for score in scores]
    num_scored = len(values) - values.count(None)
    assert 8 <= num_scored < len(many) and None not in values[:num_scored]
    assert {str(score.reason).split(":")[1] for score in scores[num_scored:]} == {" connection"}
    server.start()
    assert largest_difference(model(many[:8]), scores[:8]) <= 1e-4
