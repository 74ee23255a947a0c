"""What is small enough to ship: the miniature task with its pre-trained model, and a tokenizer for real text.

`programs` makes the task's texts, `pretrain` its model, `measure` says how well a model does; `text` makes the byte
level tokenizer and models with random weights for it. RLMT's task: `chats` and `chat_examples` make its texts,
`chat_models` its policy and its reward model, `chat_data` what the recipe trains on; `chat_measure` and `chat_twins`
say how well it goes. RLPT's: `segments` and `segment_examples`, `segment_models` and `segment_data`, `segment_measure`,
`segment_controls` and `segment_twins`. Importing this package imports none of them, nor torch.
"""

from __future__ import annotations

from pathlib import Path

PROGRAMS_MODEL: Path = Path(__file__).parent / "programs_model"
TEXT_TOKENIZER: Path = Path(__file__).parent / "text_tokenizer"
