"""OPT (Zhang et al., arXiv 2205.01068) in Flax: weights, generation, and an engine that serves it.

The rest of the package imports this one only on demand. The hub and tokenizers need the extra `opt`.
"""
