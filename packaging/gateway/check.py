"""Uses the installed wheel `besteffort-gateway` as a gateway does, and prints what it costs.

`.ci/run` calls it in an environment that has nothing but the wheel and its dependencies.
"""

from __future__ import annotations

import dataclasses
import importlib.metadata
import statistics
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

NOT_INSTALLED = ("default_policy", "load_training_problem", "make_env", "make_policy", "sample_requests", "simulate")
"""Public names that need the full package."""

HEAVY = {"flax", "jax", "matplotlib", "optax", "rlax", "scipy"}

TIMED = """
import time
start = time.perf_counter()
import besteffort
besteffort.load_policy
print(time.perf_counter() - start)
"""


def use(folder: Path) -> None:
    """Writes a policy for the situation `paper` into a folder, decides with it, and asks for names that are not there.

    Raises:
      AssertionError: if the wheel does not do what it should.
    """
    import numpy as np

    import besteffort
    from besteffort.gateway import command
    from besteffort.in_flight import InFlight
    from besteffort.observation import default_features, input_size
    from besteffort.policy import save_policy

    situation = besteffort.load_situation("paper")
    models, cluster = situation.profile.model_names, situation.cluster
    features = default_features(
        len(situation.tasks), len(models), cluster.replicas, cluster.max_batch, 50.0, situation.view.features
    )
    policy = besteffort.Policy(
        situation=situation,
        features=features,
        # The last model is worth most, whatever the state.
        weights=((np.zeros((input_size(features), len(models))), np.arange(len(models))),),
    )
    path = folder / "policy.safetensors"
    save_policy(policy, path)
    read = besteffort.load_policy(path, situation)
    assert read.situation == situation, f"trained for {read.situation}"
    chosen = read.decide(task=read.tasks[0], batch_sizes=dict.fromkeys(models, 3), arrival_rate=20.0)
    assert chosen == models[-1], f"decided for {chosen}"

    seeing = dataclasses.replace(situation, view=dataclasses.replace(situation.view, features=("own",)))
    (own,) = default_features(
        len(situation.tasks), len(models), cluster.replicas, cluster.max_batch, 50.0, seeing.view.features
    )
    # The model of which most is to be expected: the largest, until its instances are full.
    greedy = besteffort.Policy(
        situation=seeing, features=(own,), weights=((np.eye(len(models)), np.zeros(len(models))),)
    )
    flight = InFlight(greedy)
    decided = []
    for request in range(cluster.replicas * (cluster.max_batch + cluster.queue_capacity) + 1):
        flight.arrived(request, task=read.tasks[0], prompt_tokens=100, at=0.0)
        decided.append(flight.decide(request, at=0.0).model)
        flight.sent(request, models[-1], request % cluster.replicas, at=0.0)
    assert decided[0] == models[-1], f"decided for {decided[0]} while all was idle"
    assert decided[-1] != models[-1], f"decided for {decided[-1]}, which was full"

    served = folder / "gateway.yaml"
    pool = f"{{name: small, model: {models[0]}, urls: [http://127.0.0.1:8101/v1]}}"
    served.write_text(f"policy: policy.safetensors\npools: [{pool}]\n")
    said = command.check(str(served))
    assert f"small ({models[0]}, 1 replica)" in said, said
    served.write_text(f"situation: paper\npools: [{pool}]\n")
    sentences = {}
    try:
        command.check(str(served))
    except besteffort.InputError as error:
        sentences["situation"] = str(error)
    assert "full package" in sentences.pop("situation"), "the untrained policy was there"

    for name in besteffort.__all__:
        try:
            getattr(besteffort, name)
        except ImportError as error:
            sentences[name] = str(error)
    assert tuple(sentences) == NOT_INSTALLED, f"missing: {sentences}"
    for name, sentence in sentences.items():
        assert sentence.startswith(f"`{name}` needs the full package: "), sentence


def size_mb(path: Path) -> float:
    """Megabytes of the files in a folder."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) / 1e6


def third_party() -> list[str]:
    """Top-level modules that are loaded, public, and not of the standard library."""
    names = {name.partition(".")[0] for name in sys.modules} - set(sys.stdlib_module_names)
    return sorted(name for name in names if not name.startswith("_"))


def main() -> None:
    """Checks, then one line per figure."""
    with tempfile.TemporaryDirectory() as folder:
        use(Path(folder))
    loaded = third_party()
    assert not HEAVY.intersection(loaded), f"loaded: {loaded}"
    print("decided; loaded:", ", ".join(loaded))
    print("installed:", ", ".join(sorted(f"{d.name} {d.version}" for d in importlib.metadata.distributions())))

    packages = Path(sysconfig.get_path("purelib"))
    sizes = {path.name: size_mb(path) for path in packages.iterdir() if path.is_dir()}
    tools = sum(
        size for name, size in sizes.items() if name.startswith(("pip", "setuptools", "pkg_resources", "_distutils"))
    )
    largest = sorted(sizes, key=sizes.__getitem__, reverse=True)[:6]
    total = size_mb(packages)
    print(f"site-packages: {total:.1f} MB, {total - tools:.1f} MB without pip and setuptools;", end=" ")
    print("largest:", ", ".join(f"{name} {sizes[name]:.1f}" for name in largest))

    seconds = []
    for _ in range(5):
        # Isolated: a checkout in the working directory would be imported in place of the wheel.
        done = subprocess.run([sys.executable, "-I", "-c", TIMED], capture_output=True, text=True, check=True)
        seconds.append(float(done.stdout))
    print(f"import besteffort; besteffort.load_policy: {1e3 * statistics.median(seconds):.0f} ms, median of 5")


if __name__ == "__main__":
    main()
