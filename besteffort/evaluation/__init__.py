"""Judging routers: rollouts, measures with intervals, bounds, figures and reports."""
