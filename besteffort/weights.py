"""Network weights as stored in a policy file, and the merging of ensembles into one network. NumPy only."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from besteffort.errors import InputError

Weights = tuple[tuple[np.ndarray, np.ndarray], ...]
"""Per layer the pair of kernel (inputs, outputs) and bias (outputs,), with ReLU between layers."""


def merge(ensemble: Sequence[Weights]) -> Weights:
    """Merges networks of one shape into a single block-diagonal network whose outputs are the means of theirs."""
    (first, *inner), last = list(zip(*ensemble, strict=True))[:-1], [weights[-1] for weights in ensemble]
    kernels = [np.concatenate([kernel for kernel, _ in first], axis=1)]
    kernels += [_block_diagonal([kernel for kernel, _ in layer]) for layer in inner]
    biases = [np.concatenate([bias for _, bias in layer]) for layer in (first, *inner)]
    kernel = np.concatenate([kernel for kernel, _ in last]) / len(last)
    return (*zip(kernels, biases, strict=True), (kernel, np.mean([bias for _, bias in last], axis=0)))


def split(weights: Weights, networks: int) -> list[Weights]:
    """Splits a network that `merge` made into its parts.

    Raises:
      InputError: if `weights` do not hold that many networks side by side.
    """
    if networks == 1:
        return [weights]
    *hidden, (kernel, bias) = weights
    mistake = InputError(f"The weights are not {networks} networks side by side; give the `ensemble_size` they have.")
    if not hidden or any(offset.size % networks for _, offset in hidden):
        raise mistake
    (first, offset), *inner = [[np.split(part, networks, axis=-1) for part in layer] for layer in hidden]
    parts = [[pair] for pair in zip(first, offset, strict=True)]
    for columns, offsets in inner:
        for index, part in enumerate(parts):
            part.append((np.split(columns[index], networks)[index], offsets[index]))
    for part, rows in zip(parts, np.split(kernel * networks, networks), strict=True):
        part.append((rows, bias))
    ensemble = [tuple(part) for part in parts]
    if not all((old[0] == new[0]).all() for old, new in zip(hidden, merge(ensemble), strict=False)):
        raise mistake
    return ensemble


def _block_diagonal(blocks: Sequence[np.ndarray]) -> np.ndarray:
    """The blocks along the diagonal of a matrix of zeros."""
    rows, columns = (np.cumsum([0, *(block.shape[axis] for block in blocks)]) for axis in (0, 1))
    matrix = np.zeros((rows[-1], columns[-1]), blocks[0].dtype)
    for index, block in enumerate(blocks):
        matrix[rows[index] : rows[index + 1], columns[index] : columns[index + 1]] = block
    return matrix
