"""An engine of the laptop tier's smallest model behind its server, on loopback."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import AsyncIterator

import openai

from besteffort.engine.server import EngineServer
from besteffort.engine.texts import LaptopTexts
from besteffort.gateway.config import KeyRing, Listen
from besteffort.gateway.http import Listener
from besteffort.laptop import model_directory
from besteffort.opt.engine import Engine, Pace
from besteffort.opt.runtime import Buckets
from besteffort.opt.weights import Model, load_model

NAME = "laptop-100k"
BUCKETS = Buckets((2,), (18,), (18,))


@functools.cache
def model() -> Model:
    return load_model(model_directory(NAME))


@dataclasses.dataclass
class Serving:
    """An engine, and a client of its server."""

    engine: Engine
    address: str
    client: openai.AsyncOpenAI


@contextlib.asynccontextmanager
async def serving(
    pace: Pace | None = None, *, others: tuple[str, ...] = (), queue_capacity: int = 8, keys: KeyRing | None = None
) -> AsyncIterator[Serving]:
    """Two requests run at once. `others` are further names of the same model."""
    names = (NAME, *others)
    paces = {} if pace is None else dict.fromkeys(names, pace)
    models = dict.fromkeys(names, model())
    listen = Listen(port=0)
    engine = Engine(models, max_batch=2, queue_capacity=queue_capacity, buckets=BUCKETS, paces=paces)
    async with engine:
        await engine.warm_up()
        server = EngineServer(engine, dict.fromkeys(names, LaptopTexts()), listen, keys)
        listener = Listener(server.application(), listen)
        try:
            address = await listener.start()
            key = "key-of-sixteen-characters"
            async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key=key, max_retries=0) as client:
                yield Serving(engine, address, client)
        finally:
            await listener.stop()
