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


def with_bypass(weights: Weights, start: int) -> Weights:
    """The network whose outputs are larger by as many of its inputs, from `start` on.

    They go through all hidden layers in two units each: ReLU leaves one of `v` and `-v` as it is.
    """
    outputs = weights[-1][1].size
    unit = np.eye(outputs, dtype=np.float32)
    both = np.concatenate([unit, -unit], axis=1)
    entry = np.zeros((len(weights[0][0]), both.shape[1]), np.float32)
    entry[start : start + outputs] = both
    (first, *inner), (kernel, bias) = weights[:-1], weights[-1]
    layers = [(np.concatenate([first[0], entry], axis=1), _longer(first[1], both.shape[1]))]
    for matrix, offset in inner:
        layers.append(
            (_block_diagonal([matrix, np.eye(both.shape[1], dtype=matrix.dtype)]), _longer(offset, both.shape[1]))
        )
    return (*layers, (np.concatenate([kernel, both.T.astype(kernel.dtype)]), bias))


def without_bypass(weights: Weights) -> Weights:
    """The network that `with_bypass` was given."""
    outputs = weights[-1][1].size
    layers = []
    for i, (kernel, bias) in enumerate(weights):
        rows = slice(None) if i == 0 else slice(len(kernel) - 2 * outputs)
        columns = slice(None) if i == len(weights) - 1 else slice(len(bias) - 2 * outputs)
        layers.append((kernel[rows, columns], bias[columns]))
    return tuple(layers)


def with_share(weights: Weights, share: float, start: int, networks: int) -> Weights:
    """A network, or an ensemble as `merge` gives it, that adds only a share of what it adds to its inputs.

    Args:
      weights: each network as from `with_bypass`.
      share: of what is added.
      start: as of `with_bypass`.
      networks: how many there are side by side.

    Raises:
      InputError: if `weights` do not hold that many networks.
    """
    parts = []
    for part in split(weights, networks):
        *hidden, (kernel, bias) = without_bypass(part)
        parts.append(with_bypass((*hidden, (share * kernel, share * bias)), start))
    return merge(parts)


def _longer(offset: np.ndarray, by: int) -> np.ndarray:
    return np.concatenate([offset, np.zeros(by, offset.dtype)])


def _block_diagonal(blocks: Sequence[np.ndarray]) -> np.ndarray:
    """The blocks along the diagonal of a matrix of zeros."""
    rows, columns = (np.cumsum([0, *(block.shape[axis] for block in blocks)]) for axis in (0, 1))
    matrix = np.zeros((rows[-1], columns[-1]), blocks[0].dtype)
    for index, block in enumerate(blocks):
        matrix[rows[index] : rows[index + 1], columns[index] : columns[index + 1]] = block
    return matrix
