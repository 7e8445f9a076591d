"""Converts a SentencePiece unigram model to the tokenizer.json of the `tokenizers` library and back."""

import base64
import binascii
import json
from typing import Any

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from bertjax.data.tokenizers.backend_state import parse_backend, pipeline_steps
from bertjax.data.tokenizers.unigram_formats.spm_proto import CONTROL, NORMAL, UNKNOWN, USER_DEFINED, Model, Piece
from bertjax.errors import UserError

_SPACES = ("Strip", "Replace")  # further normalizers with which transformers imitates SentencePiece


def read(state: dict[str, Any], where: str) -> Model:
    """The model with the pieces of a parsed tokenizer.json. UserError for one that SentencePiece cannot express."""
    parse_backend(json.dumps(state), where)
    described, added = state["model"], {token["id"]: token for token in state.get("added_tokens") or []}
    unknown = described.get("unk_id")
    if unknown is None or described.get("byte_fallback"):
        raise UserError(f"{where}: no unk_id, or byte_fallback on: not a tokenizer of T5's kind")
    listed = [(str(piece), float(score)) for piece, score in described["vocab"]]
    if any(not abs(score) < 1e30 for _, score in listed):
        raise UserError(f"{where}: a score is not a number of ordinary size; export the tokenizer again")
    late = sorted(number for number in added if number >= len(listed))
    if late != list(range(len(listed), len(listed) + len(late))):
        raise UserError(f"{where}: the ids have gaps; export the tokenizer again")
    listed += [(added[number]["content"], 0.0) for number in late]
    pieces = []
    for number, (piece, score) in enumerate(listed):
        token = added.get(number)
        kind = NORMAL if token is None else CONTROL if token.get("special") else USER_DEFINED
        pieces.append(Piece(piece, score, UNKNOWN if number == unknown else kind))
    special = {"unk": listed[unknown][0], "bos": "<s>", "eos": "</s>", "pad": "<pad>"}
    _check_spaces(state, where)
    return Model(tuple(pieces), _charsmap(state, where), special)


def _charsmap(state: dict[str, Any], where: str) -> bytes:
    found = b""
    for part in pipeline_steps(state, "normalizer"):
        if part["type"] == "Precompiled":
            try:
                found = base64.b64decode(part["precompiled_charsmap"], validate=True)
            except (binascii.Error, ValueError, TypeError):
                raise UserError(f"{where}: precompiled_charsmap is not base64; export it again") from None
        elif part["type"] not in _SPACES:
            raise UserError(f"{where}: has a normalizer {part['type']!a:.40}, which T5's have not")
    return found


def _check_spaces(state: dict[str, Any], where: str) -> None:
    parts = pipeline_steps(state, "pre_tokenizer")
    kinds = [part["type"] for part in parts]
    space = parts[-1] if parts else {}
    before = space.get("prepend_scheme", "always" if space.get("add_prefix_space") else None)
    if kinds not in (["Metaspace"], ["WhitespaceSplit", "Metaspace"]) or before == "never":
        raise UserError(f"{where}: has the pre_tokenizer {', '.join(kinds) or 'none'}; T5's is Metaspace with a prefix")


def write(model: Model, extra_ids: int) -> str:
    """A model without sentinels -> the text of a tokenizer.json with `extra_ids` of them, as T5Tokenizer's."""
    pieces = [(piece.text, piece.score) for piece in model.pieces]
    kinds = [piece.kind for piece in model.pieces]
    sentinels = [f"<extra_id_{i}>" for i in reversed(range(extra_ids))]
    vocab = [*pieces, *((sentinel, 0.0) for sentinel in sentinels)]
    backend = tokenizers.Tokenizer(models.Unigram(vocab, unk_id=kinds.index(UNKNOWN)))
    if model.charsmap:
        backend.normalizer = normalizers.Precompiled(model.charsmap)
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    )
    backend.decoder = decoders.Metaspace(prepend_scheme="always")
    end = model.special["eos"]
    backend.post_processor = processors.TemplateProcessing(
        single=["$A", end], pair=["$A", end, "$B", end],
        special_tokens=[(end, [piece for piece, _ in pieces].index(end))],
    )  # fmt: skip
    special = [p.text for p in model.pieces if p.kind in (CONTROL, UNKNOWN)] + sentinels
    backend.add_special_tokens([tokenizers.AddedToken(piece, normalized=False) for piece in special])
    plain = [p.text for p in model.pieces if p.kind == USER_DEFINED]
    backend.add_tokens([tokenizers.AddedToken(piece, normalized=False) for piece in plain])
    return json.dumps(json.loads(backend.to_str()), ensure_ascii=False, indent=1) + "\n"


def tokenizer_config(model: Model, extra_ids: int) -> str:
    """The text of tokenizer_config.json. T5Tokenizer takes <unk> to be id 2: other models get the generic class."""
    first = [piece.text for piece in model.pieces[:3]]
    pad = model.special["pad"]
    config = {
        "tokenizer_class": "T5Tokenizer" if first == ["<pad>", "</s>", "<unk>"] else "PreTrainedTokenizerFast",
        "model_input_names": ["input_ids", "attention_mask"],
        "extra_ids": extra_ids,
        "pad_token": pad if any(piece.text == pad for piece in model.pieces) else first[0],
        "eos_token": model.special["eos"],
        "unk_token": model.special["unk"],
    }
    return json.dumps(config, indent=2, ensure_ascii=False) + "\n"
