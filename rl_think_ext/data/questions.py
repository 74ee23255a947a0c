"""The flags that RLMT's asking builders share, the prompts that they draw, and a chat server as the one who answers."""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from typing import Any

from rl_think_ext.data.asking import OnReply, Question, Texts
from rl_think_ext.data.cells import Columns, source_name
from rl_think_ext.data.prompts import COLUMNS, Prompt, PromptFilter, built_splits, columns_of, read_prompts
from rl_think_ext.data.sources import Tally
from rl_think_ext.errors import UserError
from rl_think_ext.template import Style

# Requests asked together, for each that is on its way at once: between portions the slowest is waited for.
PORTION = 4
EXCLUDED = "also among the excluded prompts"
_SOURCES = ("input", "tokenizer", "model", "instruction_file", "reward_model")


@dataclass(frozen=True, kw_only=True)
class AskConfig:
    """Which prompts are asked about, and how hard.

    Args:
        input: Prompts: a folder that rl-think data rlmt built, a .parquet, .jsonl or .txt file, a folder of these, or
            a `datasets` name.
        output: The folder that is made. It appears only when everything is in it; replies are kept in OUTPUT.journal
            as they come, and an interrupted build goes on with them.
        model: The model's name on the server.
        column: The column of the prompts; without it the first of messages, prompt and text that is there.
        id_column: The column that holds a prompt's id; without it file and row number are the id.
        split: Which split to read of a `datasets` name, or of a folder that rl-think data built.
        exclude: Prompts that must not be among these, in any form that `input` may have (all splits of a folder).
        num_prompts: How many prompts are drawn, by a hash of their text and `seed`; None takes all, in their order.
        seed: Decides which prompts are drawn.
        style: The form of an output. think: a thought, then the answer; response: the same in tags for a raw base
            model.
        instruction_file: A text in place of the words that ask for the form.
        tokenizer: The policy's, a folder or hub name, to count lengths with. Without it nothing is too long.
        top_p: Share of the distribution that is sampled from.
        max_tokens: Tokens of a reply at most; one that is cut off there is refused.
        api_key_env: The environment variable that holds the server's key; the key itself is never a flag.
        max_concurrency: Requests on their way at once.
        timeout: Seconds that a request may take.
        deadline: Seconds that one portion of requests may take, retries included.
        retries: How often a request is repeated.
        max_failed_share: Stop when a larger share of the requests fails; what came is kept.
        max_skipped_share: Stop when a larger share of the rows of the input cannot be used at all.
        overwrite: Replace a dataset that an earlier build left in `output`.
    """

    input: str
    output: str
    model: str
    column: str | None = None
    id_column: str = "id"
    split: str = "train"
    exclude: tuple[str, ...] = ()
    num_prompts: int | None = None
    seed: int = 0
    style: Style = "think"
    instruction_file: str | None = None
    tokenizer: str | None = None
    top_p: float = 1.0
    max_tokens: int = 4096
    api_key_env: str | None = None
    max_concurrency: int = 64
    timeout: float = 300.0
    deadline: float = 3600.0
    retries: int = 4
    max_failed_share: float = 0.1
    max_skipped_share: float = 0.2
    overwrite: bool = False

    def __post_init__(self) -> None:
        for name in ("num_prompts", "max_tokens", "max_concurrency"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UserError(f"`{name}` is at least 1, got {value}")
        for name in ("max_failed_share", "max_skipped_share"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise UserError(f"`{name}` is from 0 to 1, got {getattr(self, name)}")
        if not 0.0 < self.top_p <= 1.0:
            raise UserError(f"`top_p` is above 0 and at most 1, got {self.top_p}")


def draw_prompts(config: AskConfig, wanted: PromptFilter, tally: Tally) -> list[Prompt]:
    """The prompts that are asked about: all in their order, or `num_prompts` of them by a hash.

    Raises:
        UserError: an input that cannot be used, or no prompt is left.
    """
    columns = columns_of(config.column, config.id_column, config.split)
    wanted.elsewhere = dict.fromkeys(_excluded(config), EXCLUDED)
    rows = read_prompts(config.input, columns, max_skipped_share=config.max_skipped_share, tally=tally)
    found: Iterable[Prompt] = filter(wanted, rows)
    if config.num_prompts is not None:
        found = heapq.nsmallest(
            config.num_prompts, found, key=lambda p: sha256(f"{config.seed}\0{p.key}".encode()).digest()
        )
    prompts = list(found)
    if not prompts:
        reasons = ", ".join(f"{reason} {n}" for reason, n in sorted((tally.skipped + wanted.left_out).items()))
        raise UserError(f"{source_name(config.input)} gave no prompt ({reasons})")
    return prompts


def not_drawn(tally: Tally, wanted: PromptFilter, num_prompts: int) -> dict[str, int]:
    """For a card, so that its counts add up: the prompts that `num_prompts` left, where there are any."""
    num = tally.rows - tally.skipped.total() - wanted.left_out.total() - num_prompts
    return {"prompts not drawn": num} if num else {}


def _excluded(config: AskConfig) -> Iterator[str]:
    for source in config.exclude:
        # Every split of a dataset: neither the prompts that are trained on nor those that are tested on.
        for file in map(str, built_splits(source).values() or [source]):
            # The input's column or a usual one; no id, for a second text under an id is to be kept out as well.
            first, *also = dict.fromkeys((config.column or COLUMNS[0], *COLUMNS))
            columns = Columns(first, "", config.split, tuple(also), chat=True)
            yield from (prompt.key for prompt in read_prompts(file, columns, max_skipped_share=1.0))


class ChatAsker:
    """Asks a server that speaks OpenAI's chat API; a failure is told by its reason.

    Args:
        config: Tokens, concurrency, times.
        url: Where the server is.
        temperature: Of sampling.
        num_samples: Texts of one reply.
    """

    def __init__(self, config: AskConfig, url: str, temperature: float, num_samples: int = 1) -> None:
        from rl_think_ext.scoring.endpoint import Endpoint, EndpointConfig

        self.config, self.temperature, self.num_samples = config, temperature, num_samples
        self.endpoint = Endpoint(
            EndpointConfig(
                url,
                api_key_env=config.api_key_env,
                max_concurrency=config.max_concurrency,
                timeout=config.timeout,
                deadline=config.deadline,
                retries=config.retries,
            )
        )

    def __call__(self, questions: Sequence[Question], on_reply: OnReply) -> None:
        """Ask all of them at once, as many at a time as the endpoint allows."""
        from rl_think_ext.scoring.chat import Reply, chat
        from rl_think_ext.scoring.endpoint import Failure

        def read(index: int, reply: Reply | Failure) -> None:
            if isinstance(reply, Failure):
                on_reply(index, reply.reason)
            else:
                texts = Texts(list(reply.texts), list(reply.finished), reply.prompt_tokens, reply.completion_tokens)
                on_reply(index, texts)

        chat(
            self.endpoint,
            self.config.model,
            [question.messages for question in questions],
            temperature=self.temperature,
            top_p=self.config.top_p,
            max_tokens=self.config.max_tokens,
            n=self.num_samples,
            on_reply=read,
        )


def settings_of(config: AskConfig, measured: bool, limit: str) -> dict[str, Any]:
    """The settings as they go into a card: no path of this machine, no secret; a limit only where it was held."""
    values = asdict(config)
    if not measured:
        values[limit] = "no tokenizer was given: nothing was measured"
    del values["output"], values["overwrite"]
    for name in _SOURCES:
        if values.get(name):
            values[name] = source_name(values[name])
    values["exclude"] = [source_name(source) for source in config.exclude]
    for name in ("endpoint", "reward_server"):
        if values.get(name):
            from rl_think_ext.scoring.endpoint_wire import shown_url

            values[name] = shown_url(values[name])
    return values
