from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tiny_opt import TINY, TINY_350M

from besteffort.errors import InputError
from besteffort.opt.config import PUBLISHED, OPTConfig, published, read_config
from besteffort.profile.roofline import OPT

# `config.json` of facebook/opt-350m, as far as it says anything about the model.
OPT_350M = {
    "_remove_final_layer_norm": False,
    "activation_function": "relu",
    "architectures": ["OPTForCausalLM"],
    "bos_token_id": 2,
    "do_layer_norm_before": False,
    "eos_token_id": 2,
    "ffn_dim": 4096,
    "hidden_size": 1024,
    "max_position_embeddings": 2048,
    "model_type": "opt",
    "num_attention_heads": 16,
    "num_hidden_layers": 24,
    "pad_token_id": 1,
    "vocab_size": 50272,
    "word_embed_proj_dim": 512,
}


def test_all_published_sizes_have_their_number_of_parameters() -> None:
    assert {name: config.parameters for name, config in PUBLISHED.items()} == {
        name: shape.parameters for name, shape in OPT.items()
    }
    assert published("facebook/opt-125m").parameters == 125_239_296  # as the model on the hub has
    assert published("OPT-350m").parameters == 331_196_416
    assert len(PUBLISHED) == 8


def test_a_configuration_of_the_hub_is_read(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(OPT_350M))
    assert read_config(tmp_path / "config.json") == published("opt-350m")


def test_what_a_configuration_leaves_out_is_as_in_transformers() -> None:
    assert OPTConfig.from_transformers({}) == published("opt-125m")
    assert OPTConfig.from_transformers({"word_embed_proj_dim": None, "eos_token_id": [2, 5]}) == dataclasses.replace(
        published("opt-125m"), stop_tokens=(2, 5)
    )
    assert not OPTConfig.from_transformers({"_remove_final_layer_norm": True}).final_norm
    assert OPTConfig.from_transformers({"eos_token_id": None}).stop_tokens == ()


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"model_type": "llama"}, "`model_type` is 'llama'; only OPT"),
        ({"activation_function": "gelu"}, "`activation_function` is 'gelu'; only 'relu'"),
        ({"enable_bias": False}, "`enable_bias` is False; only True"),
        ({"tie_word_embeddings": False}, "`tie_word_embeddings` is False; only True"),
        ({"hidden_size": "768"}, "`hidden_size` is '768'; it must be an integer"),
        ({"hidden_size": True}, "`hidden_size` is True; it must be an integer"),
        ({"num_hidden_layers": 0}, "`layers` of an OPT model is 0; it must be at least 1"),
        ({"num_attention_heads": 7}, "768 wide cannot have 7 heads"),
        ({"do_layer_norm_before": "yes"}, "`do_layer_norm_before` is 'yes'; it must be true or false"),
        ({"eos_token_id": ["</s>"]}, "`eos_token_id` is ['</s>']"),
    ],
)
def test_one_sentence_for_each_mistake(fields: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError) as caught:
        OPTConfig.from_transformers(fields, "here/config.json")
    assert str(caught.value).startswith("here/config.json: ")
    assert words in str(caught.value)
    assert str(caught.value).endswith(".")


@pytest.mark.parametrize(
    ("text", "words"), [("{", "not valid JSON"), ("[]", "must hold one JSON object"), (None, "there is no such file")]
)
def test_files_that_are_no_configuration(tmp_path: Path, text: str | None, words: str) -> None:
    path = tmp_path / "config.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(InputError, match=words):
        read_config(path)


def test_an_unknown_size_names_the_known_ones() -> None:
    with pytest.raises(InputError, match=r"did you mean `opt-125m`\?; choose from opt-125m, opt-350m, "):
        published("opt-125")


def test_derived_sizes() -> None:
    assert (TINY.head, TINY.projected, TINY_350M.projected) == (8, False, True)
    assert TINY.cache_values == 2 * 2 * 16


@pytest.mark.parametrize(
    ("module", "absent"),
    [("config", {"jax", "flax", "transformers", "torch"}), ("engine", {"transformers", "huggingface_hub", "torch"})],
)
def test_imports_are_light(module: str, absent: set[str]) -> None:
    program = f"import sys, besteffort.opt.{module}; print(*{absent} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
