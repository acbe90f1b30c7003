"""A policy as one ONNX file, for routers that are not written in Python.

| input | type | shape | |
|---|---|---|---|
| `task` | int64 | (batch,) | index of the request's task, in the order of the metadata |
| `batch_sizes` | int64 | (batch, pools) | requests running and waiting per model on all replicas, except this one |
| `arrival_rate` | double | (batch,) | requests per second, see `besteffort.observation.next_rate` |
| `smallest_batch` | int64 | (batch, pools) | the same on the least loaded instance of each model |
| `deadline_s`, `since_change_s` | double | (batch,) | visible deadline; time since a batch size changed |
| `prompt_tokens` | int64 | (batch,) | length of the request's prompt |
| `origin` | int64 | (batch,) | index of the request's origin, in the order of the metadata; their number for none |
| `tenant_weight` | double | (batch,) | weight of the request's tenant, see `Situation.tenant_weights`; 1 for none |
| `own`, `harm`, `work`, `load`, `value` | double | (batch, pools) | estimates, see below |
| `first_token_s`, `completion_s`, `observed_slowdown` | double | (batch, pools) | estimates, see below |

| output | type | shape | |
|---|---|---|---|
| `q_values` | float | (batch, pools) | Q-value of each model |
| `model` | int64 | (batch,) | index of the largest |

The graph has an input for each feature of the policy. Estimates are inputs, too: whoever asks works them out from the
requests in flight, as `besteffort.estimates.estimates` says. The graph computes the transforms in double precision,
like `besteffort.policy`, and the network in single precision. It fails on a task or origin that there is not, and does
not check that other values are finite and not negative. The file's metadata are those of the policy file, each entry as
JSON.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from besteffort.errors import InputError
from besteffort.files import check_new_file, write_bytes
from besteffort.observation import ONE_HOT, ORIGIN, PER_MODEL, Feature
from besteffort.policy import Policy, describe

try:
    import onnx
    from onnx import TensorProto, helper, numpy_helper
except ImportError as error:
    raise InputError("The package `onnx` is not installed; run `pip install onnx` to export to ONNX.") from error

OPSET = 17
"""Version of the operators, supported by ONNX Runtime since 1.12 (2022)."""

_IR_VERSION = 8
_COUNTS = (*ONE_HOT, "batch_sizes", "smallest_batch", "prompt_tokens")


def to_onnx(policy: Policy) -> onnx.ModelProto:
    """Converts the policy to an ONNX model, and checks it with ONNX's checker."""
    nodes: list[Any] = []
    constants: list[Any] = []

    def constant(name: str, values: Any) -> str:
        constants.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def node(operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(operator, inputs, [output], name=output, **attributes))
        return output

    def encoded(feature: Feature) -> str:
        """(batch, size) float32 part of the network's input."""
        name = feature.name
        if feature.transform == "one_hot":
            # Rows of the unit matrix: unlike `OneHot`, this fails on an invalid index. Origins have one more, for none.
            rows = np.eye(feature.size + (name == ORIGIN), feature.size, dtype=np.float32)
            # `Gather` counts negative indices from the end, so they become one that there is not.
            negative = node("Less", [name, constant(f"{name}_zero", np.int64(0))], f"{name}_negative")
            index = node("Where", [negative, constant(f"{name}_count", np.int64(len(rows))), name], f"{name}_index")
            return node("Gather", [constant(f"{name}s", rows), index], f"{name}_encoded")
        value = node("Cast", [name], f"{name}_double", to=TensorProto.DOUBLE) if name in _COUNTS else name
        if name not in PER_MODEL:
            value = node("Reshape", [value, constant(f"{name}_shape", np.array([-1, 1]))], f"{name}_column")
        value = node("Div", [value, constant(f"{name}_scale", np.asarray(feature.scale, np.float64))], f"{name}_scaled")
        if feature.transform == "log1p":
            value = node("Add", [value, constant(f"{name}_one", np.float64(1.0))], f"{name}_plus_one")
            value = node("Log", [value], f"{name}_log")
        return node("Cast", [value], f"{name}_encoded", to=TensorProto.FLOAT)

    hidden = node("Concat", [encoded(feature) for feature in policy.features], "features", axis=1)
    last = len(policy.weights) - 1
    for i, (kernel, bias) in enumerate(policy.weights):
        names = [hidden, constant(f"kernel_{i}", kernel), constant(f"bias_{i}", bias)]
        hidden = node("Gemm", names, "q_values" if i == last else f"layer_{i}")
        if i < last:
            hidden = node("Relu", [hidden], f"hidden_{i}")
    node("ArgMax", ["q_values"], "model", axis=1, keepdims=0)
    graph = helper.make_graph(
        nodes,
        "besteffort",
        [_input(feature) for feature in policy.features],
        [
            helper.make_tensor_value_info("q_values", TensorProto.FLOAT, ["batch", len(policy.models)]),
            helper.make_tensor_value_info("model", TensorProto.INT64, ["batch"]),
        ],
        constants,
    )
    model = helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=_IR_VERSION,
        producer_name="besteffort",
        producer_version=policy.version,
    )
    helper.set_model_props(model, {name: json.dumps(value) for name, value in describe(policy).items()})
    onnx.checker.check_model(model, full_check=True)
    return model


def export_onnx(policy: Policy, path: str | Path) -> None:
    """Writes the policy as an ONNX file, atomically.

    Raises:
      InputError: if `path` exists already, or cannot be written.
    """
    check_new_file(path)
    write_bytes(path, to_onnx(policy).SerializeToString())


def _input(feature: Feature) -> Any:
    kind = TensorProto.INT64 if feature.name in _COUNTS else TensorProto.DOUBLE
    per_model = feature.name in PER_MODEL
    return helper.make_tensor_value_info(feature.name, kind, ["batch", feature.size] if per_model else ["batch"])
