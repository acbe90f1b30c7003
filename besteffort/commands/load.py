"""`besteffort load`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import tyro
from annotated_types import Interval

from besteffort.commands.options import (
    Changes,
    Config,
    MaybeLoad,
    PartOfLog,
    SharedChanges,
    SharedOutput,
    SharedPart,
    metavar,
    optional,
)
from besteffort.console import Answer, Flag, Output
from besteffort.errors import InputError


def load(
    url: tyro.conf.Positional[Annotated[str | None, optional("URL")]] = None,
    requests: tyro.conf.Positional[Annotated[Path | None, optional("REQUESTS")]] = None,
    out: Annotated[Path | None, optional("DIR")] = None,
    demo: Flag = False,
    config: Config = "paper",
    model: Annotated[str, metavar("MODEL")] = "besteffort",
    api_key_env: Annotated[str | None, optional("VARIABLE")] = None,
    plain: Flag = False,
    load: MaybeLoad = None,
    seed: Annotated[int, metavar("N"), Interval(ge=0, le=2**31 - 1)] = 0,
    part: SharedPart = PartOfLog(),
    changes: SharedChanges = Changes(),
    output: SharedOutput = Output(),
) -> Answer:
    """Play a list of requests to a gateway or server in real time, and measure what comes back.

    Args:
      url: address of a server with OpenAI's API, up to and including `/v1`.
      requests: log or trace: its format is recognised by its content; see docs/logs.md.
      out: new directory for `requests.csv` and `summary.json`, as of `simulate`.
      demo: ask `besteffort serve --demo` for answers that are known, in bursts, and count the right ones in time; then
        ask each model alone.
      config: situation, which says what answers are worth: a name or a YAML file.
      model: what to ask the server for.
      api_key_env: environment variable that holds the server's key.
      plain: ask for whole answers instead of streams.
      load: mean load to scale the list to, in multiples of the largest model's capacity for it; by default as it is.
      seed: of tasks that the file does not name.
      part: options on how to read a log, and which part of it.
      changes: options that change the situation.
      output: options on what is printed.
    """
    from besteffort.files import check_run_directory, create_run_directory
    from besteffort.gateway.command import needs_extra
    from besteffort.runs.config import load_situation
    from besteffort.runs.playing import read_list, write_result

    with needs_extra("load"):
        from besteffort.gateway.config import secret_of
        from besteffort.load.play import Target, play
    answer = Answer("load", output)
    if demo:
        stated = (requests, out, config, model, api_key_env, plain, load, part, changes)
        if stated != (None, None, "paper", "besteffort", None, False, None, PartOfLog(), Changes()):
            raise InputError(
                "`load --demo` has its own requests and situation and writes no files; leave all but the address and "
                "`--seed` out."
            )
        return _load_demo(answer, url, seed)
    if url is None or requests is None or out is None:
        raise InputError(
            "`load` needs an address, a log or trace, and `--out`: "
            "`besteffort load http://127.0.0.1:8080/v1 my_log.csv --out played`; or `--demo`."
        )
    check_run_directory(out, "load")
    known = load_situation(config, **changes.arguments())
    key = None if api_key_env is None else secret_of("`--api-key-env`", api_key_env)
    with answer.status("Reading"):
        listed, situation, info = read_list(requests, known, part.reading([requests]), seed=seed, load=load)
    create_run_directory(out)
    with answer.status("Playing") as say:
        played = play(
            listed,
            situation,
            Target(url.rstrip("/"), model, key, not plain),
            lambda sent, done: say(f"Playing; {sent:,} of {len(listed.task):,} sent, {done:,} ended"),
        )
    for table in write_result(played.result, situation, model, out):
        answer.table(table)
    answer.note(str(info))
    for reason, count in played.failures.most_common():
        answer.note(f"{count:,} of {len(listed.task):,} requests failed: {reason}.")
    answer.note(f"Requests were sent at most {1e3 * played.late_s:.0f} ms after their times.")
    answer.file("per_request", out / "requests.csv")
    answer.file("summary", out / "summary.json")
    return answer


def _load_demo(answer: Answer, url: str | None, seed: int) -> Answer:
    from besteffort.demo import play as demo

    asked = demo.ask(seed)
    played = {}
    with answer.status("Playing") as say:
        for name, target in demo.targets(url or demo.URL).items():

            def progress(sent: int, done: int, name: str = name) -> None:
                say(f"Asking {name}; {sent:,} of {len(asked.in_burst):,} sent, {done:,} ended")

            played[name] = demo.play_demo(asked, target, progress)
    answer.table(demo.table(asked, played))
    for name, each in played.items():
        for reason, count in each.failures.most_common():
            answer.note(f"{name}: {count:,} requests failed, {reason}.")
    return answer
