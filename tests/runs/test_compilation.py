from __future__ import annotations

import os
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path

import pytest

from besteffort.runs.compilation import set_up_compilation

LEVEL = "--xla_backend_optimization_level"
ON_A_PROCESSOR = not entry_points(group="jax_plugins")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (None, f"{LEVEL}=2"),
        ("--xla_cpu_enable_fast_math=false", f"--xla_cpu_enable_fast_math=false {LEVEL}=2"),
        (f"{LEVEL}=3", f"{LEVEL}=3"),
    ],
)
@pytest.mark.skipif(not ON_A_PROCESSOR, reason="JAX has a plugin for an accelerator here")
def test_less_is_optimised_unless_the_user_says_how_much(
    given: str | None, expected: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path))
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    if given is not None:
        monkeypatch.setenv("XLA_FLAGS", given)
    set_up_compilation()
    assert os.environ["XLA_FLAGS"] == expected
    assert os.environ["JAX_COMPILATION_CACHE_DIR"] == str(tmp_path)


def test_a_later_process_finds_what_was_compiled(tmp_path: Path) -> None:
    script = (
        "from besteffort.runs.compilation import set_up_compilation\n"
        "set_up_compilation()\n"
        "import jax, jax.numpy as jnp\n"
        "hits = []\n"
        "jax.monitoring.register_event_listener(lambda event, **about: hits.append(event))\n"
        "jax.jit(lambda x: jnp.linalg.qr(jnp.sort(x) @ x.T)[0])(jnp.ones((8, 8)))\n"
        "print(sum(event.endswith('/cache_hits') for event in hits))\n"
    )
    environment = {key: value for key, value in os.environ.items() if not key.startswith("JAX_COMPILATION")}
    environment |= {"XDG_CACHE_HOME": str(tmp_path), "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
    counts = [
        int(subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, check=True).stdout)
        for _ in range(2)
    ]
    assert counts[0] == 0
    assert counts[1] > 0
    assert list((tmp_path / "besteffort" / "jax").iterdir())
