"""Keeps finished fits in a file, so that a `profile fit` that was interrupted does not do them again."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from besteffort.digests import array_digest
from besteffort.files import jsonable, replacing
from besteffort.profiling.fit import Fitted, Term
from besteffort.profiling.problem import Assumption
from besteffort.profiling.server_log import RequestLog
from besteffort.version import __version__


class KeptFits:
    """Fits by what they depend on; a file that is damaged or of other fits counts as none.

    Attributes:
      path: the file; None keeps nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self.path = path
        self._arrays: dict[str, np.ndarray] = {} if path is None else _read(path)

    def fit(self, log: RequestLog, make: Callable[[], Fitted], **options: Any) -> Fitted:
        """The fit that `make` makes of a log with these options, or that was kept of the same.

        Raises:
          InputError: as `make`, or if the file cannot be written.
        """
        if self.path is None:
            return make()
        arrays = [(name, values) for name, values in vars(log).items() if isinstance(values, np.ndarray)]
        key = array_digest(arrays, start=repr((__version__, sorted(options.items()))))
        try:
            return _fitted(self._arrays, key)
        except (KeyError, TypeError, ValueError):
            found = make()
        terms = {name: value for name, value in jsonable(found).items() if name not in ("first_s", "last_s")}
        self._arrays |= {f"{key}.first_s": found.first_s, f"{key}.last_s": found.last_s}
        self._arrays[key] = np.array(json.dumps(terms))
        with replacing(self.path) as file:
            np.savez(file, **self._arrays)  # type: ignore[arg-type]
        return found

    def end(self) -> None:
        """Removes the file, which is of no use once all fits are written elsewhere."""
        if self.path is not None:
            self.path.unlink(missing_ok=True)


NOTHING_KEPT = KeptFits(None)
"""Keeps nothing."""


def _read(path: Path) -> dict[str, np.ndarray]:
    if not path.exists():
        return {}
    try:
        with path.open("rb") as raw, np.load(raw, allow_pickle=False) as file:
            return {name: file[name] for name in file.files}
    # A file with any content makes the libraries that read it raise anything at all.
    except Exception:
        return {}


def _fitted(arrays: dict[str, np.ndarray], key: str) -> Fitted:
    """The fit that was kept under a key.

    Raises:
      KeyError, TypeError, ValueError: if there is none, or its parts do not fit.
    """
    terms = json.loads(str(arrays[key]))
    terms |= {name: tuple((int(x), float(y)) for x, y in terms[name]) for name in ("decode", "prefill")}
    terms["terms"] = tuple(Term(**each) for each in terms["terms"])
    terms["alike"] = tuple(Assumption(**each) for each in terms["alike"])
    terms["assumed"] = Assumption(**terms["assumed"])
    return Fitted(**terms, first_s=arrays[f"{key}.first_s"], last_s=arrays[f"{key}.last_s"])
