"""A torch T5 of transformers with random weights and ours with the same, inputs, and transformers' answers to them."""

from functools import cache

import numpy as np
import torch
import transformers
from torch_t5 import flat_parameters

from bertjax.config.schema.model import T5Config
from bertjax.models import registry

ROWS, WIDTH, LENGTH, V = 12, 9, 16, 23
SIZES = dict(vocab_size=V, d_model=24, d_kv=6, d_ff=40, num_layers=2, num_heads=3, relative_attention_max_distance=10,
             relative_attention_num_buckets=8)  # fmt: skip
VERSIONS = {
    "1.0": {"feed_forward_proj": "relu", "tie_word_embeddings": True},
    "1.1": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
}


@cache
def pair(version: str):
    """A transformers model with random weights, and ours with the same."""
    config = T5Config(**SIZES | VERSIONS[version])
    theirs = transformers.T5Config(
        **SIZES | VERSIONS[version], decoder_start_token_id=0, eos_token_id=1, pad_token_id=0
    )
    torch.manual_seed(0)
    model = transformers.T5ForConditionalGeneration(theirs).eval()
    if not config.tie_word_embeddings:  # transformers 5 ties them whatever the configuration says
        model.lm_head.weight = torch.nn.Parameter(torch.empty(V, SIZES["d_model"]))
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            wild = 0.3 if path.startswith(("shared", "lm_head")) else 1.0  # or every token would be the one before
            parameter.copy_(torch.randn_like(parameter) * wild + path.endswith("layer_norm.weight"))
    return model, registry.build_model(config, ("lm",), flat_parameters(model, config))


def inputs() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    real = np.arange(WIDTH)[None] < rng.integers(1, WIDTH + 1, ROWS)[:, None]
    return np.where(real, rng.integers(2, V, (ROWS, WIDTH)), 0).astype(np.int32), real.astype(np.int32)


def generate(model, **options) -> np.ndarray:
    """transformers' answers without the start, int [B, LENGTH]; behind EOS it pads with EOS in beam search."""
    return without_start(call_generate(model, **options))


def call_generate(model, **options):
    """What transformers' generate returns for the inputs, without sampling."""
    ids, real = inputs()
    return model.generate(
        input_ids=torch.tensor(ids).long(), attention_mask=torch.tensor(real).long(), max_new_tokens=LENGTH,
        do_sample=False, **options,
    )  # fmt: skip


def without_start(found) -> np.ndarray:
    found = np.pad(found.numpy()[:, 1:], ((0, 0), (0, LENGTH + 1 - found.shape[1])))
    ended = (found == 1).cumsum(1) - (found == 1) > 0
    return np.where(ended, 0, found)
