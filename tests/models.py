"""Tiny real models for tests, from config."""

from __future__ import annotations

from typing import Any

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM


def qwen3(vocab_size: int, seed: int = 0, **changes: Any) -> Qwen3ForCausalLM:
    """A Qwen3 of some thousand weights, in training mode, whose predictions are far from uniform."""
    torch.manual_seed(seed)
    values = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "max_position_embeddings": 64,
        "initializer_range": 0.4,
        **changes,
    }
    return Qwen3ForCausalLM(Qwen3Config(vocab_size=vocab_size, **values))
