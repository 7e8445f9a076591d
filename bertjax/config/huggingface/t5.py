"""T5Config's fields out of a Hugging Face folder: config.json, and what only the names in its weights tell."""

import json
from pathlib import Path
from typing import Any, get_args

from bertjax.config.huggingface import fields, generation
from bertjax.config.schema.model import T5Config
from bertjax.errors import UserError

_T5_FIELDS = (
    "vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_decoder_layers", "num_heads",
    "relative_attention_num_buckets", "relative_attention_max_distance", "dropout_rate", "layer_norm_epsilon",
)  # fmt: skip
_WEIGHTS = "model.safetensors"
_EMBEDDINGS = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")  # one and the same
_OUTPUT = "lm_head.weight"


def t5_fields_from_hf(path: Path, found: dict[str, Any]) -> dict[str, Any]:
    """path: of config.json, `found` inside it. Names follow transformers' T5Config.

    The version of a T5 hides in two places. Transformers up to 4 ties and scales the output by `tie_word_embeddings`;
    since 5 that is always true, `scale_decoder_outputs` says the one thing, and the other is whether the weights hold
    an output matrix of their own.
    """
    sizes = {name: found[name] for name in _T5_FIELDS if found.get(name) is not None}
    said = found.get("tie_word_embeddings") is not False
    scale = found.get("scale_decoder_outputs")
    own = _has_own_lm_head(path.parent)
    versions = {
        "tie_word_embeddings": said if own is None else not own,
        "scale_decoder_outputs": said if scale is None else scale,
    }
    start = found.get("decoder_start_token_id")
    if start is None:
        start = generation.read_generation_config(path.parent).get("decoder_start_token_id")
    if start is None:  # T5's convention
        start = found.get("pad_token_id") or 0
    return {"family": "t5", **sizes, **versions, "decoder_start_token_id": start} | _feed_forward(path, found)


def _feed_forward(path: Path, found: dict[str, Any]) -> dict[str, str]:
    """T5Config of transformers derives `dense_act_fn` and `is_gated_act` from feed_forward_proj, whatever else they say
    in the file; one that disagrees was written by hand and means something else.
    """
    said = found.get("feed_forward_proj", "relu")
    gate, _, name = said.rpartition("-") if isinstance(said, str) else ("", "", said)
    if gate not in ("", "gated"):
        name = said
    tanh = said in ("gated-gelu", "gated-gelu_new")  # the first is the tanh form too
    ours = "gelu" if tanh else fields.map_activation(path, "feed_forward_proj", name)
    derived = {"dense_act_fn": "gelu_new" if said == "gated-gelu" else name, "is_gated_act": gate == "gated"}
    for field, value in derived.items():
        if found.get(field) not in (None, value):
            raise UserError(
                f"{path}: {field} is {found[field]!a:.40} and feed_forward_proj {said!r}, which says {value!r}; remove "
                "the one that is wrong"
            )
    made = f"{gate}-{ours}" if gate else ours
    erf_gate = gate == "gated" and ours == "gelu" and not tanh
    if made not in get_args(T5Config.model_fields["feed_forward_proj"].annotation) or erf_gate:
        raise UserError(f"{path}: feed_forward_proj: {said!a:.40} is a layer bertjax does not compute")
    return {"feed_forward_proj": made}


def _has_own_lm_head(folder: Path) -> bool | None:
    """Whether the weights hold an output matrix that is not a copy of the embeddings; None without readable weights."""
    try:
        places = {_OUTPUT: _tensor_location(folder, _OUTPUT)} | {
            name: _tensor_location(folder, name) for name in _EMBEDDINGS
        }
        output = places.pop(_OUTPUT)
        if output is None:
            return False
        twin = next((place for place in places.values() if place), None)
        return twin is None or not _same_bytes(output, twin)
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return None  # whoever loads them says what is wrong with them


def _tensor_location(folder: Path, name: str) -> tuple[Path, int, int] | None:
    """(file, first byte, bytes) of a tensor; the format's header is JSON behind its length in 8 bytes."""
    path = folder / _WEIGHTS
    if not path.is_file():
        index = json.loads((folder / f"{_WEIGHTS}.index.json").read_text(encoding="utf-8"))
        if name not in index["weight_map"]:
            return None
        path = folder / Path(index["weight_map"][name]).name
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > path.stat().st_size:
            raise ValueError("no header")
        described = json.loads(file.read(length)).get(name)
    if described is None:
        return None
    start, stop = described["data_offsets"]
    return path, 8 + length + start, stop - start


def _same_bytes(one: tuple[Path, int, int], other: tuple[Path, int, int], piece: int = 2**24) -> bool:
    if one[2] != other[2]:
        return False
    with one[0].open("rb") as a, other[0].open("rb") as b:
        a.seek(one[1])
        b.seek(other[1])
        return all(a.read(n) == b.read(n) for n in (min(piece, one[2] - at) for at in range(0, one[2], piece)))
