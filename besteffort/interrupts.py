"""Interrupts from the keyboard: the signal sets a flag, and long work looks at it where it can stop whole.

Raised anywhere, a `KeyboardInterrupt` may end in a callback of a library, which swallows it. So the handler only sets a
flag, and `check` raises at log points and wherever else work can stop. What does not look soon, such as a compiler, is
ended: all files are written whole or not at all, and trainings continue from their checkpoints bit for bit, so nothing
is lost by that either.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

STATUS = 130
"""Exit status of an interrupted command: 128 and the number of the signal."""

_GRACE_S = 3.0  # for work to look at the flag

_asked = threading.Event()


def check() -> None:
    """Raises if an interrupt has come.

    Raises:
      KeyboardInterrupt: if it has.
    """
    if _asked.is_set():
        raise KeyboardInterrupt


def requested() -> bool:
    """Whether an interrupt has come."""
    return _asked.is_set()


def advise(text: str) -> None:
    """Says for `last_words` what an interrupted command leaves and how it goes on."""
    global _advice
    _advice = text


def last_words(name: str) -> str:
    """The sentence to end with, after the name of the program."""
    return f"{name}: interrupted; {_advice}."


_NO_ADVICE = "what was written stays"
_advice = _NO_ADVICE


@contextlib.contextmanager
def handled(name: str) -> Iterator[None]:
    """Makes interrupts set the flag while the block runs, in the main thread; elsewhere it changes nothing.

    Args:
      name: of the program, for what it says on standard error if the process has to be ended here.
    """
    advise(_NO_ADVICE)
    if threading.current_thread() is not threading.main_thread() or not hasattr(signal, "set_wakeup_fd"):
        yield
        return
    _asked.clear()
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    over = threading.Event()

    def watch() -> None:
        """Sees the signal while the main thread is in a library, where no handler runs, and gives it some time."""
        while number := os.read(reading, 1):
            if number[0] == signal.SIGINT:
                _asked.set()
                if not over.wait(_GRACE_S):
                    _end(last_words(name))

    def ask(number: int, frame: FrameType | None) -> None:
        _asked.set()

    watcher = threading.Thread(target=watch, daemon=True, name="interrupts")
    before_fd = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    before = signal.signal(signal.SIGINT, ask)
    watcher.start()
    try:
        yield
        check()
    finally:
        over.set()
        signal.signal(signal.SIGINT, before)
        signal.set_wakeup_fd(before_fd)
        os.close(writing)
        watcher.join(1.0)
        os.close(reading)
        _asked.clear()


def _end(words: str) -> None:
    with contextlib.suppress(OSError, ValueError):
        shown = "\x1b[?25h" if sys.stderr.isatty() else ""  # progress bars hide the cursor
        os.write(sys.stderr.fileno(), f"{shown}{words}\n".encode())
    os._exit(STATUS)
