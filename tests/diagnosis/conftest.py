"""Small results and situations with known answers."""

from tests.made_up import make_result, make_situation

__all__ = ["make_result", "make_situation"]
