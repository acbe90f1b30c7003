"""Makes the reference data in this directory: what lm-evaluation-harness finds with its own PyTorch backend (`hf`).

A small random model as `save_pretrained` writes it, with a tokenizer; a task of each kind in the form of
`besteffort profile quality --examples`; and the figures of the three, computed by the harness from definitions of its
own (no code of this project) in float32.

    python tests/profiling/data/quality/make.py  (needs torch 2.13, transformers 5, lm-eval 0.4.13 and its extra hf)
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

os.environ |= {"DISABLE_MULTIPROC": "1", "HF_HUB_OFFLINE": "1"}

import numpy as np
import sacrebleu
import torch
from datasets import Dataset
from lm_eval.api.task import ConfigurableTask
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from rouge_score.rouge_scorer import RougeScorer
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import OPTConfig, OPTForCausalLM, PreTrainedTokenizerFast

HERE = Path(__file__).parent
WORDS = tuple("the old cat sat on a red mat and saw two small birds near some tall green tree by that river".split())  # noqa: SIM905
POSITIONS, NEW_TOKENS, STEPS = 64, 16, 300
ROUGE = ("rouge1", "rouge2", "rougeL")


def sentence(rng: np.random.Generator, words: int) -> str:
    """Each word is mostly followed by one of two others."""
    chosen = [int(rng.integers(len(WORDS)))]
    while len(chosen) < words:
        chosen.append((3 * chosen[-1] + int(rng.choice([1, 2, 8], p=[0.6, 0.3, 0.1]))) % len(WORDS))
    return " ".join(WORDS[index] for index in chosen)


def make_tokenizer(rng: np.random.Generator) -> PreTrainedTokenizerFast:
    """Byte pairs of the words above, with a `</s>` before every text as OPT's has."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=120, special_tokens=["<s>", "<pad>", "</s>"])
    tokenizer.train_from_iterator([sentence(rng, 30) + ".\n" for _ in range(50)], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="</s> $A", special_tokens=[("</s>", 2)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="</s>", eos_token="</s>", pad_token="<pad>", model_max_length=POSITIONS
    )


def make_model(rng: np.random.Generator, tokenizer: PreTrainedTokenizerFast) -> OPTForCausalLM:
    """Trained a little on such sentences, and rounded to float16."""
    torch.manual_seed(0)
    config = OPTConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        ffn_dim=64,
        max_position_embeddings=POSITIONS,
        word_embed_proj_dim=32,
        dropout=0.0,
    )
    model = OPTForCausalLM(config).train()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(STEPS):
        texts = [sentence(rng, int(rng.integers(6, 14))) + "\n" for _ in range(16)]
        batch = tokenizer(texts, return_tensors="pt", padding=True)
        labels = batch.input_ids.masked_fill(batch.attention_mask == 0, -100)
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval().half()


def examples(rng: np.random.Generator, answered: list[str], prompts: list[str]) -> dict[str, list[dict[str, Any]]]:
    """Lines of each file; what is to be generated is what the model does generate, changed in part."""
    choices = []
    for _ in range(40):
        options = [" " + sentence(rng, int(rng.integers(1, 4))) for _ in range(int(rng.integers(2, 5)))]
        choices.append(
            {
                "prompt": sentence(rng, int(rng.integers(1, 9))),
                "choices": options,
                "answer": int(rng.integers(len(options))),
            }
        )
    # Some longer than the context, so that there are several windows.
    texts = [{"text": sentence(rng, int(words))} for words in rng.integers(3, 90, 12)]
    answers = []
    for number, (prompt, answer) in enumerate(zip(prompts, answered, strict=True)):
        words = answer.split() or ["the"]
        changed = [word if number % 3 == 0 or rng.random() < 0.85 else str(rng.choice(WORDS)) for word in words]
        other = sentence(rng, len(words))
        answers.append({"prompt": prompt, "answer": [" ".join(changed), other] if number % 2 else [" ".join(changed)]})
    return {"choices": choices, "texts": texts, "answers": answers}


def judged(row: dict[str, Any], results: list[str]) -> dict[str, Any]:
    given, scorer = results[0], RougeScorer(list(ROUGE))
    best = {name: max(scorer.score(ref, given)[name].fmeasure for ref in row["answer"]) for name in ROUGE}
    exact = float(given.strip() in [reference.strip() for reference in row["answer"]])
    return {"exact_match": exact, **{k: 100 * v for k, v in best.items()}, "pair": (row["answer"], given)}


def corpus_bleu(pairs: list[tuple[list[str], str]]) -> float:
    """BLEU by sacrebleu, for which lines may have different numbers of references."""
    count = max(len(references) for references, _ in pairs)
    references = [[dict(enumerate(each)).get(i) for each, _ in pairs] for i in range(count)]
    return float(sacrebleu.corpus_bleu([given for _, given in pairs], references).score)


def figures(lm: HFLM, rows: dict[str, list[dict[str, Any]]], count: int) -> dict[str, dict[str, float]]:
    """Every metric of every task."""
    generation = {
        "doc_to_text": "prompt",
        "doc_to_target": "answer",
        "output_type": "generate_until",
        "generation_kwargs": {"until": ["\n"], "max_gen_toks": count, "do_sample": False},
        "metric_list": [
            *({"metric": m, "aggregation": "mean", "higher_is_better": True} for m in ("exact_match", *ROUGE)),
            {"metric": "pair", "aggregation": corpus_bleu, "higher_is_better": True},
        ],
        "process_results": judged,
    }
    kinds: dict[str, dict[str, Any]] = {
        "choices": {
            "doc_to_text": "prompt",
            "doc_to_choice": "choices",
            "doc_to_target": "answer",
            "output_type": "multiple_choice",
        },
        "texts": {"doc_to_text": "", "doc_to_target": "text", "output_type": "loglikelihood_rolling"},
        "answers": generation,
    }
    tasks = {
        name: ConfigurableTask(
            config={
                "task": name,
                "custom_dataset": lambda name=name, **_: {"test": Dataset.from_list(rows[name])},
                "test_split": "test",
                "target_delimiter": "",
                "num_fewshot": 0,
                **kind,
            }
        )
        for name, kind in kinds.items()
    }
    found = evaluate(lm, {"tasks": tasks, "groups": {}}, bootstrap_iters=100)["results"]
    return {
        name: {
            key.replace(",none", "").replace("pair", "bleu"): value
            for key, value in found[name].items()
            if key.endswith(",none") and isinstance(value, int | float)
        }
        for name in tasks
    }


def main() -> None:
    """Writes all of it."""
    rng = np.random.default_rng(1)
    tokenizer = make_tokenizer(rng)
    make_model(rng, tokenizer).save_pretrained(HERE)
    tokenizer.save_pretrained(HERE)
    (HERE / "generation_config.json").unlink(missing_ok=True)
    lm = HFLM(pretrained=str(HERE), dtype="float32", device="cpu", batch_size=4)
    prompts = [sentence(rng, int(rng.integers(1, 9))) for _ in range(30)]
    answered = []
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt").input_ids
        made = lm.model.generate(ids, max_new_tokens=NEW_TOKENS, do_sample=False)[0, ids.shape[1] :]
        answered.append(tokenizer.decode(made, skip_special_tokens=True).split("\n")[0])
    rows = examples(rng, answered, prompts)
    for name, lines in rows.items():
        (HERE / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    longest = max(len(tokenizer.encode(a, add_special_tokens=False)) for row in rows["answers"] for a in row["answer"])
    found = figures(lm, rows, 2 * longest)
    (HERE / "reference.json").write_text(json.dumps(found, indent=2) + "\n")
    print(json.dumps(found, indent=2), answered[:5])  # noqa: T201


if __name__ == "__main__":
    main()
