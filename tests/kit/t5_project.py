"""A T5 project small enough to train in a test: tiny.yaml, its text and questions, in a folder."""

import json
import random
from pathlib import Path

CONFIG = """\
model: {family: t5, vocab_size: 200, d_model: 32, d_kv: 8, d_ff: 64, num_layers: 2, num_heads: 4}
tokenizer: {kind: sentencepiece, extra_ids: 20, vocab_size: 200}
run: {name: tiny, log_every: 1, compute_dtype: float32, tensorboard: false, compilation_cache_dir: null,
  prepare_workers: 1, checkpoint: {save_every: 2}}
tasks:
  text: {source: {kind: text, files: [text.txt], layout: sentences},
    preprocess: {kind: span_corruption, sequence_length: 32}}
  places: &places {source: {kind: jsonl, files: [places.jsonl]}, preprocess: {kind: text_to_text, sequence_length: 24,
    target_length: 12, inputs: "where is the {animal}", targets: "{place}"}}
stages:
  - {name: pretrain, data: text, objective: {kind: text_to_text}, steps: 2, batch_size: 8,
    optimizer: &constant {kind: adafactor, schedule: constant, learning_rate: 0.01, warmup_steps: 0}}
  - {name: tune, data: places, objective: {kind: text_to_text}, steps: 4, batch_size: 8, optimizer: *constant,
    trainable: {kind: adapters, adapter_size: 4}, evaluate: [{kind: loss, data: *places}]}
"""
_ANIMALS = "dog cat fox hen cow owl bee ant eel elk".split()
_PLACES = "barn river forest garden field cave tree house pond hill".split()
_VERBS = "sleeps sings runs eats hides waits plays walks swims digs".split()


def write_project(folder: Path) -> Path:
    """Writes tiny.yaml (pre-training, then adapters) and its data into `folder` -> tiny.yaml."""
    rng = random.Random(0)
    say = lambda: f"The {rng.choice(_ANIMALS)} {rng.choice(_VERBS)} near the {rng.choice(_PLACES)}."  # noqa: E731
    documents = "\n\n".join("\n".join(say() for _ in range(8)) for _ in range(60))
    pairs = [json.dumps({"animal": rng.choice(_ANIMALS), "place": rng.choice(_PLACES)}) for _ in range(64)]
    for name, text in {"tiny.yaml": CONFIG, "text.txt": documents, "places.jsonl": "\n".join(pairs)}.items():
        (folder / name).write_text(text, encoding="utf-8")
    return folder / "tiny.yaml"
