"""`besteffort policy show` and `besteffort policy export`."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from besteffort.commands.options import NewFile, SharedOutput, metavar
from besteffort.console import Answer, Output
from besteffort.errors import printable

if TYPE_CHECKING:
    from besteffort.policy import Policy

_LONGEST = 500  # characters of a value that `policy show` shows


def policy_show(
    file: tyro.conf.Positional[Annotated[Path, metavar("POLICY")]], output: SharedOutput = Output()
) -> Answer:
    """Show what a policy file holds.

    Args:
      file: policy file.
      output: options on what is printed.
    """
    from besteffort.policy import load_policy

    answer = Answer("policy show", output)
    _show(load_policy(file), answer)
    return answer


def policy_export(
    file: tyro.conf.Positional[Annotated[Path, metavar("POLICY")]], onnx: NewFile, output: SharedOutput = Output()
) -> Answer:
    """Export a policy file for other languages.

    Args:
      file: policy file.
      onnx: new ONNX file to export to.
      output: options on what is printed.
    """
    from besteffort.files import check_new_file
    from besteffort.policy import load_policy

    check_new_file(onnx)
    answer = Answer("policy export", output)
    loaded = load_policy(file)
    from besteffort.adapters.onnx import export_onnx

    export_onnx(loaded, onnx)
    answer.files("onnx", "ONNX", [onnx])
    return answer


def _show(loaded: Policy, answer: Answer) -> None:
    """What is in a policy file, a line each."""
    layers = [kernel.shape[0] for kernel, _ in loaded.weights] + [len(loaded.models)]
    situation = loaded.situation
    profile, cluster, tenants = situation.profile, situation.cluster, situation.tenants
    scales = {f.name: f"{f.scale:g}" if isinstance(f.scale, float) else "of each pool" for f in loaded.features}
    lines = {
        "models": ", ".join(loaded.models),
        "tasks": ", ".join(loaded.tasks),
        "features": ", ".join(f"{f.name} ({f.size}, {f.transform}, scale {scales[f.name]})" for f in loaded.features),
        "network": " x ".join(map(str, layers)),
        "decides by": _decides_by(loaded),
        "deadlines": "; ".join(
            f"{1000 * task.deadline.base_s:g} ms + {1000 * task.deadline.per_token_s:g} ms per token"
            for task in situation.tasks
        ),
        **(
            {
                f"pool {pool.name}": f"{pool.model}, {pool.replicas} replicas, `max_batch` {pool.max_batch}, "
                f"`queue_capacity` {pool.queue_capacity}"
                for pool in situation.pools
            }
            or {
                "cluster": f"{cluster.replicas} replicas, `max_batch` {cluster.max_batch}, `queue_capacity` "
                f"{cluster.queue_capacity}"
            }
        ),
        **({"origins": ", ".join(situation.origin_names)} if situation.origins else {}),
        **({"tenants": ", ".join(f"{each.name} (weight {each.weight:g})" for each in tenants)} if tenants else {}),
        "rate estimate": f"over {loaded.rate_tau_s:g} s",
        "profile": f"{profile.name} ({profile.digest()})",
        "written by": f"besteffort {loaded.version}",
        **{f"training.{name}": str(value) for name, value in loaded.training.items()},
    }
    width = max(map(len, lines))
    for name, value in lines.items():
        answer.line(printable(f"{name:<{width}}  {value if len(value) < _LONGEST else f'{value[:_LONGEST]}...'}"))
    answer.data(
        models=loaded.models,
        tasks=loaded.tasks,
        features=[dataclasses.asdict(feature) for feature in loaded.features],
        layers=layers,
        decides_by=_decides_by(loaded),
        deadlines={task.name: dataclasses.asdict(task.deadline) for task in situation.tasks},
        **(
            {"pools": [dataclasses.asdict(pool) for pool in situation.pools]}
            if situation.pools
            else {"cluster": dataclasses.asdict(cluster)}
        ),
        **({"origins": situation.origin_names} if situation.origins else {}),
        **({"tenants": [dataclasses.asdict(each) for each in tenants]} if tenants else {}),
        rate_tau_s=loaded.rate_tau_s,
        profile={"name": profile.name, "digest": profile.digest()},
        written_by=loaded.version,
        training=loaded.training,
    )


def _decides_by(loaded: Policy) -> str:
    """Whether the rule of a policy decides, its networks, or both."""
    if loaded.rule is None:
        return "its networks"
    if loaded.is_rule:
        return "its rule"
    # Training keeps the share of what networks have learned that did best, which may be none.
    nothing = loaded.training.get("added") == 0
    return "its rule, to which its networks add nothing" if nothing else "its rule and networks"
