"""Everything that only an accelerator can tell, in ten minutes: the most wanted part first, each with a limit of time.

    python -m benchmarks.accelerator [PART ...] [--fast] [--out FILE]

| part | what |
|---|---|
| opt | steps and prompts of the OPT sizes in bfloat16, alone and together on the card, next to what memory allows |
| transformers | the same shapes in PyTorch by Hugging Face transformers, if they are installed |
| simulator | decisions per second with up to 65,536 environments, next to the memory's bandwidth |
| training | seconds of Double DQN, of the search, and of the paper's 1.2 million iterations |
| logits | how far logits in bfloat16 are from those in float32 |
| loop | three sizes measured, searched for, and served through the gateway, next to what the simulator says |

Nothing is downloaded: weights are random and have the true shapes. Each part is a process of its own that writes line
by line, so that whatever is cut off keeps what it has measured; a part that fails says why, and the next begins. It
uses the JAX and the PyTorch that it finds, and says which. With `--fast` everything is tiny: whether it runs, on any
device.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import importlib.metadata
import importlib.util
import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console

from benchmarks.compiled import Rollouts, scenarios
from benchmarks.opt_speed import Timed, our_decode, our_prefill, their_decode, their_prefill, to_transformers
from benchmarks.outcome import check_replaced, write_result
from benchmarks.timing import machine, measure
from besteffort import laptop
from besteffort.device import device_name
from besteffort.engine.server import EngineServer
from besteffort.errors import InputError
from besteffort.evaluation import metrics
from besteffort.files import append_jsonl, read_jsonl
from besteffort.gateway.config import GatewayConfig, Listen, Pool
from besteffort.gateway.http import Listener
from besteffort.gateway.serve import Gateway
from besteffort.gateway.snapshot import make_snapshot
from besteffort.load.play import Played, Target, play
from besteffort.opt.config import OPTConfig, published
from besteffort.opt.engine import Engine
from besteffort.opt.model import forward
from besteffort.opt.runtime import Buckets
from besteffort.opt.weights import Model, load_model, random_model
from besteffort.policy import Policy
from besteffort.profiling.floors import decode_floor_s, measure_ceilings, prefill_floor_s
from besteffort.profiling.measure import MeasurementPlan, measure_profile, read_qualities
from besteffort.routers.learned import learned_router
from besteffort.runs.config import load_situation
from besteffort.runs.experiment import load_run
from besteffort.runs.training import make_training_problem, train_policies
from besteffort.simulator.result import Result
from besteffort.simulator.simulate import simulate
from besteffort.situation import Cluster, Situation
from besteffort.workload.config import Poisson, build
from besteffort.workload.requests import Requests
from besteffort.workload.sample import sample_workload
from experiments.paper_recipe import ITERATIONS, NUMBERS, RECIPE

ROOT = Path(__file__).resolve().parent.parent
TINY = OPTConfig(vocab=150, hidden=16, layers=1, heads=2, ffn=24, embedding=16, positions=200)
REPEATS = 3

Line = dict[str, Any]
Report = Callable[[Line], None]


@dataclasses.dataclass(frozen=True)
class Size:
    """How much of everything.

    Attributes:
      models: names or shapes, the most wanted first.
      batches, contexts: of decode steps.
      prompts: tokens of prefills.
      together: models that share the card, pair by pair and all at once.
      environments: counts of environments.
      decisions: of a rollout of the simulator, over all environments.
      warm_steps: decisions of every environment before.
      trainings: what is trained: a name, seeds, the configuration, and changes to it.
      logits: models whose logits are compared.
      tokens: of the sequences that they read.
      served: models of the loop, the smallest first.
      situation: configuration of the loop: its tasks, deadlines and qualities.
      buckets: sizes of the programs of the loop's engine.
      loads: of the loop, in multiples of what the largest model serves alone.
      requests: of each of its lists.
    """

    models: tuple[str | OPTConfig, ...]
    batches: tuple[int, ...]
    contexts: tuple[int, ...]
    prompts: tuple[int, ...]
    together: tuple[str | OPTConfig, ...]
    environments: tuple[int, ...]
    decisions: int
    warm_steps: int
    trainings: tuple[tuple[str, int, str, dict[str, Any]], ...]
    logits: tuple[str | OPTConfig, ...]
    tokens: int
    served: tuple[str, ...]
    situation: str
    buckets: Buckets
    loads: tuple[float, ...]
    requests: int


_PAPER = {
    "training.config.decisions": ITERATIONS,
    **{f"training.config.{name}": value for name, value in RECIPE.items()},
    **{f"training.hyper.{name}": value for name, value in NUMBERS.items()},
}
_DQN = {"training.config.decisions": 2**19}
_SEARCH = {"training.method": "search", "training.search.generations": 8, "training.search.requests": 12_000}
FULL = Size(
    models=("opt-125m", "opt-1.3b", "opt-6.7b", "opt-2.7b", "opt-350m", "opt-13b"),
    batches=(1, 8, 32, 128, 256),
    contexts=(128, 1024),
    prompts=(1, 128, 512, 2048),
    together=("opt-125m", "opt-1.3b", "opt-6.7b"),
    environments=(1024, 4096, 16384, 65536),
    decisions=2**23,
    warm_steps=1536,
    trainings=(
        ("Double DQN", 1, "quickstart", _DQN),
        ("search", 1, "quickstart", _SEARCH),
        ("the paper's iterations", 1, "paper", _PAPER),
        ("search", 64, "quickstart", _SEARCH),
        ("Double DQN", 64, "quickstart", _DQN),
        ("the paper's iterations", 64, "paper", _PAPER),
    ),
    logits=("opt-125m", "opt-1.3b"),
    tokens=512,
    served=("opt-125m", "opt-1.3b", "opt-6.7b"),
    situation="paper",
    buckets=Buckets((8, 32), (96, 192), (256,)),
    loads=(0.8, 2.0),
    requests=600,
)
FAST = Size(
    models=(TINY,),
    batches=(1, 2),
    contexts=(16,),
    prompts=(8,),
    together=(TINY, TINY),
    environments=(64,),
    decisions=2**10,
    warm_steps=8,
    trainings=(
        ("Double DQN", 1, "quickstart", {"training.config.decisions": 16384, "training.config.ensemble_size": 1}),
        ("search", 1, "quickstart", _SEARCH | {"training.search.generations": 1, "training.search.requests": 200}),
    ),
    logits=(TINY,),
    tokens=16,
    served=laptop.MODELS[:2],
    situation="laptop",
    buckets=Buckets((8,), (18,), (18,)),
    loads=(1.0,),
    requests=20,
)


def opt(size: Size, report: Report) -> None:
    """Steps and prompts of each model, then models together."""
    ceilings = measure_ceilings(jnp.bfloat16)
    report({"what": "the device", **dataclasses.asdict(ceilings)})
    for name in size.models:
        model = random_model(name, jnp.bfloat16)
        config, told = model.config, {"what": "iteration", "model": model.name}
        for context in size.contexts:
            for batch in size.batches:
                floor_s = decode_floor_s(config, batch, context, 2, ceilings)
                _time(
                    report,
                    {**told, "kind": "decode", "size": batch, "context": context, "floor_s": floor_s},
                    partial(our_decode, model, batch, context),
                )
            if context == size.contexts[0]:
                for tokens in _prompts(size, config):
                    floor_s = prefill_floor_s(config, tokens, 2, ceilings)
                    _time(
                        report,
                        {**told, "kind": "prefill", "size": tokens, "floor_s": floor_s},
                        partial(our_prefill, model, tokens),
                    )
    _together(size, report)


def _prompts(size: Size, config: OPTConfig) -> list[int]:
    return [tokens for tokens in size.prompts if tokens <= config.positions]


def _time(report: Report, told: Line, make: Callable[[], Timed]) -> None:
    """Reports the seconds of a case, several times over; or why there are none."""
    try:
        run = make()
        run()
        report({**told, "seconds": [run() for _ in range(REPEATS)]})
    except Exception as error:
        report({**told, "failed": f"{type(error).__name__}: {error}"[:300]})


def _together(size: Size, report: Report) -> None:
    """Decode steps of each model alone, next to each other one, and next to all others, without a break."""
    batch, context = size.batches[min(2, len(size.batches) - 1)], size.contexts[0]
    names = [name if isinstance(name, str) else f"tiny-{i}" for i, name in enumerate(size.together)]
    steps = [our_decode(random_model(name, jnp.bfloat16), batch, context) for name in size.together]
    for step in steps:
        step()
    for index, step in enumerate(steps):
        others = [other for other in range(len(steps)) if other != index]
        groups = [[], *([other] for other in others), *([others] if len(others) > 1 else [])]
        for group in groups:
            with _busy([steps[other] for other in group]):
                seconds = [step() for _ in range(REPEATS)]
            beside = [names[other] for other in group]
            report({"what": "together", "model": names[index], "size": batch, "beside": beside, "seconds": seconds})


@contextlib.contextmanager
def _busy(steps: Sequence[Timed]) -> Iterator[None]:
    """Repeats these meanwhile, each in a thread."""
    stop = threading.Event()

    def repeat(step: Timed) -> None:
        while not stop.is_set():
            step()

    threads = [threading.Thread(target=repeat, args=(step,)) for step in steps]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def transformers(size: Size, report: Report) -> None:
    """The cases of `opt` in PyTorch."""
    if not (importlib.util.find_spec("torch") and importlib.util.find_spec("transformers")):
        report({"what": "nothing", "failed": "PyTorch or transformers is not installed"})
        return
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    name_of = torch.cuda.get_device_name() if device == "cuda" else "cpu"
    report({"what": "the device", "device": name_of, "torch": torch.__version__})
    for name in size.models:
        config = published(name) if isinstance(name, str) else name
        twin = _twin(config, device)
        told = {"what": "iteration", "model": name if isinstance(name, str) else "tiny"}
        for context in size.contexts:
            for batch in size.batches:
                line = {**told, "kind": "decode", "size": batch, "context": context}
                _time(report, line, partial(their_decode, twin, batch, context))
            if context == size.contexts[0]:
                for tokens in _prompts(size, config):
                    line = {**told, "kind": "prefill", "size": tokens}
                    _time(report, line, partial(their_prefill, twin, tokens))
        del twin
        if device == "cuda":
            torch.cuda.empty_cache()


def _twin(config: OPTConfig, device: str) -> Any:
    """Transformers' OPT of a shape, with weights that only their time matters of."""
    import torch
    from transformers import OPTConfig as TheirConfig
    from transformers import OPTForCausalLM

    with torch.device("meta"):
        twin = OPTForCausalLM(TheirConfig(**to_transformers(config))).to(torch.bfloat16)
    twin = twin.to_empty(device=device)
    with torch.no_grad():
        for weights in (*twin.parameters(), *twin.buffers()):
            weights.zero_() if not weights.is_floating_point() else weights.normal_(0, 0.02)
    return twin.eval()


def simulator(size: Size, report: Report) -> None:
    """Decisions per second, and the share of bandwidth that it takes to read and write the state once per decision."""
    ceilings = measure_ceilings(jnp.float32)
    report({"what": "the device", **dataclasses.asdict(ceilings)})
    (scenario,) = (one for one in scenarios((0.9,)) if one.load == 0.9 and "128" not in one.name)
    rollouts = Rollouts(size.decisions, size.warm_steps)
    for environments in size.environments:
        for rewards in (True, False):
            case = rollouts.case(scenario, "random", environments, rewards=rewards)
            speed = measure([case], REPEATS, Console(quiet=True))[case.row][case.column]
            state_bytes = rollouts.state_bytes(scenario, "random")
            report(
                {
                    "what": "simulator",
                    "environments": environments,
                    "rewards": rewards,
                    "decisions_per_s": [speed.slowest, speed.median, speed.fastest],
                    "compile_s": speed.compile_s,
                    "state_bytes": state_bytes,
                    "state_traffic_share": 2 * state_bytes * speed.median / ceilings.bytes_per_s,
                }
            )


def training(size: Size, report: Report) -> None:
    """Seconds of whole trainings; the second time, programs are compiled already."""
    for name, seeds, config, changes in size.trainings:
        run, situation = load_run(config, changes={"training.seeds": seeds, **changes})
        problem = make_training_problem(situation, run.training)
        seconds = []
        for _ in range(2):
            with tempfile.TemporaryDirectory() as out:
                start = time.perf_counter()
                train_policies(problem, Path(out))
                seconds.append(round(time.perf_counter() - start, 2))
            if seeds > 1:
                break
        report({"what": "training", "name": name, "seeds": seeds, "seconds": seconds})


def logits(size: Size, report: Report) -> None:
    """Differences of logits between bfloat16 and float32, of the same random weights."""
    for name in size.logits:
        model = random_model(name, jnp.float32)
        found = {dtype: _logits(model, dtype, size.tokens) for dtype in ("float32", "bfloat16")}
        apart = np.abs(found["bfloat16"] - found["float32"])
        same = (found["bfloat16"].argmax(-1) == found["float32"].argmax(-1)).mean()
        report(
            {
                "what": "logits",
                "model": model.name,
                "largest_difference": float(apart.max()),
                "mean_difference": float(apart.mean()),
                "standard_deviation": float(found["float32"].std()),
                "same_token": float(same),
            }
        )


def _logits(model: Model, dtype: str, tokens: int) -> np.ndarray:
    """(tokens, vocab) logits of a random sequence, computed in `dtype`."""
    cast = dataclasses.replace(
        model,
        module=dataclasses.replace(model.module, dtype=jnp.dtype(dtype)),
        params=jax.tree.map(lambda leaf: leaf.astype(dtype), model.params),
    )
    sequence = jax.random.randint(jax.random.key(0), (1, tokens), 3, model.config.vocab)
    computed = jax.jit(partial(forward, cast.module))(cast.params, sequence, jnp.ones((1, tokens), bool))
    return np.asarray(computed[0], np.float32)


def loop(size: Size, report: Report) -> None:
    """Measures models together on the device, searches for a policy, serves them, and compares with a simulation."""
    with tempfile.TemporaryDirectory() as directory:
        jax.config.update("jax_compilation_cache_dir", str(Path(directory) / "cache"))  # the engine compiles twice
        situation = _measured(size, Path(directory), report)
        policy = _searched(situation, report)
        seconds = time.perf_counter()
        workload = [build(Poisson(load=load), situation) for load in size.loads]
        lists = [sample_workload(each, situation.task_names, size.requests, 0) for each in workload]
        for load, requests, played in zip(size.loads, lists, _served(size, situation, policy, lists), strict=True):
            model = simulate(requests, situation, learned_router(policy))
            told = {"what": "loop", "load": load, "requests": len(requests), "failed": sum(played.failures.values())}
            report({**told, "measured": _figures(played.result), "simulated": _figures(model)})
        report({"what": "step", "step": "serve", "seconds": round(time.perf_counter() - seconds, 1)})


def _figures(result: Result) -> dict[str, float]:
    found = {"performance": metrics.performance(result), "slo_attainment": metrics.slo_attainment(result)}
    for percentile, value in zip((50, 95), metrics.latency_percentiles(result, (50.0, 95.0)), strict=True):
        found[f"latency_p{percentile}_s"] = value
    return {name: float(value) for name, value in found.items()}


def _measured(size: Size, directory: Path, report: Report) -> Situation:
    """The loop's situation, with the models as they are on this device, which they share."""
    start, situation = time.perf_counter(), load_situation(size.situation)
    places = tuple(str(laptop.model_directory(name)) if name in laptop.MODELS else name for name in size.served)
    plan = MeasurementPlan(
        places,
        dtype="bfloat16",
        max_batch=size.buckets.batch[-1],
        context=size.buckets.length[-1],
        repeats=REPEATS,
        buckets=size.buckets,
    )
    qualities = read_qualities(size.served, None if situation.profile.name != "laptop" else "laptop")
    profile = measure_profile(plan, qualities, directory / "loop.json").profile
    report({"what": "step", "step": "measure", "seconds": round(time.perf_counter() - start, 1)})
    report({"what": "profile", "profile": json.loads((directory / "loop.json").read_text(encoding="utf-8"))})
    batch = size.buckets.batch[-1]
    return dataclasses.replace(situation, profile=profile, cluster=Cluster(1, batch, batch))


def _searched(situation: Situation, report: Report) -> Policy:
    """What a short search finds for it, on the host's processor."""
    start = time.perf_counter()
    run, _ = load_run(
        "quickstart", changes={**_SEARCH, "training.search.generations": 2, "training.search.requests": 2000}
    )
    with tempfile.TemporaryDirectory() as out, jax.default_device(jax.devices("cpu")[0]):
        (policy,) = train_policies(make_training_problem(situation, run.training), Path(out)).values()
    report({"what": "step", "step": "search", "seconds": round(time.perf_counter() - start, 1)})
    return policy


class _Words:
    """Texts whose words are tokens, whatever they say."""

    def encode(self, text: str) -> list[int]:
        return [7] * max(len(text.split()), 1)

    def decode(self, tokens: list[int]) -> str:
        return " hello" * len(tokens)


def _served(size: Size, situation: Situation, policy: Policy, lists: Sequence[Requests]) -> list[Played]:
    """Plays the lists to the gateway in front of the engine, all over HTTP."""
    models = {
        name: load_model(laptop.model_directory(name), "bfloat16")
        if name in laptop.MODELS
        else random_model(name, jnp.bfloat16)
        for name in size.served
    }
    batch, context = size.buckets.batch[-1], size.buckets.length[-1]
    engine = Engine(models, max_batch=batch, queue_capacity=batch, context=context, buckets=size.buckets)

    async def serve() -> list[Played]:
        async with engine, contextlib.AsyncExitStack() as stack:
            await engine.warm_up()
            listen = Listen(port=0)
            behind = Listener(EngineServer(engine, dict.fromkeys(models, _Words()), listen).application(), listen)
            stack.push_async_callback(behind.stop)
            server = await behind.start()
            pools = tuple(Pool(name, (f"{server}/{name}/v1",)) for name in models)
            config = GatewayConfig(pools=pools, situation=size.situation, listen=listen)
            gateway = Gateway(make_snapshot(config, policy), None)
            stack.push_async_callback(gateway.stop)
            target = Target(f"{await gateway.start()}/v1")
            return [await asyncio.to_thread(play, requests, situation, target) for requests in lists]

    return asyncio.run(serve())


PARTS: dict[str, tuple[Callable[[Size, Report], None], float]] = {
    "opt": (opt, 200.0),
    "transformers": (transformers, 70.0),
    "simulator": (simulator, 70.0),
    "training": (training, 90.0),
    "logits": (logits, 30.0),
    "loop": (loop, 130.0),
}
"""Each part, in order, with the seconds that it may take."""


def run_part(name: str, lines: Path, *, fast: bool) -> dict[str, Any]:
    """Runs a part as a process, until it ends or its time is up; what it measured, and how it ended."""
    command = [sys.executable, "-m", "benchmarks.accelerator", "--child", name, "--lines", str(lines)]
    _, limit_s = PARTS[name]
    start = time.perf_counter()
    try:
        status = subprocess.run([*command, *["--fast"] * fast], cwd=ROOT, timeout=limit_s, check=False).returncode
        ended = "done" if status == 0 else f"failed with status {status}"
    except subprocess.TimeoutExpired:
        ended = f"cut off after {limit_s:g} s"
    return {"ended": ended, "seconds": round(time.perf_counter() - start, 1), "lines": read_jsonl(lines)}


def main(arguments: Sequence[str] | None = None) -> int:
    """Reads the command line, runs the parts, prints and writes; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.accelerator", description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="*", help=f"which, by default all: {', '.join(PARTS)}")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "accelerator.json", help="file to write")
    parser.add_argument("--fast", action="store_true", help="tiny sizes: whether it runs, on any device")
    parser.add_argument("--child", choices=tuple(PARTS), help=argparse.SUPPRESS)
    parser.add_argument("--lines", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.child:
        return _child(args.child, args.lines, FAST if args.fast else FULL)
    for name in args.parts:
        if name not in PARTS:
            parser.error(f"there is no part `{name}`; choose from {', '.join(PARTS)}")
    check_replaced(parser, args.out, fast=args.fast)
    console = Console(width=160)
    packages = [name for name in ("jax", "jaxlib", "flax", "torch", "transformers") if importlib.util.find_spec(name)]
    found: dict[str, Any] = {"machine": machine(*packages), "size": "fast" if args.fast else "full", "parts": {}}
    with tempfile.TemporaryDirectory() as directory:
        for name in args.parts or PARTS:
            console.rule(name)
            part = found["parts"][name] = run_part(name, Path(directory) / f"{name}.jsonl", fast=args.fast)
            console.print(f"{name}: {part['ended']}, {part['seconds']:g} s, {len(part['lines'])} lines")
            write_result(args.out, found, fast=args.fast)
    return 0 if all(part["ended"] == "done" for part in found["parts"].values()) else 1


def _child(name: str, lines: Path, size: Size) -> int:
    def report(line: Line) -> None:
        append_jsonl(lines, line)
        print(json.dumps(line), flush=True)

    if name != "transformers":  # JAX would take the card's memory
        report({"what": "where", "device": device_name(), "jax": importlib.metadata.version("jax")})
    try:
        PARTS[name][0](size, report)
    except InputError as error:
        report({"what": "nothing", "failed": str(error)})
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
