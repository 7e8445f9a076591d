"""Read T5Config from a Hugging Face folder: from config.json, and the output matrix from the weights' header."""

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
_EMBEDDINGS = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")  # copies of one matrix
_OUTPUT = "lm_head.weight"


def t5_fields_from_hf(path: Path, found: dict[str, Any]) -> dict[str, Any]:
    """Translate the content `found` of config.json at `path`.

    Transformers 4 ties and scales the output by `tie_word_embeddings`. In version 5 that is always true:
    `scale_decoder_outputs` decides about scaling, and the output is tied unless the weights have an output matrix.
    """
    sizes = {name: found[name] for name in _T5_FIELDS if found.get(name) is not None}
    tied = found.get("tie_word_embeddings") is not False
    scale = found.get("scale_decoder_outputs")
    own = _has_own_lm_head(path.parent)
    versions = {
        "tie_word_embeddings": tied if own is None else not own,
        "scale_decoder_outputs": tied if scale is None else scale,
    }
    start = found.get("decoder_start_token_id")
    if start is None:
        start = generation.read_generation_config(path.parent).get("decoder_start_token_id")
    if start is None:  # T5's convention
        start = found.get("pad_token_id") or 0
    return {"family": "t5", **sizes, **versions, "decoder_start_token_id": start} | _feed_forward(path, found)


def _feed_forward(path: Path, found: dict[str, Any]) -> dict[str, str]:
    """Translate feed_forward_proj, from which transformers derives `dense_act_fn` and `is_gated_act`.

    Raises UserError if those two disagree with it, since then the file was edited to mean something else.
    """
    given = found.get("feed_forward_proj", "relu")
    gate, _, name = given.rpartition("-") if isinstance(given, str) else ("", "", given)
    if gate not in ("", "gated"):
        name = given
    tanh = given in ("gated-gelu", "gated-gelu_new")  # the first is the tanh form too
    ours = "gelu" if tanh else fields.map_activation(path, "feed_forward_proj", name)
    derived = {"dense_act_fn": "gelu_new" if given == "gated-gelu" else name, "is_gated_act": gate == "gated"}
    for field, value in derived.items():
        if found.get(field) not in (None, value):
            raise UserError(
                f"{path}: {field} is {found[field]!a:.40} and feed_forward_proj {given!r}, which means {value!r}; "
                "remove the wrong one"
            )
    made = f"{gate}-{ours}" if gate else ours
    erf_gate = gate == "gated" and ours == "gelu" and not tanh
    if made not in get_args(T5Config.model_fields["feed_forward_proj"].annotation) or erf_gate:
        raise UserError(f"{path}: feed_forward_proj: {given!a:.40} is not supported")
    return {"feed_forward_proj": made}


def _has_own_lm_head(folder: Path) -> bool | None:
    """Whether the weights have an output matrix that is no copy of the embeddings; None without readable weights."""
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
        return None  # loading the weights reports the error


def _tensor_location(folder: Path, name: str) -> tuple[Path, int, int] | None:
    """Return (file, first byte, bytes) of a tensor. A file starts with the length of its JSON header in 8 bytes."""
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
