"""A situation that the tests of workloads share, and writers of files in the schemas of public traces."""

from __future__ import annotations

import gzip
from collections.abc import Callable
from pathlib import Path

import pytest

from besteffort.profile import load_profile
from besteffort.situation import Cluster, Deadline, Situation, Task


@pytest.fixture(scope="session")
def situation() -> Situation:
    """Two tasks with unlike shares, lengths and deadlines."""
    tasks = (
        Task("piqa", share=3.0, prompt_tokens=(10, 12), output_tokens=(1, 4), deadline=Deadline(0.2, 0.01)),
        Task("lambada", share=1.0, prompt_tokens=(100, 180), output_tokens=(20, 20), deadline=Deadline(0.5, 0.02)),
    )
    return Situation(load_profile("opt-a100"), Cluster(), tasks)


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], Path]:
    """Writes a text file, compressed if its name says so, and returns its path."""

    def write_text(name: str, text: str) -> Path:
        path = tmp_path / name
        content = text.encode()
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        return path

    return write_text
