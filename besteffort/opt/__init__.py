"""OPT (Zhang et al., arXiv 2205.01068) in Flax: weights, generation, and an engine that serves it.

Nothing here is imported by the rest of the package unless asked for. The hub and tokenizers need the extra `opt`.
"""
