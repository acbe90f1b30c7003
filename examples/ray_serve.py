"""Ray Serve: models as deployments, and one in front of them that picks which of them answers.

    python -m pip install '.[gateway]' 'ray[serve]'
    serve run examples.ray_serve:application

    curl http://127.0.0.1:8000/ -d '{"task": "piqa", "prompt": "To open a jar,"}'

What the gateway's file says of addresses is not used, for Serve carries the requests; policy, tasks, limits and leases
are. The models here say who they are; put yours in their place.
"""

from __future__ import annotations

import secrets
import tempfile
from pathlib import Path
from typing import Any

from ray import serve
from ray.serve.handle import DeploymentHandle

from besteffort.gateway.core import Ask, Outcome, RefusedError, Ticket
from besteffort.plugins.unused import make_core

POOLS = ("opt-125m", "opt-6.7b")


@serve.deployment(max_ongoing_requests=16)
class Model:
    """A model."""

    def __init__(self, name: str) -> None:
        self.name = name

    async def __call__(self, prompt: str) -> str:
        return f"{self.name} on {prompt!r}"


# One replica: it is the one that knows what is in flight.
@serve.deployment(num_replicas=1, max_ongoing_requests=1000)
class BestEffort:
    """Asks the model that the policy decides for."""

    def __init__(self, config: str, models: dict[str, DeploymentHandle]) -> None:
        """By pool of the gateway's configuration its model."""
        self.core, self.models = make_core(config, "Ray Serve"), models

    async def __call__(self, request: Any) -> dict[str, str]:
        asked = await request.json()
        try:
            ticket = self.core.arrive(Ask(asked["task"], characters=len(asked["prompt"])), secrets.token_hex(8))
            return await self._answer(ticket, asked["prompt"])
        except RefusedError as refused:
            return {"error": str(refused)}

    async def _answer(self, ticket: Ticket, prompt: str) -> dict[str, str]:
        outcome: Outcome = "refused"
        try:
            claim, outcome = self.core.claim(ticket), "failed"
            pool = claim.place.pool.name
            try:
                text = await self.models[pool].remote(prompt)
            except BaseException as error:
                if left := not isinstance(error, Exception):  # the client has left, which is no fault of the pool
                    outcome = "cancelled"
                self.core.failed(claim, type(error).__name__, blame=not left)
                raise
            self.core.finished(claim, output_tokens=len(text.split()))
            outcome = "answered"
            return {"model": pool, "text": text}
        finally:
            self.core.close(ticket, outcome)

    def in_flight(self) -> int:
        """Requests that have no answer yet."""
        return self.core.open_requests


def make_config(directory: Path) -> str:
    """A gateway's file for `POOLS`; its path."""
    pools = [f"- {{name: {pool}, urls: ['http://{pool}/v1']}}" for pool in POOLS]
    path = directory / "gateway.yaml"
    path.write_text("\n".join(["situation: paper", "pools:", *pools]), encoding="utf-8")
    return str(path)


_models = {pool: Model.options(name=pool).bind(pool) for pool in POOLS}  # type: ignore[attr-defined]
application = BestEffort.bind(make_config(Path(tempfile.mkdtemp())), _models)  # type: ignore[attr-defined]
