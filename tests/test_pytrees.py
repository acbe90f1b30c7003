"""Classes that JAX does not tell apart."""

from __future__ import annotations

import dataclasses

from besteffort.pytrees import node_types
from besteffort.routers import RandomRouter, ShortestQueueRouter, StaticRouter
from besteffort.routers.published import LatencyBasedRouter
from besteffort.routers.switch import SwitchRouter


def test_classes_with_equally_many_fields_differ() -> None:
    for one, other in ((RandomRouter(), ShortestQueueRouter()), (StaticRouter(1), LatencyBasedRouter(1.0))):
        assert node_types(one) != node_types(other)
        assert node_types(SwitchRouter((one,), 0)) != node_types(SwitchRouter((other,), 0))
        assert node_types({"router": one}) == node_types({"router": dataclasses.replace(one)})
