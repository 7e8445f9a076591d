"""Read T5Config from a Hugging Face folder of a T5, mT5 or umT5: from config.json and the header of the weights."""

import json
from pathlib import Path
from typing import Any, get_args

from safetensors import safe_open

from bertjax.config.huggingface import fields, generation
from bertjax.config.huggingface.fields import COMMON, IGNORED, SUPPORTED, ConfigJson, FieldRule, RequiredValue
from bertjax.config.schema.model import T5Config
from bertjax.errors import UserError

_T5_FIELDS = (
    "vocab_size", "d_model", "d_kv", "d_ff", "num_layers", "num_decoder_layers", "num_heads",
    "relative_attention_num_buckets", "relative_attention_max_distance", "dropout_rate", "layer_norm_epsilon",
)  # fmt: skip
# Fields whose default in MT5Config and UMT5Config is not that of T5Config, which our section has.
_MULTILINGUAL = {
    "vocab_size": 250112, "d_ff": 1024, "num_layers": 8, "num_heads": 6, "feed_forward_proj": "gated-gelu",
}  # fmt: skip
_RULES: dict[str, FieldRule] = COMMON | dict.fromkeys(generation.CONFIG_JSON_FIELDS, SUPPORTED) | {
    **dict.fromkeys(
        (
            *_T5_FIELDS, "feed_forward_proj", "dense_act_fn", "is_gated_act", "scale_decoder_outputs",
            "decoder_start_token_id", "pad_token_id", "eos_token_id",
        ),
        SUPPORTED,
    ),
    "is_encoder_decoder": RequiredValue((True, None), "a T5 encoder without a decoder is not supported"),
    # umT5's `scalable_attention` is in Google's files; transformers does not read it
    **dict.fromkeys(("initializer_factor", "n_positions", "classifier_dropout", "scalable_attention"), IGNORED),
}  # fmt: skip
_WEIGHTS = "model.safetensors"
_EMBEDDINGS = ("shared.weight", "encoder.embed_tokens.weight", "decoder.embed_tokens.weight")  # copies of one matrix
_OUTPUT = "lm_head.weight"


def _read(path: Path, found: dict[str, Any]) -> dict[str, Any]:
    """Translate the content `found` of config.json at `path`.

    Transformers 4 ties and scales the output by `tie_word_embeddings`. In version 5 that is always true:
    `scale_decoder_outputs` decides about scaling, and the output is tied unless the weights have an output matrix.
    Before the weights are fetched, an output that is not scaled counts as not tied, as in T5 1.1.
    mT5 is never scaled (in version 4 a tied one, which Google's are not, was). umT5 is scaled by `tie_word_embeddings`;
    version 5 scales Google's models too, whose files say false: that changes no greedy output, but beams and losses.
    """
    kind = found["model_type"]
    found = (_MULTILINGUAL if kind != "t5" else {}) | found
    sizes = {name: found[name] for name in _T5_FIELDS if found.get(name) is not None}
    tied = found.get("tie_word_embeddings") is not False
    scale = {"t5": found.get("scale_decoder_outputs"), "mt5": False, "umt5": None}[kind]
    own = _has_own_lm_head(path.parent)
    versions = {
        "tie_word_embeddings": tied and scale is not False if own is None else not own,
        "scale_decoder_outputs": tied if scale is None else scale,
    }
    start = found.get("decoder_start_token_id")
    if start is None:
        start = generation.read_generation_config(path.parent).get("decoder_start_token_id")
    if start is None:  # T5's convention
        start = found.get("pad_token_id") or 0
    named = {} if kind == "t5" else {"model_type": kind}
    return {**named, **sizes, **versions, "decoder_start_token_id": start} | _feed_forward(path, found)


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
        if (output := _open_tensor(folder, _OUTPUT)) is None:
            return False
        copies = [found for name in _EMBEDDINGS if (found := _open_tensor(folder, name)) is not None]
        return not copies or not _equal(output, copies[0])
    except Exception:  # noqa: BLE001  safetensors raises many; loading the weights reports the error
        return None


def _open_tensor(folder: Path, name: str) -> Any:
    """safetensors' slice of a tensor, which reads nothing yet; None where the weights do not have it."""
    path = folder / _WEIGHTS
    if not path.is_file():
        index = json.loads((folder / f"{_WEIGHTS}.index.json").read_text(encoding="utf-8"))
        if name not in index["weight_map"]:
            return None
        path = folder / Path(index["weight_map"][name]).name
    file = safe_open(str(path), framework="np")
    return file.get_slice(name) if name in file.keys() else None  # noqa: SIM118  not a dictionary


def _equal(one: Any, other: Any, rows: int = 4096) -> bool:
    """Whether two matrices have the same bytes, compared in blocks of rows."""
    if (shape := one.get_shape()) != other.get_shape() or one.get_dtype() != other.get_dtype():
        return False
    blocks = [slice(at, min(at + rows, shape[0])) for at in range(0, shape[0], rows)]
    return all(one[block].tobytes() == other[block].tobytes() for block in blocks)


T5 = ConfigJson(_RULES, _read)
