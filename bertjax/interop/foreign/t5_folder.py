"""What T5X and T5 Mesh TF checkpoints lack beside their arrays: sizes, the activation and a tokenizer."""

import ast
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from bertjax.config.schema.model import T5Config
from bertjax.errors import UserError
from bertjax.interop.t5 import t5_tensor_names
from bertjax.storage import text

GIN = ("operative_config.gin", "config.gin")  # of T5 Mesh TF, and of T5X
TOKENIZER = "spiece.model"
_TOKENIZERS = (TOKENIZER, "sentencepiece.model")
_ACTIVATION = re.compile(r"(?:DenseReluDense\.activation|mlp_activations)\s*=\s*(\(.*?\)|\[.*?\]|'.*?'|\".*?\")", re.S)
_VOCABULARY = re.compile(r"['\"]([^'\"\n]+\.model)['\"]")
_NAMES = {"swish": "silu"}
_BIAS = "{}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"

Shape = tuple[int, ...]


def read_config(
    place: Path, folders: tuple[Path, ...], shape_of: Callable[[str], Shape | None]
) -> tuple[dict[str, Any], list[str]]:
    """(config.json of transformers, notes), from the shapes of a T5's tensors and the gin files in `folders`.

    shape_of: {name in transformers: shape there}, None for a tensor that is not there. Raises UserError where a tensor
    that the sizes are read from is missing.
    """

    def need(name: str) -> Shape:
        if (shape := shape_of(name)) is None or len(shape) < 2:
            raise UserError(f"{place}: its arrays are not those of a T5 (none is transformers' '{name}')")
        return shape

    def depth(stack: str) -> int:
        layers = 0
        while shape_of(f"{stack}.block.{layers}.layer.0.SelfAttention.q.weight") is not None:
            layers += 1
        return layers

    vocab_size, width = need("shared.weight")
    first = "encoder.block.0.layer"
    buckets, heads = need(_BIAS.format("encoder"))
    need(_BIAS.format("decoder"))
    inner = need(f"{first}.0.SelfAttention.q.weight")[0]
    if not heads or inner % heads:
        raise UserError(f"{place}: {inner} outputs of the queries are no multiple of {heads} heads")
    gated = shape_of(f"{first}.1.DenseReluDense.wi_0.weight") is not None
    gin = next((folder / name for folder in folders for name in GIN if (folder / name).is_file()), None)
    activation = _read_activation(gin, gated) if gin else None
    config = {
        "model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "vocab_size": vocab_size, "d_model": width,
        "d_kv": inner // heads, "d_ff": need(f"{first}.1.DenseReluDense.wi{'_0' if gated else ''}.weight")[0],
        "num_layers": depth("encoder"), "num_decoder_layers": depth("decoder"), "num_heads": heads,
        "relative_attention_num_buckets": buckets, "tie_word_embeddings": shape_of("lm_head.weight") is None,
        "feed_forward_proj": activation or ("gated-gelu" if gated else "relu"), "is_encoder_decoder": True,
        "decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1,
    }  # fmt: skip
    version = "1.1" if gated else "1.0"
    source = f"as {gin.name} says" if gin and activation else f"as in T5 {version}, since no gin file says it"
    note = (
        f"{place}: has no config.json: sizes are those of its arrays, feed_forward_proj: {config['feed_forward_proj']}"
    )
    notes = [f"{note} {source}"]
    if gated and config["tie_word_embeddings"]:  # of no published version, so that it may have been lost
        notes.append(f"{place}: has no output matrix, which T5 1.1 has: the embeddings are taken for it, scaled")
    return config, notes


def tensor_names(place: Path, config: dict[str, Any]) -> list[str]:
    """The tensors of transformers' T5 of these sizes. Raises UserError for sizes that no T5 here can have."""
    sizes = {name: value for name, value in config.items() if name in T5Config.model_fields}
    try:
        return list(t5_tensor_names(T5Config.model_validate(sizes)).values())
    except ValidationError as error:
        first = error.errors()[0]
        raise UserError(
            f"{place}: {'.'.join(map(str, first['loc']))}: {first['msg']} (got {first['input']!a:.40})"
        ) from None


def find_tokenizer(place: Path, folders: tuple[Path, ...], named: Path | None) -> Path:
    """The SentencePiece model of a checkpoint. Raises UserError without one."""
    found = [folder / name for folder in folders for name in _TOKENIZERS if (folder / name).is_file()]
    if named is not None:
        if named.is_dir() or not named.is_file():
            raise UserError(f"{named}: is no file; --tokenizer names a SentencePiece model such as {TOKENIZER}")
        return named
    if found:
        return found[0]
    gin = next((folder / name for folder in folders for name in GIN if (folder / name).is_file()), None)
    used = _VOCABULARY.search(text.read_text(gin, text.MAX_BYTES)) if gin else None
    said = f" ({gin.name} names {used[1]})" if gin and used else ""
    raise UserError(f"{place}: has no tokenizer; name its SentencePiece model with --tokenizer FILE{said}")


def _read_activation(gin: Path, gated: bool) -> str | None:
    """feed_forward_proj of transformers from a gin file; None where the file does not say it."""
    if (found := _ACTIVATION.search(text.read_text(gin, text.MAX_BYTES))) is None:
        return None
    try:
        value = ast.literal_eval(found[1])
    except (ValueError, SyntaxError):
        return None
    names = [value] if isinstance(value, str) else [str(name) for name in value]
    kinds = [_NAMES.get(name, name) for name in names if name != "linear"]
    if len(kinds) != 1 or gated != (len(names) == 2):
        raise UserError(f"{gin}: the activation {found[1]} does not fit the arrays, which have {2 if gated else 1}")
    return f"gated-{kinds[0]}" if gated else kinds[0]
