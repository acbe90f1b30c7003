"""`python -m besteffort` and the command `besteffort`: the command line, which interrupts can end from the start on."""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

_STATUS = 130  # that of `besteffort.interrupts`, which is not imported yet


def main() -> int:
    """Runs the command line. Until it has handlers of its own, an interrupt ends the process: nothing has begun yet."""
    signal.signal(signal.SIGINT, _leave)
    from besteffort import cli

    status = cli.main()
    # All is written. The interpreter lets go of handlers before libraries have ended, and a signal would kill it then.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return status


def _leave(number: int, frame: FrameType | None) -> None:
    os.write(2, b"besteffort: interrupted; nothing was written.\n")
    os._exit(_STATUS)


if __name__ == "__main__":
    sys.exit(main())
