"""The command `engine`: loads models, compiles, serves."""

from __future__ import annotations

import asyncio
import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from besteffort import laptop
from besteffort.errors import InputError, brief
from besteffort.gateway.config import Key, Listen, is_loopback
from besteffort.opt.hub import short_name

_NAME = re.compile("[A-Za-z0-9._-]{1,64}")


@dataclasses.dataclass(frozen=True)
class Loaded:
    """Models and how their texts are tokens, by name."""

    models: Mapping[str, Any]
    texts: Mapping[str, Any]


def load_models(models: Sequence[str], dtype: str = "float32") -> Loaded:
    """Loads models of the laptop tier, from directories or from the Hugging Face Hub.

    Args:
      models: names or directories. What they are served as is the last part.
      dtype: `float32` or `bfloat16`.

    Raises:
      InputError: if one cannot be read, or two would have the same name.
    """
    if all(model in laptop.MODELS for model in models):
        laptop.compute_in_one_thread()
    from besteffort.engine.texts import HubTexts, LaptopTexts
    from besteffort.opt.weights import load_model

    named: dict[str, str] = {}
    for model in models:
        name = short_name(model)
        if not _NAME.fullmatch(name):
            raise InputError(
                f"{brief(model)}: its last part is to have 1 to 64 letters, digits, `.`, `_` and `-`; rename it."
            )
        if name in named:
            raise InputError(f"`{name}` is the name of two models; rename the directory of one.")
        named[name] = model
    where: dict[str, str | Path] = {
        name: laptop.model_directory(model) if model in laptop.MODELS else model for name, model in named.items()
    }
    texts = {name: LaptopTexts() if named[name] in laptop.MODELS else HubTexts(place) for name, place in where.items()}
    return Loaded({name: load_model(place, dtype) for name, place in where.items()}, texts)


def check_listen(host: str, port: int, key_env: str | None) -> tuple[Listen, tuple[Key, ...]]:
    """Where an engine listens, and the key that it wants.

    Raises:
      InputError: if others reach it, and there is no key.
    """
    if key_env is None and not is_loopback(host):
        raise InputError(
            f"`--host` is {brief(host)}, which others reach, and there is no key; name the variable that holds one by "
            "`--api-key-env`, or listen on 127.0.0.1."
        )
    return Listen(host=host, port=port), () if key_env is None else (Key("engine", env=key_env),)


def serve(
    loaded: Loaded,
    listen: Listen,
    keys: Sequence[Key] = (),
    *,
    max_batch: int,
    queue_capacity: int,
    context: int | None = None,
    status: Callable[[str], None] = lambda text: None,
    ready: Callable[[str], None] = lambda address: None,
) -> None:
    """Serves until SIGTERM or SIGINT, or until a model fails, whose error then ends it.

    Args:
      loaded: the models.
      listen: where.
      keys: what clients need.
      max_batch: requests of a model that run at once.
      queue_capacity: requests of a model that may wait beyond these.
      context: longest sequence in tokens; by default each model's limit.
      status: gets what is going on until it listens.
      ready: gets the address once it does.

    Raises:
      InputError: if the address is taken, a key is missing, or the caches do not fit.
    """
    from besteffort.engine.server import EngineServer
    from besteffort.gateway import process
    from besteffort.gateway.config import KeyRing
    from besteffort.gateway.http import Listener
    from besteffort.opt.engine import Engine

    ring = KeyRing(keys)
    engine = Engine(loaded.models, max_batch=max_batch, queue_capacity=queue_capacity, context=context)

    async def main() -> None:
        async with engine:
            await warm_up(engine, status)
            listener = Listener(EngineServer(engine, loaded.texts, listen, ring).application(), listen)
            try:
                address = await listener.start()
                await process.until_told(lambda: ready(address), over=lambda: not engine.serving)
            finally:
                await listener.stop()

    process.run(main())


async def warm_up(engine: Any, status: Callable[[str], None]) -> None:
    """Compiles all that an engine needs, and gives up at once where an interrupt comes."""
    from besteffort import interrupts

    def tell(name: str, done: int, total: int) -> None:
        status(f"Compiling {name}; {done} of {total}")

    work = asyncio.create_task(engine.warm_up(tell))
    while not work.done():
        await asyncio.wait([work], timeout=0.2)
        interrupts.check()
    await work
