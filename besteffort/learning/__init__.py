"""Learning: Double DQN on any environment that follows `besteffort.simulator.types.Environment`."""

from besteffort.learning.config import Config, Hyper
from besteffort.learning.network import QNetwork, Weights
from besteffort.learning.train import Progress, Trained, train

__all__ = ["Config", "Hyper", "Progress", "QNetwork", "Trained", "Weights", "train"]
