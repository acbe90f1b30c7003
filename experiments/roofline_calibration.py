"""Calibrates the roofline of `besteffort.profile.roofline` on measured iterations.

    python -m experiments.roofline_calibration --data DIR

DIR holds `splitwise_perf_model_a100_h100.csv.gz` (measured prompt and token times of Llama2-70B and BLOOM-176B under
tensor parallelism; Patel et al., "Splitwise", ISCA 2024; github.com/Mutinifni/splitwise-sim, data/perf_model.csv).
Prints the fit and writes results/roofline_calibration.json; `experiments.opt_profiles` makes profiles with it.
"""

from __future__ import annotations

import argparse
import collections
import csv
import dataclasses
import gzip
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import scipy.optimize

from besteffort.files import os_errors_as_input_errors
from besteffort.profile.roofline import A100, CALIBRATED, H100, Architecture, Efficiency, HostOverhead, Roofline
from experiments.lab import exiting

ROOT = Path(__file__).resolve().parent.parent
MEASURED = "splitwise_perf_model_a100_h100.csv.gz"

DEVICES = {"a100-80gb": A100, "h100-80gb": H100}
# Llama 2: Touvron et al., arXiv 2307.09288, and its configuration; its output layer is not its embedding.
# BLOOM: BigScience Workshop, arXiv 2211.05100, table 3; output layer tied to the embedding.
MODELS = {
    "llama2-70b": Architecture(80, 8192, 64, 8, 28672, 32000, 68_976_648_192 - 32000 * 8192, 32000 * 8192),
    "bloom-176b": Architecture(70, 14336, 112, 112, 57344, 250880, 176_247_271_424, 250880 * 14336),
}

LONGEST_PREFILL = 2048
EXCLUDED = {
    "h100-80gb-pcap, all rows": (
        "not measurements of their own: token times repeat the uncapped rows, prompt times are 1.3 times theirs"
    ),
    "llama2-70b, 2 devices, batch 64": (
        "the prompts took less time than those of batch 8, and tokens less than at batch 32: with 69 of 80 GB taken by "
        "weights, the engine can hardly have admitted the whole batch at once"
    ),
    f"prefills of more than {LONGEST_PREFILL} tokens in all": (
        "beyond OPT's context, and with 4 and 8 devices they grow faster than their work; judged apart"
    ),
}
# No streaming kernel reads faster than this share of the peak; without a bound the fit goes to 1, see `sensitivity`.
MEMORY_BOUND = 0.9


@dataclasses.dataclass(frozen=True)
class Row:
    """A measured configuration: the median over its repetitions of one phase, `decode` or `prefill`."""

    phase: str
    model: str
    hardware: str
    devices: int
    prompt: int
    batch: int
    output: int
    seconds: float

    @property
    def beyond(self) -> bool:
        return self.phase == "prefill" and self.batch * self.prompt > LONGEST_PREFILL


@dataclasses.dataclass(frozen=True)
class Fit:
    """Fitted figures: one efficiency for all, one host overhead per kind of machine."""

    efficiency: Efficiency
    hosts: dict[str, HostOverhead]
    cost: float

    def predict(self, row: Row, hardware: str | None = None) -> float:
        """Seconds predicted for a row, with the host overhead of `hardware` (its own by default)."""
        roofline = Roofline(DEVICES[row.hardware], self.hosts[hardware or row.hardware], self.efficiency)
        model = MODELS[row.model]
        if row.phase == "decode":
            return roofline.decode_s(model, row.batch, row.prompt + row.output / 2, row.devices)
        return roofline.prefill_s(model, row.prompt, row.batch, row.devices)


def read_rows(path: Path) -> list[Row]:
    """All measured configurations, decode and prefill, without the first two kinds of excluded rows.

    Raises:
      InputError: if the file cannot be read.
    """
    groups: dict[tuple, list[tuple[float, float]]] = collections.defaultdict(list)
    with os_errors_as_input_errors(path, "read"), gzip.open(path, "rt", newline="") as file:
        for line in csv.DictReader(file):
            counts = [int(line[name]) for name in ("tensor_parallel", "prompt_size", "batch_size", "token_size")]
            key = (line["model"], line["hardware"], *counts)
            groups[key].append((float(line["prompt_time"]) / 1e3, float(line["token_time"]) / 1e3))
    rows = []
    for (model, hardware, devices, prompt, batch, output), times in sorted(groups.items()):
        if hardware not in DEVICES or (model, devices, batch) == ("llama2-70b", 2, 64):
            continue
        for phase, seconds in zip(("prefill", "decode"), np.median(times, axis=0), strict=True):
            rows.append(Row(phase, model, hardware, devices, prompt, batch, output, float(seconds)))
    return rows


def fit(rows: Sequence[Row], memory: float | None = None) -> Fit:
    """Robust least squares of log(predicted / measured); `memory` fixes the memory efficiency."""
    hardware = sorted({row.hardware for row in rows})

    def unpack(x: np.ndarray, cost: float = 0.0) -> Fit:
        share = x[0] if memory is None else memory
        hosts = {
            name: HostOverhead(0.0, x[5 + 2 * i] * 1e-3, x[6 + 2 * i] * 1e-3, x[4] * 1e-3)
            for i, name in enumerate(hardware)
        }
        return Fit(Efficiency(share, x[1], x[2], x[3] * 1e-6), hosts, cost)

    def residuals(x: np.ndarray) -> np.ndarray:
        candidate = unpack(x)
        return np.array([np.log(candidate.predict(row) / row.seconds) for row in rows])

    # Memory, matrix, link (shares), hop (µs), sequence, then decode and prefill per layer of each machine (ms).
    start = [0.8, 0.6, 0.5, 5.0, 0.2, *[0.3] * (2 * len(hardware))]
    upper = [MEMORY_BOUND, 1.0, 1.0, 100.0, 2.0, *[2.0] * (2 * len(hardware))]
    result = scipy.optimize.least_squares(residuals, start, bounds=(0.0, upper), loss="soft_l1", f_scale=0.1)
    return unpack(result.x, float(result.cost))


def errors(fitted: Fit, rows: Iterable[Row], hardware: str | None = None) -> dict[str, dict[str, float]]:
    """Median, P90 and largest absolute relative error of each phase."""
    by_phase: dict[str, list[float]] = collections.defaultdict(list)
    for row in rows:
        by_phase[row.phase].append(abs(fitted.predict(row, hardware) / row.seconds - 1))
    return {
        phase: {
            "rows": len(values),
            "median": round(float(np.median(values)), 3),
            "p90": round(float(np.quantile(values, 0.9)), 3),
            "largest": round(max(values), 3),
        }
        for phase, values in sorted(by_phase.items())
    }


def held_out(rows: Sequence[Row], judged: Callable[[Row], bool]) -> dict[str, dict[str, float]]:
    """Errors on the rows that `judged` picks, of a fit on all the others."""
    return errors(fit([row for row in rows if not judged(row)]), filter(judged, rows))


def three_digits(value: float) -> float:
    """The data determine no more; and so the built-in profiles do not depend on the optimiser's last digits."""
    return float(f"{value:.3g}")


def calibrate(rows: Sequence[Row]) -> dict:
    """The calibration as it is written to results/."""
    fitted_rows = [row for row in rows if not row.beyond]
    fitted = fit(fitted_rows)
    only = {name: [row for row in fitted_rows if row.hardware == name] for name in DEVICES}
    a100, h100 = (fit(only[name]) for name in DEVICES)
    efficiency = {key: three_digits(value) for key, value in dataclasses.asdict(fitted.efficiency).items()}
    hosts = {
        name: {key: three_digits(value) for key, value in dataclasses.asdict(host).items()}
        for name, host in fitted.hosts.items()
    }
    sensitivity = {}
    for share in (0.7, 0.8, 0.9, 1.0):
        fixed = fit(fitted_rows, memory=share)
        sensitivity[f"{share:g}"] = {"cost": round(fixed.cost, 3)} | errors(fixed, fitted_rows)
    return {
        "data": f"{MEASURED} (Mutinifni/splitwise-sim, data/perf_model.csv)",
        "method": "soft-L1 least squares of log(predicted / measured) on medians over repetitions",
        "efficiency": efficiency,
        "host_overhead": hosts,
        "memory_efficiency_bound": MEMORY_BOUND,
        "excluded": EXCLUDED,
        "error": {
            "fitted": errors(fitted, fitted_rows),
            **{f"fitted, {name} rows": errors(fitted, only[name]) for name in DEVICES},
            "bloom-176b held out": held_out(fitted_rows, lambda row: row.model == "bloom-176b"),
            "2 devices held out": held_out(fitted_rows, lambda row: row.devices == 2),
            "8 devices held out": held_out(fitted_rows, lambda row: row.devices == 8),
            "fitted on a100-80gb, h100-80gb judged with the A100 host's overhead": errors(
                a100, only["h100-80gb"], "a100-80gb"
            ),
            "fitted on h100-80gb, a100-80gb judged with the H100 host's overhead": errors(
                h100, only["a100-80gb"], "h100-80gb"
            ),
            f"prefills beyond {LONGEST_PREFILL} tokens": errors(fitted, (row for row in rows if row.beyond)),
        },
        "memory_efficiency_sensitivity": sensitivity,
    }


@exiting("roofline_calibration")
def main() -> None:
    """Reads the command line, calibrates, and writes.

    Raises:
      SystemExit: with status 2 on a user's mistake, and 1 if the fit is not what profiles are made with.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with the measured rows")
    args = parser.parse_args()

    result = calibrate(read_rows(args.data / MEASURED))
    text = json.dumps(result, indent=2)
    print(text)
    (ROOT / "results").mkdir(exist_ok=True)
    (ROOT / "results" / "roofline_calibration.json").write_text(text + "\n")
    if Efficiency(**result["efficiency"]) != CALIBRATED:
        raise SystemExit(
            "The fit is not `besteffort.profile.roofline.CALIBRATED`; copy `efficiency` there and run again."
        )


if __name__ == "__main__":
    main()
