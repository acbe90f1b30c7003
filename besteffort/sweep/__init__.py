"""Sweeps: trainings over any fields of a configuration, in one compiled program per shape, and what mattered."""
