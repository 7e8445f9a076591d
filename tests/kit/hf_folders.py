"""Hugging Face folders of tiny models with random weights."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
from safetensors.numpy import load_file

from bertjax.config.schema.model import BertConfig, DistilBertConfig, T5Config
from bertjax.data.tokenizers.load import Tokenizer, build_wordpiece
from bertjax.interop import hf_folder
from bertjax.models import registry

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefgh", *(f"##{x}" for x in "abcdefgh"), "word", "!"]
SIZES = {
    "vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
    "max_position_embeddings": 64,
}  # fmt: skip
BERT, DISTILBERT = BertConfig(**SIZES), DistilBertConfig(type_vocab_size=0, **SIZES)


def bert_folder(out: Path, heads: tuple[str, ...], model: BertConfig = BERT, labels: list[str] | None = None) -> Path:
    """A Hugging Face folder with random weights."""
    make = jax.jit(registry.init_params, static_argnums=(0, 1, 2))
    fresh = make(model, heads, len(labels or "ab"), jax.random.key(0))
    backend = build_wordpiece({piece: i for i, piece in enumerate(PIECES)}, lowercase=True)
    hf_folder.save_folder(
        out, {path: np.asarray(x) for path, x in fresh.items()}, model, heads,
        tokenizer=Tokenizer(backend, "test"), labels=labels,
    )  # fmt: skip
    return out


def assert_same_tensors(one: Path, other: Path) -> None:
    a, b = load_file(one / "model.safetensors"), load_file(other / "model.safetensors")
    assert a.keys() == b.keys()
    assert all((a[name].view(np.uint32) == b[name].view(np.uint32)).all() for name in a)


T5_SIZES = dict(vocab_size=320, d_model=16, d_kv=4, d_ff=24, num_layers=2, num_heads=3, num_decoder_layers=1)
T5_MODELS = {
    "1.0": T5Config(**T5_SIZES, scale_decoder_outputs=True),
    "1.1": T5Config(**T5_SIZES, feed_forward_proj="gated-gelu", tie_word_embeddings=False, scale_decoder_outputs=False),
}


def t5_folder(out: Path, model: T5Config, tokenizer: Any) -> Path:
    """A Hugging Face folder with random weights."""
    fresh = jax.jit(registry.init_params, static_argnums=(0, 1, 2))(model, ("lm",), 2, jax.random.key(0))
    hf_folder.save_folder(out, {path: np.asarray(x) for path, x in fresh.items()}, model, ("lm",), tokenizer=tokenizer)
    return out
