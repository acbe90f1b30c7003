"""The paper's own policy: its state and its recipe, trained once in the situation `paper`, in the package."""

from __future__ import annotations

from importlib.resources import as_file, files

from besteffort.policy import Policy, load_policy


def paper_policy() -> Policy:
    """The policy of the paper's recipe (arXiv 2401.07886), as `experiments/paper_recipe.py` states it.

    It sees the task, the batch sizes and the arrival rate. What the paper leaves open is textbook Double DQN. Of the
    seeds 0 to 2 it was best on draws of the training load; seed 0 sends everything to the largest model.
    """
    with as_file(files("besteffort") / "runs" / "paper.safetensors") as path:
        return load_policy(path)
