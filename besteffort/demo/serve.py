"""`besteffort serve --demo`: the engine with three models and a gateway before it, in one process."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable

from besteffort import laptop
from besteffort.demo.fleet import SITUATION, paces
from besteffort.engine.command import load_models, warm_up
from besteffort.gateway import process
from besteffort.gateway.config import GatewayConfig, Listen, Pool
from besteffort.gateway.http import Listener
from besteffort.gateway.process import LOGGER
from besteffort.gateway.serve import Gateway
from besteffort.gateway.snapshot import make_snapshot
from besteffort.runs.config import load_situation

HOST = "127.0.0.1"
PORT = 8080
"""Of the gateway; the engine listens on the next one."""


def run(port: int, status: Callable[[str], None], ready: Callable[[str, str], None]) -> None:
    """Serves until SIGTERM or SIGINT.

    Args:
      port: of the gateway, 0 for any; the engine's is the next one.
      status: gets what is going on until it listens.
      ready: gets the addresses of gateway and engine.

    Raises:
      InputError: if a port is taken.
    """

    async def main() -> None:
        async with demo(port, status) as (gateway, address, engine):
            await process.until_told(lambda: ready(address, engine), gateway.tick)
            await gateway.drain()

    process.log_to_stderr(LOGGER)
    process.run(main())


@contextlib.asynccontextmanager
async def demo(
    port: int = 0, status: Callable[[str], None] = lambda text: None
) -> AsyncIterator[tuple[Gateway, str, str]]:
    """The gateway, its address, and the engine's.

    Raises:
      InputError: if a port is taken.
    """
    status("Loading")
    loaded = load_models(laptop.MODELS)
    from besteffort import default_policy
    from besteffort.engine.server import EngineServer
    from besteffort.opt.engine import Engine

    situation = load_situation(SITUATION)
    cluster = situation.cluster
    engine = Engine(
        loaded.models, max_batch=cluster.max_batch, queue_capacity=cluster.queue_capacity, paces=paces(situation)
    )
    async with engine, contextlib.AsyncExitStack() as stack:
        await warm_up(engine, status)
        listen = Listen(host=HOST, port=port + 1 if port else 0)
        behind = Listener(EngineServer(engine, loaded.texts, listen).application(), listen)
        stack.push_async_callback(behind.stop)
        server = await behind.start()
        pools = tuple(Pool(model, (f"{server}/{model}/v1",)) for model in engine.models)
        config = GatewayConfig(pools=pools, situation=SITUATION, listen=Listen(host=HOST, port=port))
        gateway = Gateway(make_snapshot(config, default_policy(situation)), None)
        stack.push_async_callback(gateway.stop)
        yield gateway, await gateway.start(), server
