"""What tells pytrees apart, where JAX does not."""

from __future__ import annotations

from typing import Any


def node_types(tree: Any) -> tuple[Any, ...]:
    """The types of a pytree's inner nodes, nested like them: a static argument for functions that take any class.

    JAX holds the structures of different dataclasses for equal if they have equally many fields (seen in 0.10.2). Only
    their hashes differ, of which its cache of compiled programs compares a few bits: every hundredth pair of routers
    or so, one would be played by the program of the other.
    """
    import jax

    return _types(jax.tree.structure(tree))


def _types(structure: Any) -> tuple[Any, ...]:
    node = structure.node_data()
    return () if node is None else (node[0], *map(_types, structure.children()))
