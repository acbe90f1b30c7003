"""One token per character. `write_tokenizer` makes the files from which transformers builds the same tokenizer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from besteffort.errors import InputError

PAD, END = 1, 2
"""Tokens of padding, and of the beginning and end of a text, as in OPT."""

_SPECIAL = ("<unk>", "<pad>", "</s>")
_CHARACTERS = "0123456789+=;%|:()[]{}<>"
VOCABULARY = (*_SPECIAL, *_CHARACTERS)
"""Tokens in order."""

_NUMBERS = {character: number for number, character in enumerate(VOCABULARY)}


def encode(text: str) -> list[int]:
    """Tokens of a text, after a leading `END`.

    Raises:
      InputError: on a character without a token.
    """
    for character in text:
        if character not in _NUMBERS:
            raise InputError(f"The models of the laptop tier do not know {character!r}; they read {_CHARACTERS}")
    return [END, *(_NUMBERS[character] for character in text)]


def decode(tokens: list[int]) -> str:
    """Text of tokens, without special ones."""
    return "".join(VOCABULARY[token] for token in tokens if token >= len(_SPECIAL))


def write_tokenizer(directory: Path) -> None:
    """Writes `tokenizer.json` and `tokenizer_config.json`."""
    special = [
        {"id": number, "content": name, "special": True, "normalized": False}
        | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
        for number, name in enumerate(_SPECIAL)
    ]
    beginning = {"SpecialToken": {"id": "</s>", "type_id": 0}}
    text: dict[str, Any] = {"Sequence": {"id": "A", "type_id": 0}}
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": special,
        "normalizer": None,
        "pre_tokenizer": {"type": "Split", "pattern": {"Regex": "."}, "behavior": "Isolated", "invert": False},
        "post_processor": {
            "type": "TemplateProcessing",
            "single": [beginning, text],
            "pair": [beginning, text, {"Sequence": {"id": "B", "type_id": 0}}],
            "special_tokens": {"</s>": {"id": "</s>", "ids": [END], "tokens": ["</s>"]}},
        },
        "decoder": {"type": "Fuse"},
        "model": {
            "type": "WordLevel",
            "vocab": {name: number for number, name in enumerate(VOCABULARY)},
            "unk_token": "<unk>",
        },
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "</s>",
        "eos_token": "</s>",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "clean_up_tokenization_spaces": False,
        # Servers ask for one before they chat. These models know no roles: they read what was said last, as a prompt.
        "chat_template": "{{ bos_token }}{{ messages[-1]['content'] }}",
    }
    for name, content in (("tokenizer.json", tokenizer), ("tokenizer_config.json", config)):
        (directory / name).write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
