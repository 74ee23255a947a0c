"""Teach language models to think with RL: RLP, RLPT and RLMT for TRL and verl."""

__version__ = "0.1.0"
