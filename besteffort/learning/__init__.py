"""Learning: Double DQN on any environment that follows `besteffort.simulator.types.Environment`."""

from besteffort.learning.config import DQNConfig, DQNHyperparams
from besteffort.learning.network import QNetwork
from besteffort.learning.train import PerRun, Progress, Trained, per_run, train
from besteffort.weights import Weights

__all__ = ["DQNConfig", "DQNHyperparams", "PerRun", "Progress", "QNetwork", "Trained", "Weights", "per_run", "train"]
