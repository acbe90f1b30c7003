"""Small models, so that compiling is cheap; `REFERENCES` are what PyTorch computed (`data/make.py`)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import jax
import numpy as np

from besteffort.opt.config import OPTConfig

REFERENCES = sorted((Path(__file__).resolve().parent / "data").glob("[0-9]*"))

TINY = OPTConfig(vocab=96, hidden=16, layers=2, heads=2, ffn=24, embedding=16, positions=64)
TINY_350M = OPTConfig(
    vocab=96, hidden=16, layers=2, heads=2, ffn=24, embedding=12, positions=64, norm_first=False, final_norm=False
)

PROMPTS = [[int(token) for token in np.random.default_rng(i).integers(3, TINY.vocab, 1 + i)] for i in range(9)]


@contextmanager
def no_compilation() -> Iterator[None]:
    """JAX compiles nothing inside, nor loads a program from its cache."""
    compiled = []

    def listen(name: str, duration_secs: float, **_: object) -> None:
        if name == "/jax/core/compile/backend_compile_duration":
            compiled.append(duration_secs)

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)
    assert compiled == []
