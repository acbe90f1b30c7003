"""Makes the reference data in this directory: what transformers' OPT in PyTorch computes for small random models.

Each `<number>` is a directory as `save_pretrained` writes it (weights in float16, as on the hub) with `reference.npz`
beside the weights: a padded batch and its logits, prompts and their greedy continuations, computed in float32.

    python tests/opt/data/make.py       (needs torch 2.13 and transformers 5)
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from transformers import OPTConfig, OPTForCausalLM

HERE = Path(__file__).parent
MODELS, PROMPTS, NEW_TOKENS = 10, 5, 16
SHARDED = 3  # number of the model that is saved in several files


def random_config(rng: np.random.Generator, number: int) -> OPTConfig:
    """Every other model has layer norms behind its layers; widths and counts vary."""
    hidden = int(rng.choice([16, 24, 32]))
    return OPTConfig(
        vocab_size=int(rng.integers(50, 100)),
        hidden_size=hidden,
        num_hidden_layers=int(rng.integers(1, 4)),
        num_attention_heads=int(rng.choice([1, 2, 4])),
        ffn_dim=int(rng.choice([24, 40])),
        max_position_embeddings=48,
        do_layer_norm_before=number % 2 == 0,
        _remove_final_layer_norm=number % 6 == 4,
        word_embed_proj_dim=int(rng.choice([hidden, 12])),
    )


def random_model(rng: np.random.Generator, number: int) -> OPTForCausalLM:
    """Weights large enough that logits differ clearly, and every bias and scale counts."""
    model = OPTForCausalLM(random_config(rng, number)).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            centre = 1.0 if name.endswith("norm.weight") else 0.0
            values = rng.normal(centre, 0.3, size=tuple(weight.shape)).astype(np.float16)
            weight.copy_(torch.from_numpy(values.astype(np.float32)))
    return model


def reference(model: OPTForCausalLM, rng: np.random.Generator) -> dict[str, np.ndarray] | None:
    """Inputs and what PyTorch makes of them; None if two tokens are so close that rounding might decide."""
    vocab = model.config.vocab_size
    tokens = rng.integers(3, vocab, (3, 10))
    mask = np.ones((3, 10), bool)
    mask[1, :4] = False
    mask[2, 7:] = False
    found = {"tokens": tokens, "mask": mask}
    with torch.no_grad():
        logits = model(torch.tensor(tokens), attention_mask=torch.tensor(mask).long()).logits
        found["logits"] = logits.numpy() * mask[..., None]
        for index in range(PROMPTS):
            prompt = rng.integers(3, vocab, rng.integers(1, 16))
            ids = torch.tensor(prompt)[None]
            made = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=NEW_TOKENS,
                do_sample=False,
                output_logits=True,
                return_dict_in_generate=True,
            )
            for step in made.logits:
                first, second = step[0].topk(2).values.tolist()
                if first - second < 1e-3:
                    return None
            found[f"prompt_{index}"] = prompt
            found[f"answer_{index}"] = made.sequences[0, len(prompt) :].numpy()
    return found


def main() -> None:
    """Writes all of it."""
    for number in range(MODELS):
        for seed in range(100):
            rng = np.random.default_rng([number, seed])
            model = random_model(rng, number)
            found = reference(model, rng)
            if found is not None:
                break
        where = HERE / str(number)
        size = "8KB" if number == SHARDED else "1MB"
        model.half().save_pretrained(where, max_shard_size=size)
        (where / "generation_config.json").unlink()
        config = json.loads((where / "config.json").read_text())
        (where / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        np.savez_compressed(where / "reference.npz", **found)
        print(number, model.config.do_layer_norm_before, [len(found[f"answer_{i}"]) for i in range(PROMPTS)])  # noqa: T201


if __name__ == "__main__":
    main()
