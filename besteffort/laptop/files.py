"""Writes a trained model to a directory for transformers and `besteffort.opt`: configuration, weights, tokenizer."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
from safetensors.numpy import save

from besteffort.laptop.tokenizer import END, PAD, write_tokenizer
from besteffort.opt.weights import Model, to_checkpoint


def write_model(model: Model, directory: Path) -> None:
    """Writes `config.json`, `model.safetensors` (bfloat16, half the size) and the tokenizer; overwrites files."""
    config = model.config
    directory.mkdir(parents=True, exist_ok=True)
    fields = {
        "architectures": ["OPTForCausalLM"],
        "model_type": "opt",
        "vocab_size": config.vocab,
        "hidden_size": config.hidden,
        "word_embed_proj_dim": config.embedding,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "ffn_dim": config.ffn,
        "max_position_embeddings": config.positions,
        "activation_function": "relu",
        "do_layer_norm_before": config.norm_first,
        "bos_token_id": END,
        "eos_token_id": END,
        "pad_token_id": PAD,
        "dtype": "bfloat16",
    }
    (directory / "config.json").write_text(json.dumps(fields, indent=2) + "\n")
    tensors = {name: tensor.astype(ml_dtypes.bfloat16) for name, tensor in to_checkpoint(model).items()}
    (directory / "model.safetensors").write_bytes(save(tensors, metadata={"format": "pt"}))
    write_tokenizer(directory)
