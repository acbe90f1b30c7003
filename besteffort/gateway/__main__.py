"""`python -m besteffort.gateway CONFIG`: `besteffort serve` where only the light wheel is installed."""

from __future__ import annotations

import argparse
import sys

from besteffort.errors import InputError
from besteffort.gateway import command


def main() -> int:
    """Serves and returns the exit status: 0, or 2 for a user's mistake."""
    parser = argparse.ArgumentParser(
        prog="besteffort-gateway",
        description="Serve OpenAI's API, and let a policy choose which of your servers answers each request.",
    )
    parser.add_argument("config", help="YAML file that names pools of servers, a policy, and where to listen")
    parser.add_argument("--check", action="store_true", help="read and check everything, and end")
    parser.add_argument("--workers", type=int, default=1, help="processes that share the work")
    given = parser.parse_args()
    try:
        if given.check:
            _say(command.check(given.config))
        else:
            command.serve(given.config, _say, given.workers)
    except InputError as error:
        sys.stderr.write(f"besteffort-gateway: {error}\n")
        return 2
    return 0


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
