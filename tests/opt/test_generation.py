"""Generation against PyTorch's, and the rows and programs beneath it."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest
from tiny_opt import PROMPTS, REFERENCES, no_compilation

from besteffort.errors import InputError
from besteffort.opt.generation import generate
from besteffort.opt.runtime import Buckets, Runtime
from besteffort.opt.sampling import GREEDY, Sampling
from besteffort.opt.weights import Model, load_model

BUCKETS = Buckets((2, 4), (16,), (32, 48))


@pytest.fixture(scope="module")
def runtime(model: Model) -> Runtime:
    return Runtime(model, 4, 48, BUCKETS)


@pytest.mark.parametrize("where", REFERENCES, ids=lambda path: path.name)
def test_greedy_tokens_are_pytorchs(where: Path) -> None:
    """Fifty prompts, ten models: those of `generate` in transformers."""
    reference = np.load(where / "reference.npz")
    prompts = [reference[f"prompt_{i}"].tolist() for i in range(5)]
    runtime = Runtime(load_model(where), 3, 32, Buckets((3,), (16,), (32,)))
    answers = generate(runtime, prompts, 16)
    assert answers == [reference[f"answer_{i}"].tolist() for i in range(5)]


@pytest.mark.parametrize("sampling", [GREEDY, Sampling(1.5), Sampling(1.0, top_k=20, top_p=0.9)])
def test_company_changes_nothing(runtime: Runtime, sampling: Sampling) -> None:
    together = generate(runtime, PROMPTS, 12, sampling, jax.random.key(7), stop_tokens=())
    assert {len(answer) for answer in together} == {12}
    for index in (0, 5):
        runtime_key = jax.random.fold_in(jax.random.key(7), index)
        row, token = runtime.prefill(PROMPTS[index], sampling, runtime_key)
        alone = [token] + [runtime.decode()[row] for _ in range(11)]
        runtime.release(row)
        assert together[index] == alone
    if sampling.temperature:
        assert together != generate(runtime, PROMPTS, 12, sampling, jax.random.key(8), stop_tokens=())


def test_an_answer_ends_with_a_stop_token(runtime: Runtime) -> None:
    whole = generate(runtime, PROMPTS[:2], 10, stop_tokens=())
    stop = whole[0][4]
    ended = generate(runtime, PROMPTS[:2], 10, stop_tokens=[stop])
    assert ended[0] == whole[0][: whole[0].index(stop) + 1]
    assert runtime.used == ()


def test_nothing_is_compiled_after_the_warm_up(model: Model) -> None:
    runtime = Runtime(model, 4, 48, BUCKETS)
    progress = list(runtime.warm_up())
    assert progress == [(i + 1, 6) for i in range(6)]
    assert runtime.compilations == 6
    keys = jax.random.key(0)
    generate(Runtime(model, 4, 48, BUCKETS), [[1]], 1, Sampling(1.0), keys)  # JAX's own `fold_in`
    with no_compilation():
        generate(runtime, PROMPTS, 30, Sampling(1.0, top_k=5), keys)
        generate(runtime, PROMPTS, 1)
    assert runtime.compilations == 6


def test_rows_move_down_when_that_makes_the_step_smaller(runtime: Runtime) -> None:
    expected = generate(runtime, PROMPTS[3:4], 8, stop_tokens=())[0]
    rows = [runtime.prefill(prompt)[0] for prompt in PROMPTS[:4]]
    assert rows == [0, 1, 2, 3]
    assert runtime.compact() == {}
    runtime.release(1)
    assert runtime.compact() == {}  # three rows need the larger step anyway
    runtime.release(0)
    assert runtime.compact() == {3: 0, 2: 1}
    assert runtime.used == (0, 1)
    assert [expected[0]] + [runtime.decode()[0] for _ in range(7)] == expected
    for row in runtime.used:
        runtime.release(row)


def test_the_step_reads_as_much_context_as_the_longest_row_has(model: Model) -> None:
    """Across the border between two buckets, up to the last token that fits."""
    runtime = Runtime(model, 2, 48, Buckets((2,), (16,), (32, 48)))
    answer = generate(runtime, PROMPTS[8:9], 40, stop_tokens=())[0]
    wide = generate(Runtime(model, 2, 48, Buckets((2,), (16,), (48,))), PROMPTS[8:9], 40, stop_tokens=())[0]
    assert len(PROMPTS[8]) + len(answer) - 1 == 48
    assert answer == wide


def test_default_buckets_end_at_the_limits() -> None:
    assert Buckets.up_to(6, 200) == Buckets((1, 2, 4, 6), (16, 32, 48, 64, 96, 128, 192, 200), (128, 200))
    assert Buckets.up_to(1, 16) == Buckets((1,), (16,), (16,))
    assert Buckets.up_to(8, 2048).batch == (1, 2, 4, 8)


@pytest.mark.parametrize(
    ("prompt", "count", "words"),
    [
        ([], 5, "The prompt is empty; give at least one token"),
        ([96], 5, "The prompt has the token 96; this model's run from 0 to 95"),
        ([-1], 5, "The prompt has the token -1"),
        ([1] * 44, 6, "A prompt of 44 tokens and 6 more exceed the context of 48 tokens; shorten"),
        ([1], 0, "`max_new_tokens` is 0; ask for at least 1"),
        ([1] * 17, 6, "17 tokens of a prompt are to be read at a time, and `buckets` end at 16"),
    ],
)
def test_one_sentence_for_each_mistake(runtime: Runtime, prompt: list[int], count: int, words: str) -> None:
    with pytest.raises(InputError) as caught:
        generate(runtime, [[1], prompt], count)
    assert words in str(caught.value)
    assert runtime.used == ()


def test_random_choice_needs_a_key(runtime: Runtime) -> None:
    with pytest.raises(InputError, match="needs a `key`"):
        generate(runtime, [[1]], 2, Sampling(1.0))
    with pytest.raises(InputError, match="needs a `key`"):
        runtime.prefill([1], Sampling(1.0))


def test_a_full_cache_says_so(runtime: Runtime) -> None:
    rows = [runtime.prefill([1])[0] for _ in range(4)]
    with pytest.raises(InputError, match="All 4 rows are in use"):
        runtime.prefill([1])
    for row in rows:
        runtime.release(row)
    assert runtime.decode() == {}


@pytest.mark.parametrize(
    ("max_batch", "context", "words"),
    [
        (0, 48, "`max_batch` is 0; give at least 1"),
        (4, 65, "`context` is 65; tiny takes from 2 to 64 tokens"),
        (4, 1, "`context` is 1"),
        (2**30, 48, r"cache of tiny for 1073741824 x 48 tokens needs .* GB of memory, and .* lower `max_batch`"),
    ],
)
def test_limits_that_cannot_be(model: Model, max_batch: int, context: int, words: str) -> None:
    with pytest.raises(InputError, match=words):
        Runtime(model, max_batch, context)


@pytest.mark.parametrize(
    "buckets", [Buckets((2,), (16,), (48,)), Buckets((4,), (16,), (32,)), Buckets((4,), (16, 64), (48,))]
)
def test_buckets_end_at_the_limits(model: Model, buckets: Buckets) -> None:
    with pytest.raises(InputError, match=r"`buckets` end at .*; end rows at `max_batch`, 4, .* `context`, 48"):
        Runtime(model, 4, 48, buckets)


def test_parts_of_a_prompt_may_be_shorter_than_it(model: Model) -> None:
    Runtime(model, 4, 48, BUCKETS, chunk_tokens=16).check([1] * 17, 6)
    with pytest.raises(InputError, match="17 tokens of a prompt are to be read at a time"):
        Runtime(model, 4, 48, BUCKETS, chunk_tokens=17).check([1] * 20, 6)
