"""The least instance time that an answer takes: the basis of every upper bound.

An iteration with b earlier requests lasts `sum of prefill + decode(b)`. Charge each prefill to its request, and each
decode in equal parts, `decode(b) / b`, to the b requests that get a token from it. The charges of all requests then
add up to no more than the time that the instance is busy, and a request of p prompt and n output tokens is charged

    prefill(p) + sum over its n - 1 decodes of decode(b_i) / b_i                                             (1)

Large batches are cheap per token but slow. An answer within its deadline needs

    prefill(p) + sum over its n - 1 decodes of decode(b_i) <= slack = deadline - network delay               (2)

The least charge (1) under (2) is `prefill(p) + (n - 1) G((slack - prefill(p)) / (n - 1))`, where G is the lower convex
envelope of the points `(decode(b), decode(b) / b)` over the batches that fit, constant beyond the lowest of them: by
Jensen's inequality no sequence of batches does better. A late answer is charged at least `prefill(p) + (n - 1) min G`.

It holds as well where a prompt is read in chunks: then an iteration lasts as long as the increments of the prefill
table that it reads, in place of whole prefills, and `decode(b)` of those that decode. The increments of a prompt add up
to its prefill, both as its charge and as time before its first token; b excludes who is being read, so it is no larger;
and decodes in between only make the answer later. Where part of a prompt is found in a prefix cache, a list's requests
(`besteffort.bounds.realised`) are charged what is read of it, `prefill(p) - prefill(found)`; tasks know no prefix
cache, so the fluid bound is one for requests whose prompts are read in full.

This holds for every single request, whatever the router knows. Waiting, the iteration in progress at the arrival,
decodes during the request's own first iteration, prefills of other requests and slow-down between models only make
answers later or dearer. Context cost of the request's own tokens counts like prefill; that of other requests is left
out. The cache bounds b, and a request that exceeds it alone is rejected: it cannot be answered, and costs nothing.

Prefills of other requests are left out of (2) for a reason. In a steady state each request meets as many prefills as
other requests leave while it runs, `h (b - 1)` per decode with h the prefill seconds per decoded token, and with this
term the charges are close to what routers reach (`beside_s`). But it is no bound: if requests are admitted in order of
their slack, the largest first, urgent requests meet almost no prefill of others in their batch.
"""

from __future__ import annotations

import dataclasses

import numpy as np
from jaxtyping import Float, Int

from besteffort.estimates.lengths import length_law, output_law
from besteffort.estimates.tables import Tables
from besteffort.situation import Reward, Situation

# Steps of the span of a soft deadline; each counts as its early end, so that bounds hold.
_SOFT_STEPS = 16
_ROUNDING = 1e-6  # seconds, or relative; an answer late by no more than this may be in time in float32


@dataclasses.dataclass(frozen=True)
class Work:
    """Kinds of requests, each with its costs. All arrays have one entry per kind, those by pool (pools, kinds).

    Attributes:
      task: index of its task.
      count: number of requests of the kind, or their probability within the task.
      decodes: output tokens after the first.
      deadline_s: deadline on the end-to-end latency.
      own_s: (pools, kinds) instance-seconds of its prefill and of the context cost of its own tokens; their mean where
        the prompts of a kind differ.
      least_s: (pools, kinds) what these take at least of the time to the deadline.
      fits: (pools, kinds) whether the cache holds it.
      late_costs: (pools,) whether every late answer costs; not where the cache rejects some requests for their size.
      tables: durations of iterations.
      batch_limit: (pools,) largest number of requests that can decode together.
      network_delay_s: (pools, kinds) part of the latency in which no instance works, seconds.
    """

    task: np.ndarray
    count: np.ndarray
    decodes: np.ndarray
    deadline_s: np.ndarray
    own_s: np.ndarray
    least_s: np.ndarray
    fits: np.ndarray
    late_costs: np.ndarray
    tables: Tables
    batch_limit: np.ndarray
    network_delay_s: np.ndarray

    def beside_s(self, pool: int) -> float:
        """Instance-seconds of prefill and context per decoded token, smallest over the tasks; 0 without decodes."""
        seconds = np.bincount(self.task, weights=self.count * self.own_s[pool])
        tokens = np.bincount(self.task, weights=self.count * self.decodes)
        decoding = tokens > 0
        return float((seconds[decoding] / tokens[decoding]).min()) if decoding.any() else 0.0

    def charges(
        self, pool: int, stretch: Float[np.ndarray, " steps"], beside_s: float = 0.0
    ) -> tuple[Float[np.ndarray, " kinds"], Float[np.ndarray, "kinds steps"]]:
        """Least charges of each kind: of a late answer, and of one within `stretch` deadlines (inf if impossible).

        `beside_s` adds `beside_s x (b - 1)` to every decode of (2), for estimates.
        """
        own = self.own_s[pool]
        batch = np.arange(1, self.batch_limit[pool] + 1)
        decode = self.tables.decode[pool, batch]
        pace, per_token = _envelope(decode + beside_s * (batch - 1), decode / batch)
        slack = self.deadline_s[:, None] * stretch - self.network_delay_s[pool][:, None] - self.least_s[pool][:, None]
        decodes = self.decodes[:, None]
        share = np.divide(slack, decodes, out=np.full(slack.shape, np.inf), where=decodes > 0)
        possible = self.fits[pool][:, None] & (slack >= -_ROUNDING) & (share >= pace[0] * (1 - _ROUNDING))
        in_time = np.where(possible, own[:, None] + decodes * np.interp(share, pace, per_token), np.inf)
        return self.late_costs[pool] * (own + self.decodes * per_token[-1]), in_time


def typical_work(situation: Situation, *, prompt_groups: int | None = None) -> Work:
    """One kind per task, group of prompt lengths and output length, as the tasks state them.

    Without `prompt_groups`, for estimates, all prompts of a task are one group, and their mean prefill counts. A bound
    needs groups, of about equal probability: where the mean prompt is late, shorter ones may be in time. As nobody
    chooses by lengths which prompts to read, a kind's charge has the mean prefill of its group; but the time that is
    left for decodes is that of the group's shortest prompt.

    Where a task states quantiles of its output lengths, these are the lengths. Where it states a mean, lengths follow
    the maximum-entropy distribution with that mean on their range, which is uniform if the mean is the middle. For a
    model whose cache rejects long prompts, all prompts of a group count as the shortest. Requests count as if all came
    from the origin that is nearest to each pool, which only lowers their charges.
    """
    tasks = situation.tasks
    tables = Tables.of(situation.fleet, max(task.prompt_tokens[1] for task in tasks))
    outputs = [output_law(task) for task in tasks]
    groups = [
        (index, *group)
        for index, task in enumerate(tasks)
        for group in _prompt_groups(*length_law(task.prompt_tokens, task.mean_prompt_tokens), prompt_groups)
    ]
    group = np.repeat(np.arange(len(groups)), [len(outputs[index][0]) for index, *_ in groups])
    task = np.array([index for index, *_ in groups])[group]
    output = np.concatenate([outputs[index][0] for index, *_ in groups])
    longest = np.array([one.prompt_tokens[1] for one in tasks])
    late_costs = (longest[task] + np.ceil(tables.cache_output_share * output)).max() <= tables.cache_tokens
    shortest = np.array([values[0] for _, _, values, _ in groups])
    mean = np.array([values @ share for _, _, values, share in groups])
    mean_s = np.stack([tables.prefill[:, values] @ share for _, _, values, share in groups], axis=1)
    least, least_s = shortest[None], tables.prefill[:, shortest]
    held = np.where(late_costs[:, None], mean, least)
    prefill_s = np.where(late_costs[:, None], mean_s, least_s)
    return work_of(
        situation,
        tables,
        task=task,
        count=np.concatenate([part * outputs[index][1] for index, part, *_ in groups]),
        prompt=shortest[group],
        held=held[:, group],
        prefill_s=prefill_s[:, group],
        output=output,
        deadline_s=situation.deadlines(task, output),
        late_costs=late_costs,
        delay_s=situation.least_delay_s[:, None],
        least=None if prompt_groups is None else (least[:, group], least_s[:, group]),
    )


def _prompt_groups(
    values: Int[np.ndarray, " lengths"], share: Float[np.ndarray, " lengths"], count: int | None
) -> list[tuple[float, np.ndarray, np.ndarray]]:
    """Of each group of neighbouring lengths its probability, its lengths, and their probabilities within it."""
    if count is None:
        return [(1.0, values, share)]
    number = np.minimum(((np.cumsum(share) - share / 2) * count).astype(int), count - 1)
    found = []
    for mine in (number == one for one in np.unique(number)):
        part = float(share[mine].sum())
        if part > 0:
            found.append((part, values[mine], share[mine] / part))
    return found


def gains(quality: Float[np.ndarray, "tasks pools"], reward: Reward) -> Float[np.ndarray, "tasks pools steps"]:
    """Reward of an answer less that of no answer, before the task's weight: in time, then by step of the soft span."""
    in_time = (quality + reward.miss_penalty)[..., None]
    if reward.soft_span == 0:
        return in_time
    late = 1 - np.arange(_SOFT_STEPS) / _SOFT_STEPS
    return np.concatenate([in_time, quality[..., None] * late], axis=-1)


def stretches(reward: Reward) -> Float[np.ndarray, " steps"]:
    """Latest completion of each step of `gains`, in deadlines: 1, then the late ends of the steps of the soft span."""
    if reward.soft_span == 0:
        return np.ones(1)
    return 1 + reward.soft_span * np.arange(_SOFT_STEPS + 1) / _SOFT_STEPS


def work_of(
    situation: Situation,
    tables: Tables,
    *,
    task: Int[np.ndarray, " kinds"],
    count: Float[np.ndarray, " kinds"],
    prompt: Int[np.ndarray, " kinds"],
    held: np.ndarray,
    prefill_s: Float[np.ndarray, "pools kinds"],
    output: Int[np.ndarray, " kinds"],
    deadline_s: Float[np.ndarray, " kinds"],
    late_costs: np.ndarray,
    delay_s: np.ndarray,
    least: tuple[np.ndarray, Float[np.ndarray, "pools kinds"]] | None = None,
) -> Work:
    """The costs of kinds of requests.

    Args:
      situation: what serves them.
      tables: durations of its iterations.
      task: (kinds,) task of each kind.
      count: (kinds,) number of its requests, see `Work`.
      output: (kinds,) its output length.
      prompt: (kinds,) a kind's shortest prompt, which the cache has to hold.
      held: (pools or 1, kinds) prompt length that counts for the context cost.
      prefill_s: (pools, kinds) duration of the prefill.
      deadline_s: (kinds,) deadline on the latency.
      late_costs: (pools,) see `Work`.
      delay_s: (pools, kinds or 1) network delay of the answers.
      least: what `held` and `prefill_s` are for a kind's shortest prompt, where these are means.
    """
    claim = prompt + np.ceil(tables.cache_output_share * output)
    together = np.floor(tables.cache_tokens / claim.min())  # as if all were as short as the shortest

    # A request holds p + 1, ..., p + n - 1 tokens during its n - 1 decodes.
    def own_s(held: np.ndarray, prefill_s: Float[np.ndarray, "pools kinds"]) -> Float[np.ndarray, "pools kinds"]:
        token_decodes = (output - 1) * held + output * (output - 1) / 2
        return np.asarray(prefill_s + tables.context_cost_s[:, None] * token_decodes)

    return Work(
        task=task,
        count=count,
        decodes=output - 1,
        deadline_s=deadline_s,
        own_s=own_s(held, prefill_s),
        least_s=own_s(*(least or (held, prefill_s))),
        fits=claim <= tables.cache_tokens[:, None],
        late_costs=late_costs,
        tables=tables,
        batch_limit=np.clip(together, 1, situation.fleet.max_batch).astype(np.int64),
        network_delay_s=np.broadcast_to(delay_s, prefill_s.shape),
    )


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
