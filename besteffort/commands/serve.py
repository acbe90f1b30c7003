"""`besteffort serve`."""

from __future__ import annotations

import contextlib
from typing import Annotated

import tyro

from besteffort.commands.options import PORT, MaybeConfig, SharedOutput, optional
from besteffort.console import Answer, Flag, Output
from besteffort.errors import InputError


def serve(
    config: tyro.conf.Positional[MaybeConfig] = None,
    check: Flag = False,
    demo: Flag = False,
    port: Annotated[int | None, optional("N"), PORT] = None,
    workers: int = 1,
    output: SharedOutput = Output(),
) -> Answer | None:
    """Serve OpenAI's API, and let a policy choose which of your servers answers each request.

    Args:
      config: YAML file that names pools of servers, a policy, and where to listen.
      check: read and check everything, and end.
      demo: serve three small models that come with the package, in the same process; no configuration is needed.
      port: port of the demo, 8080 unless given; its engine listens on the next one.
      workers: processes that share the work on this host.
      output: options on what is printed.
    """
    from besteffort.gateway import command

    answer = Answer("serve", output)
    if demo:
        if config is not None or check or workers != 1:
            raise InputError("`serve --demo` needs no configuration; leave it, `--check` and `--workers` out.")
        _serve_demo(answer, port)
        return None
    if config is None:
        raise InputError("`serve` needs a configuration, `besteffort serve gateway.yaml`, or `--demo`.")
    if port is not None:
        raise InputError("`--port` is of the demo; set `listen.port` in the configuration.")
    if check:
        answer.line(command.check(config))
        return answer
    command.serve(config, answer.line, workers)
    return None


def _serve_demo(answer: Answer, port: int | None) -> None:
    from besteffort.gateway.command import needs_extra

    with needs_extra("serve --demo"):
        from besteffort.demo import serve as demo
    with contextlib.ExitStack() as starting:
        say = starting.enter_context(answer.status("Starting"))

        def ready(address: str, engine: str) -> None:
            starting.close()
            answer.line(f"Listening on {address}, with three models behind it on {engine}.")
            answer.line("In another shell: `besteffort load --demo`.")

        demo.run(demo.PORT if port is None else port, say, ready)
