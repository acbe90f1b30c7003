"""The demo over HTTP in wall time, twice, next to what the simulator predicts: right answers in time.

    python -m experiments.live_http [--port PORT] [--out FILE]

Starts `besteffort serve --demo`, an engine at a twentieth of the laptop tier's speed and a gateway before it, and plays
the list of `besteffort load --demo` to the gateway and to each model alone, in random order, twice. How far the second
time is from the first is the repetition error. On a machine that others use, what comes late may be late for their
sake. Needs the extra `gateway`. Writes results/live_http.json.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from besteffort.demo.play import ask, play_demo, targets
from besteffort.device import device_name
from besteffort.files import write_json
from besteffort.runs.untrained import default_policy
from besteffort.version import __version__
from experiments import live
from experiments.lab import exiting
from experiments.live import Contender

ROOT = Path(__file__).resolve().parent.parent
REPEATS = 2
_START_S = 300.0


def wait_for(url: str, server: subprocess.Popen[bytes]) -> None:
    """Waits until a server answers.

    Raises:
      RuntimeError: if it ends, or does not within five minutes.
    """
    until_s = time.monotonic() + _START_S
    while time.monotonic() < until_s and server.poll() is None:
        try:
            urllib.request.urlopen(f"{url}/models", timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise RuntimeError("`besteffort serve --demo` did not start.")


def main() -> None:
    """The command line.

    Raises:
      SystemExit: with status 2 on a user's mistake.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8890, help="of the gateway; the engine takes the next one")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "live_http.json", help="file to write")
    arguments = parser.parse_args()
    console, url = Console(), f"http://127.0.0.1:{arguments.port}/v1"
    with exiting("live_http"):
        asked = ask()
        situation = asked.situation
        contenders = {"besteffort": Contender(default_policy(situation)), **live.static_contenders(situation)}
        everything = np.ones(len(asked.cases.requests), bool)
        rows: dict[str, dict[str, Any]] = {}
        for name, contender in contenders.items():
            model = live.simulated(contender, asked.cases, situation)
            rows[name] = {
                "predicted": live.expected_right(situation, model, everything),
                "predicted_in_time": float(model.met.mean()),
                "right_and_in_time": [],
                "in_time": [],
                "latest_s": [],
            }
        busy = os.getloadavg()[0]
        command = [sys.executable, "-m", "besteffort", "serve", "--demo", "--port", str(arguments.port)]
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            wait_for(url, server)
            order = np.random.default_rng(0)
            reached = targets(url)
            for _ in range(REPEATS):
                for index in order.permutation(len(reached)).tolist():
                    name = list(reached)[index]
                    played = play_demo(asked, reached[name], lambda sent, answered: None)
                    right = np.array([t == c.answer for t, c in zip(played.texts, asked.cases.cases, strict=True)])
                    rows[name]["right_and_in_time"].append(float((right & played.result.met).mean()))
                    rows[name]["in_time"].append(float(played.result.met.mean()))
                    rows[name]["latest_s"].append(played.late_s)
                    console.print(
                        f"{name}: {rows[name]['right_and_in_time'][-1]:.1%} right and in time", highlight=False
                    )
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(60)
        write_json(
            arguments.out,
            {
                "version": __version__,
                "device": device_name(),
                "load_average_before": round(busy, 2),
                "load_average_after": round(os.getloadavg()[0], 2),
                "requests": len(everything),
                "rows": rows,
            },
        )


if __name__ == "__main__":
    main()
