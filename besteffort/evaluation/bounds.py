"""The fluid bound: what no router can beat on average, from a linear programme over tasks and models.

Share x[k, m] of task k's requests that model m answers in time, reward weight x quality for each:

    maximise    sum rate[k] weight[k] quality[k, m] x[k, m] / sum rate[k]
    subject to  sum_k rate[k] seconds[k, m] x[k, m] <= replicas      for every model m
                sum_m x[k, m] <= 1                                   for every task k

`seconds[k, m]` is the least time of an instance that one answer in time takes. It follows from the serving model. An
iteration with b earlier requests lasts `sum of prefill + decode(b)`. Charge each prefill to its request, and each
decode in equal parts, `decode(b) / b`, to the b requests that get a token from it. The charges of all requests then
add up to the time that the instance is busy, and a request of p prompt and n output tokens is charged

    prefill(p) + sum over its n - 1 decodes of decode(b_i) / b_i                                             (1)

*Without deadlines* (`deadlines=False`) this is at least `prefill(p) + (n - 1) min_b decode(b) / b`, whatever
happens on the instance.

*With deadlines* large batches are cheap per token but slow. An answer in time needs

    prefill(p) + sum over its n - 1 decodes of [ decode(b_i) + (prefills of others meanwhile) ] <= deadline       (2)

and the prefills of others are taken to be spread evenly: `h (b_i - 1)` beside decode i, where `h` is prefill seconds
per decoded token, the smallest over the tasks. With `slack = deadline - network delay - prefill(p)`, the least charge
(1) under (2) is `prefill(p) + (n - 1) G(slack / (n - 1))`: G is the lower convex envelope of the points
`(decode(b) + h (b - 1), decode(b) / b)`, since the batch may vary over the life of a request. A late answer still
costs the charge without deadlines. A router that does not see output lengths cannot choose whom it costs, so
`seconds` is the smallest ratio of charges to answers in time over all choices of which output lengths are to be in
time.

What makes it a bound: waiting, the iteration in progress at the arrival, decodes during the own first iteration,
slow-down between models and queue limits only make answers later or dearer, and prompt lengths enter by their mean,
which by the convexity of G only lowers the charge. What it assumes: prefills spread evenly as above (batches filled
and drained in turn can shift them somewhat), and routers that do not see the lengths of the single request. Context
cost counts like prefill; the cache bounds b.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float, Int
from scipy import optimize, sparse

from besteffort.errors import InputError
from besteffort.simulator.tables import Tables
from besteffort.situation import Reward, Situation
from besteffort.workload.requests import Requests

_SOFT_STEPS = (
    16  # steps into which the span of a soft deadline is cut; each counts as its early end, so that the bound holds
)
_GROUPS_PER_PROGRAMME = 256  # independent programmes that are solved as one


@dataclasses.dataclass(frozen=True)
class Bound:
    """Upper bounds for stationary load, arrays of the shape (*rates) of the rates asked for; for a list, of shape ().

    Attributes:
      performance: on the mean reward.
      slo_attainment: on the share answered in time; reached by other shares than the performance.
      routing: (*rates, tasks, models) share of each task's requests that each model answers at that performance.
    """

    performance: np.ndarray
    slo_attainment: np.ndarray
    routing: np.ndarray


def fluid_bound(situation: Situation, rate: Float[np.ndarray, "*rates"] | float, *, deadlines: bool = True) -> Bound:
    """Bound at a stationary arrival rate, or several, in requests per second; lengths as the tasks state them.

    It holds for the long run. A list that lasts only a few deadlines also uses the time after its last arrival; its
    bound is `fluid_bound_windows`.

    With `deadlines=False` an answer in time may come from any batch: looser, but prefills need not be
    spread evenly.

    Raises:
      InputError: if a rate is not positive.
    """
    rates = np.asarray(rate, dtype=np.float64)
    if not (rates > 0).all():
        raise InputError("The bound needs positive arrival rates in requests per second.")
    arrivals = rates.reshape(-1, 1) * situation.shares
    flat = _bound(situation, _typical_work(situation), arrivals, float(situation.cluster.replicas), deadlines)
    return Bound(
        performance=flat.performance.reshape(rates.shape),
        slo_attainment=flat.slo_attainment.reshape(rates.shape),
        routing=flat.routing.reshape(*rates.shape, *flat.routing.shape[1:]),
    )


def fluid_bound_windows(situation: Situation, requests: Requests, *, window_s: float, deadlines: bool = True) -> Bound:
    """Bound for a list of requests whose rate may vary, from its own arrivals, tasks, lengths and deadlines.

    Answers in time to the requests of a window take their instance-seconds between the window's start and its end
    plus the longest deadline, so each window is a linear programme with that much capacity. Short windows see bursts
    but count the longest deadline often, long ones the other way round; therefore windows of `window_s`, twice that,
    and so on up to the whole list are solved, and the lowest bound counts. Work spent on late answers is counted in
    the window of their arrival.

    Raises:
      InputError: if `window_s` is not positive.
    """
    if not window_s > 0:
        raise InputError(f"`window_s` is {window_s}; give windows a positive width in seconds.")
    elapsed = requests.arrival_s - requests.arrival_s[0]
    tail_s = float(requests.deadline_s.max()) * (1 + situation.reward.soft_span)
    tasks = len(situation.tasks)
    bounds = []
    while True:
        _, window = np.unique(np.floor(elapsed / window_s), return_inverse=True)
        windows = int(window[-1]) + 1
        arrivals = np.bincount(window * tasks + requests.task, minlength=windows * tasks).reshape(windows, tasks)
        work = _realised_work(situation, requests, window)
        each = _bound(situation, work, arrivals, situation.cluster.replicas * (window_s + tail_s), deadlines)
        share = arrivals.sum(axis=1) / len(requests)
        of_task = arrivals / np.maximum(arrivals.sum(axis=0), 1)
        routing = (of_task[..., None] * each.routing).sum(axis=0)
        bounds.append(Bound(np.asarray(share @ each.performance), np.asarray(share @ each.slo_attainment), routing))
        if windows == 1:
            break
        window_s *= 2
    tightest = min(bounds, key=lambda bound: float(bound.performance))
    attainment = min(bounds, key=lambda bound: float(bound.slo_attainment)).slo_attainment
    return dataclasses.replace(tightest, slo_attainment=attainment)


def seconds_per_answer(situation: Situation, *, deadlines: bool = True) -> Float[np.ndarray, "tasks models"]:
    """Least time of an instance, in seconds, that one answer in time takes; infinite where none can be in time."""
    work = _typical_work(situation)
    gains = np.ones((len(situation.tasks), len(situation.profile.model_names), 1))
    return _seconds(situation, work, gains, deadlines)[0]


def throughput(situation: Situation, *, deadlines: bool = True) -> Float[np.ndarray, " models"]:
    """Requests per second that the cluster can answer in time if one model answers everything, at the bound's costs.

    Without deadlines this is `Situation.capacity`, wherever a full batch is the cheapest one.
    """
    return situation.cluster.replicas / (situation.shares @ seconds_per_answer(situation, deadlines=deadlines))


@dataclasses.dataclass(frozen=True)
class _Work:
    """Kinds of requests, each with its costs. All arrays have one entry per kind, those by model (models, kinds).

    Attributes:
      group: which of the independent programmes it belongs to.
      task: index of its task.
      count: how many there are, or their probability within the task.
      decodes: output tokens after the first.
      deadline_s: end-to-end latency that it may take.
      own_s: (models, kinds) instance-seconds of its prefill and of the context cost of its own tokens.
      tables: what iterations cost.
      batch_limit: (models,) largest number of requests that can decode together.
    """

    group: np.ndarray
    task: np.ndarray
    count: np.ndarray
    decodes: np.ndarray
    deadline_s: np.ndarray
    own_s: np.ndarray
    tables: Tables
    batch_limit: np.ndarray

    @property
    def groups(self) -> int:
        return int(self.group.max()) + 1


def _typical_work(situation: Situation) -> _Work:
    """One kind per task and output length; prefills by their mean over the task's prompt lengths."""
    tables = Tables.of(
        situation.profile, situation.cluster.max_batch, max(task.prompt_tokens[1] for task in situation.tasks)
    )
    outputs = [np.arange(task.output_tokens[0], task.output_tokens[1] + 1) for task in situation.tasks]
    task = np.repeat(np.arange(len(outputs)), [len(n) for n in outputs])
    output = np.concatenate(outputs)
    prefill = np.stack(
        [tables.prefill[:, t.prompt_tokens[0] : t.prompt_tokens[1] + 1].mean(axis=1) for t in situation.tasks], axis=1
    )
    return _Work(
        group=np.zeros(len(task), dtype=np.int64),
        task=task,
        count=1.0 / np.bincount(task)[task],
        decodes=output - 1,
        deadline_s=situation.deadlines(task, output),
        own_s=prefill[:, task] + _context_seconds(tables, situation.mean_prompt_tokens[task], output),
        tables=tables,
        batch_limit=_batch_limit(
            tables,
            situation.cluster.max_batch,
            min(t.prompt_tokens[0] for t in situation.tasks),
            min(t.output_tokens[0] for t in situation.tasks),
        ),
    )


def _realised_work(situation: Situation, requests: Requests, group: Int[np.ndarray, " n"]) -> _Work:
    """One kind per request of a list."""
    tables = Tables.of(situation.profile, situation.cluster.max_batch, int(requests.prompt_tokens.max()))
    prompt, output = requests.prompt_tokens, requests.output_tokens
    return _Work(
        group=group,
        task=requests.task,
        count=np.ones(len(requests)),
        decodes=output - 1,
        deadline_s=requests.deadline_s,
        own_s=tables.prefill[:, prompt] + _context_seconds(tables, prompt, output),
        tables=tables,
        batch_limit=_batch_limit(tables, situation.cluster.max_batch, int(prompt.min()), int(output.min())),
    )


def _context_seconds(
    tables: Tables, prompt: np.ndarray, output: Int[np.ndarray, " kinds"]
) -> Float[np.ndarray, "models kinds"]:
    """Context cost of a request's own tokens: it holds p + 1, ..., p + n - 1 tokens during its n - 1 decodes."""
    return tables.context_cost_s[:, None] * ((output - 1) * prompt + output * (output - 1) / 2)


def _batch_limit(tables: Tables, max_batch: int, prompt: int, output: int) -> Int[np.ndarray, " models"]:
    """Requests that run together if all are as short as the shortest."""
    claim = prompt + np.ceil(tables.cache_output_share * output)
    return np.clip(np.floor(tables.cache_tokens / claim), 1, max_batch).astype(np.int64)


def _bound(situation: Situation, work: _Work, arrivals: np.ndarray, instance_seconds: float, deadlines: bool) -> Bound:
    """Bounds of independent programmes, one per row of `arrivals` (programmes, tasks)."""
    quality = situation.profile.quality_table(situation.task_names)
    weight = np.array([task.weight for task in situation.tasks])
    penalty = situation.reward.miss_penalty
    best = quality + penalty  # gain of an answer in time over none at all
    gains = _gains(quality, situation.reward)
    seconds = _seconds(situation, work, gains, deadlines)
    routing = _allocate(seconds, arrivals, instance_seconds, weight[:, None] * best)
    gained = (arrivals * ((routing * best).sum(axis=-1) - penalty)) @ weight
    if gains.shape[-1] > 1:  # soft deadlines: the answers that come after theirs count for the performance only
        seconds = _seconds(situation, work, gains[..., :1], deadlines)
    answered = _allocate(seconds, arrivals, instance_seconds, np.ones_like(quality)).sum(axis=-1)
    total = arrivals.sum(axis=-1)
    return Bound(gained / total, (arrivals * answered).sum(axis=-1) / total, routing)


def _gains(quality: Float[np.ndarray, "tasks models"], reward: Reward) -> Float[np.ndarray, "tasks models steps"]:
    """What an answer gains over none, relative to an answer in time: 1 in time, then by step of the soft span."""
    if reward.soft_span == 0:
        return np.ones((*quality.shape, 1))
    in_time = np.maximum(quality + reward.miss_penalty, np.finfo(float).tiny)
    late = 1 - np.arange(_SOFT_STEPS) / _SOFT_STEPS
    return np.concatenate([np.ones((*quality.shape, 1)), (quality / in_time)[..., None] * late], axis=-1)


def _seconds(
    situation: Situation, work: _Work, gains: Float[np.ndarray, "tasks models steps"], deadlines: bool
) -> Float[np.ndarray, "groups tasks models"]:
    """Least instance-seconds per unit of gain, for every group of kinds, task and model.

    Each kind of request is answered by one of the steps or too late; the ratio of the charges' sum to the gains' sum
    is minimised by Dinkelbach's method, which descends to the optimum in finitely many rounds.
    """
    tasks, models, steps = gains.shape
    stretch = 1 + situation.reward.soft_span * np.arange(steps) / max(
        steps - 1, 1
    )  # deadlines within which each step comes
    cell = work.group * tasks + work.task
    cells = work.groups * tasks
    result = np.empty((cells, models))
    for model in range(models):
        late, in_time = _charges(situation, work, model, stretch if deadlines else np.full(steps, np.inf))
        charge = np.concatenate([in_time, late[:, None]], axis=1)
        gain = np.concatenate([gains[work.task, model], np.zeros((len(late), 1))], axis=1)
        ratio = np.full(cells, np.finfo(float).max)
        while True:
            with np.errstate(over="ignore", invalid="ignore"):
                chosen = np.argmax(np.where(np.isfinite(charge), ratio[cell, None] * gain - charge, -np.inf), axis=1)
            picked = np.arange(len(chosen)), chosen
            spent = np.bincount(cell, weights=work.count * charge[picked], minlength=cells)
            gained = np.bincount(cell, weights=work.count * gain[picked], minlength=cells)
            lower = np.divide(spent, gained, out=np.full(cells, np.inf), where=gained > 0)
            if not (lower < ratio * (1 - 1e-12)).any():
                break
            ratio = np.minimum(lower, ratio)
        result[:, model] = np.where(ratio < np.finfo(float).max, ratio, np.inf)
    return result.reshape(-1, tasks, models)


def _charges(
    situation: Situation, work: _Work, model: int, stretch: Float[np.ndarray, " steps"]
) -> tuple[Float[np.ndarray, " kinds"], Float[np.ndarray, "kinds steps"]]:
    """Charges (1) to each kind: of a late answer, and of one within `stretch` deadlines, infinite if impossible."""
    own = work.own_s[model]
    batch = np.arange(1, work.batch_limit[model] + 1)
    decode = work.tables.decode[model, batch]
    pace, per_token = _envelope(decode + _beside(work, model) * (batch - 1), decode / batch)
    slack = work.deadline_s[:, None] * stretch - situation.cluster.network_delay_s - own[:, None]
    decodes = work.decodes[:, None]
    share = np.divide(slack, decodes, out=np.full(slack.shape, np.inf), where=decodes > 0)
    token = np.where(share >= pace[0], np.interp(share, pace, per_token), np.inf)
    in_time = np.where(slack >= 0, own[:, None] + decodes * token, np.inf)
    return own + work.decodes * per_token[-1], in_time


def _beside(work: _Work, model: int) -> float:
    """Instance-seconds of prefill and context per decoded token, smallest over the tasks; 0 if nothing is decoded."""
    seconds = np.bincount(work.task, weights=work.count * work.own_s[model])
    tokens = np.bincount(work.task, weights=work.count * work.decodes)
    decoding = tokens > 0
    return float((seconds[decoding] / tokens[decoding]).min()) if decoding.any() else 0.0


def _envelope(
    x: Float[np.ndarray, " points"], y: Float[np.ndarray, " points"]
) -> tuple[Float[np.ndarray, " corners"], Float[np.ndarray, " corners"]]:
    """Corners of the lower convex envelope of points with ascending x, from the first to the lowest."""
    corners: list[int] = []
    for point in range(int(y.argmin()) + 1):
        while len(corners) >= 2:
            first, second = corners[-2:]
            if (y[second] - y[first]) * (x[point] - x[first]) < (y[point] - y[first]) * (x[second] - x[first]):
                break
            corners.pop()
        corners.append(point)
    return x[corners], y[corners]


def _allocate(
    seconds: Float[np.ndarray, "groups tasks models"],
    arrivals: np.ndarray,
    instance_seconds: float,
    gain: Float[np.ndarray, "tasks models"],
) -> Float[np.ndarray, "programmes tasks models"]:
    """Shares of each task per model with the highest total gain; one linear programme per row of `arrivals`.

    `arrivals` (programmes, tasks) counts requests; every model has `instance_seconds`, and an answer takes `seconds`,
    of one group for all programmes or of one for each.
    """
    tasks, models = gain.shape
    seconds = np.broadcast_to(seconds, (len(arrivals), tasks, models))
    possible = np.isfinite(seconds)
    load = np.where(possible, arrivals[..., None] * np.where(possible, seconds, 0.0), 0.0) / instance_seconds
    # Where the best model of every task has room for all of its requests, that is the optimum.
    favourite = np.where(possible, gain, -np.inf).argmax(axis=-1)
    shares = (np.arange(models) == favourite[..., None]) & possible
    crowded = np.flatnonzero(((shares * load).sum(axis=1) > 1).any(axis=-1))
    shares = shares.astype(np.float64)
    for start in range(0, len(crowded), _GROUPS_PER_PROGRAMME):
        part = crowded[start : start + _GROUPS_PER_PROGRAMME]
        shares[part] = _solve(load[part], possible[part], arrivals[part][..., None] * gain)
    return shares


def _solve(
    load: Float[np.ndarray, "programmes tasks models"],
    possible: np.ndarray,
    gain: Float[np.ndarray, "programmes tasks models"],
) -> Float[np.ndarray, "programmes tasks models"]:
    """Solves independent programmes as one, by HiGHS."""
    programmes, tasks, models = load.shape
    column = np.arange(load.size)
    programme, task, model = np.unravel_index(column, load.shape)
    capacity_row = programme * models + model
    task_row = programmes * models + programme * tasks + task
    rows = programmes * (models + tasks)
    constraints = sparse.csr_array(
        (
            np.concatenate([load.ravel(), np.ones(load.size)]),
            (np.concatenate([capacity_row, task_row]), np.concatenate([column, column])),
        ),
        shape=(rows, load.size),
    )
    limits = np.column_stack([np.zeros(load.size), possible.ravel().astype(np.float64)])
    scale = np.abs(gain).max()
    solution = optimize.linprog(
        -gain.ravel() / (scale or 1.0), A_ub=constraints, b_ub=np.ones(rows), bounds=limits, method="highs"
    )
    if not solution.success:
        raise RuntimeError(f"The bound's linear programme was not solved: {solution.message}")
    return solution.x.reshape(load.shape)
