"""Writes the built-in profiles of OPT, or one of other sizes: latency modelled, quality published.

    python -m experiments.opt_profiles
    python -m experiments.opt_profiles --device h100 --models opt-13b opt-30b --out large.json

Needs no data: devices and attained shares are in `besteffort/profile/roofline.py`, qualities in `published.py` there.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from besteffort.errors import InputError
from besteffort.profile import Profile, save_profile
from besteffort.profile.modelled import PLATFORMS, opt_profile
from experiments.lab import exiting

BUILTIN = Path(__file__).resolve().parent.parent / "besteffort" / "profile" / "builtin"

THREE = ("opt-125m", "opt-1.3b", "opt-6.7b")
# Every replica holds every model: these six take 48 of 80 GB, with the 30B model it would be 108.
SIX = ("opt-125m", "opt-350m", "opt-1.3b", "opt-2.7b", "opt-6.7b", "opt-13b")
# Sizes that gain from fewer bits, next to 16 bits where a device has room for both and a publication compares them.
INT8 = ("opt-125m", "opt-1.3b", "opt-6.7b-int8", "opt-6.7b", "opt-13b-int8")
INT4 = ("opt-125m", "opt-1.3b", "opt-6.7b-int4", "opt-6.7b", "opt-13b-int4", "opt-13b")
LARGE = ("a100", "h100", "cpu")

# Name to device and models.
PROFILES: dict[str, tuple[str, tuple[str, ...]]] = {
    "opt-a100-all": ("a100", SIX),
    **{f"opt-{device}": (device, THREE) for device in PLATFORMS},
    **{f"opt-{device}-int8": (device, INT8) for device in LARGE},
    **{f"opt-{device}-int4": (device, INT4) for device in LARGE},
    "opt-l4-int8": ("l4", ("opt-125m", "opt-1.3b", "opt-6.7b-int8")),
    "opt-l4-int4": ("l4", ("opt-125m", "opt-1.3b", "opt-6.7b-int4", "opt-13b-int4")),
}


def builtin_profile(name: str) -> Profile:
    """The built-in profile of that name, as it is to be."""
    return opt_profile(name, *PROFILES[name])


def main() -> None:
    """Reads the command line and writes.

    Raises:
      SystemExit: with status 2 on a user's mistake.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", help=f"device of a profile of your own: {', '.join(PLATFORMS)}")
    parser.add_argument("--models", nargs="+", default=[], help="its models, from the smallest to the largest")
    parser.add_argument("--out", type=Path, help="its file")
    arguments = parser.parse_args()
    with exiting("opt_profiles"):
        for path, profile in _made(arguments.device, arguments.models, arguments.out).items():
            save_profile(profile, path)
            print(f"wrote {path}")


def _made(device: str | None, models: Sequence[str], out: Path | None) -> dict[Path, Profile]:
    """The profiles that are asked for, by file."""
    if device is None and not models and out is None:
        return {BUILTIN / f"{name}.json": builtin_profile(name) for name in PROFILES}
    if device is None or not models or out is None:
        raise InputError("Give `--device`, `--models` and `--out` together for a profile of your own, or none of them.")
    return {out: opt_profile(out.stem, device, models)}


if __name__ == "__main__":
    main()
