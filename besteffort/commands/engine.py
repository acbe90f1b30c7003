"""`besteffort engine`."""

from __future__ import annotations

import contextlib
from typing import Annotated, Literal

import tyro
from annotated_types import Interval

from besteffort.commands.options import FEW, PORT, MaybeCount, Models, SharedOutput, metavar, optional
from besteffort.console import Answer, Output


def engine(
    models: tyro.conf.Positional[Models],
    host: Annotated[str, metavar("ADDRESS")] = "127.0.0.1",
    port: Annotated[int, metavar("N"), PORT] = 8000,
    api_key_env: Annotated[str | None, optional("VARIABLE")] = None,
    dtype: Literal["float32", "bfloat16"] = "float32",
    max_batch: Annotated[int, metavar("N"), FEW] = 16,
    queue_capacity: Annotated[int, metavar("N"), Interval(ge=0, le=2**16)] = 64,
    context: MaybeCount = None,
    output: SharedOutput = Output(),
) -> None:
    """Serve OPT models with OpenAI's API on this device, all in one process.

    Args:
      models: models of the laptop tier (`laptop-1m`), directories with weights and tokenizer, or names on the Hugging
        Face Hub.
      host: address to listen on; any other than of this machine needs `--api-key-env`.
      port: port to listen on; 0 takes a free one.
      api_key_env: environment variable with a key that clients need.
      dtype: number format of weights and cache.
      max_batch: requests of a model that run at once.
      queue_capacity: requests of a model that may wait beyond these; further ones are refused.
      context: longest sequence in tokens, prompt and answer; by default each model's limit.
      output: options on what is printed.
    """
    from besteffort.engine import command
    from besteffort.gateway.command import needs_extra

    with needs_extra("engine"):
        import aiohttp  # noqa: F401
    answer = Answer("engine", output)
    listen, keys = command.check_listen(host, port, api_key_env)
    with contextlib.ExitStack() as starting:
        say = starting.enter_context(answer.status("Loading"))
        loaded = command.load_models(models, dtype)

        def ready(address: str) -> None:
            starting.close()
            answer.line(f"Listening on {address}: models {', '.join(loaded.models)}.")

        command.serve(
            loaded,
            listen,
            keys,
            max_batch=max_batch,
            queue_capacity=queue_capacity,
            context=context,
            status=say,
            ready=ready,
        )
