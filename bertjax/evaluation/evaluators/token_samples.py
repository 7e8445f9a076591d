"""A few rows of held-out data with the model's predictions of their tokens, for reports: kinds mlm and loss."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from bertjax.data.tokenizers.load import AnyTokenizer
from bertjax.evaluation.inference.batches import round_up_batch
from bertjax.models.t5.model import shift_right
from bertjax.training.program import MeshJit, TrainProgram
from bertjax.training.state import Params

NUM_ROWS = 8  # rows with samples
NUM_GUESSES = 4  # most likely tokens of a mask
MAX_TOKENS = 96  # tokens of a row that are shown, and the masks among them
Sampler = Callable[[Params, Mapping[str, jax.Array]], dict[str, Any]]


def make_sampler(program: TrainProgram, tokenizer: AnyTokenizer) -> Sampler | None:
    """(params, batch) -> the samples of its first rows, an entry of the evaluation's file; None for other objectives.

    {"masked": [[text or {"gold", "shown", "guesses": [{"token", "probability"}...]}...]...]} of masked tokens, or
    {"teacher_forced": [{"inputs", "targets", "prediction"}...]} of target tokens, each predicted from the targets
    before it. Every process makes the same calls.
    """
    if "mlm" in program.heads and "mlm" in program.objective.weights:
        predict, describe = _mlm_guesses, _masked_samples
    elif "target" in program.objective.weights:
        predict, describe = _target_guesses, _target_samples
    else:
        return None
    rows = round_up_batch(NUM_ROWS, program)

    def forward(params: Params, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
        where = program.batch_sharding()
        first = {name: jax.lax.with_sharding_constraint(x[:rows], where) for name, x in batch.items()}
        return first | predict(program, params, first)

    jitted = MeshJit(jax.jit(forward, out_shardings=NamedSharding(program.mesh, P())), program.mesh, program.rules)
    # Rows after the data's end repeat earlier ones with weight 0.
    return lambda params, batch: describe(tokenizer, jax.device_get(jitted(params, batch)))


def _mlm_guesses(program: TrainProgram, params: Params, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Most likely tokens of each mask: ids and probabilities [B, K, NUM_GUESSES]."""
    model = program.build_model(params)
    fields = (batch[name] for name in ("input_ids", "token_type_ids", "segment_ids", "positions"))
    hidden = model.encode(*fields, packed=batch["cls_positions"].shape[1] > 1)
    logits = model.mlm_logits(hidden, batch["masked_positions"]).astype(jnp.float32)
    probabilities, ids = jax.lax.top_k(jax.nn.softmax(logits, axis=-1), min(NUM_GUESSES, logits.shape[-1]))
    return {"guess_ids": ids, "guess_probabilities": probabilities}


def _masked_samples(tokenizer: AnyTokenizer, rows: Mapping[str, np.ndarray]) -> dict[str, Any]:
    found = [_masked_row(tokenizer, {name: x[i] for name, x in rows.items()}) for i in range(len(rows["input_ids"]))]
    return {"masked": [parts for parts in found if any(isinstance(part, dict) for part in parts)][:NUM_ROWS]}


def _masked_row(tokenizer: AnyTokenizer, row: Mapping[str, np.ndarray]) -> list[Any]:
    """The first example of a row: texts, and a mapping for each token that is predicted."""
    ids = row["input_ids"][row["segment_ids"] == 1][:MAX_TOKENS].tolist()
    masks = {int(p): k for k, p in enumerate(row["masked_positions"]) if row["masked_weights"][k] > 0 and p < len(ids)}
    parts: list[Any] = []
    start = 0
    for position in sorted(masks):
        parts.append(tokenizer.decode(ids[start:position]))
        start, k = position + 1, masks[position]
        guesses = zip(row["guess_ids"][k].tolist(), row["guess_probabilities"][k].tolist(), strict=True)
        parts.append({
            "gold": token_text(tokenizer, int(row["masked_ids"][k])), "shown": token_text(tokenizer, ids[position]),
            "guesses": [{"token": token_text(tokenizer, i), "probability": round(p, 4)} for i, p in guesses],
        })  # fmt: skip
    parts.append(tokenizer.decode(ids[start:]))
    return [part for part in parts if part]


def token_text(tokenizer: AnyTokenizer, token: int) -> str:
    """One token as text; special tokens and pieces without text by their piece, ids past the vocabulary by number."""
    if not 0 <= token < len(tokenizer.pieces):
        return f"<{token}>"
    return tokenizer.decode([token]).strip() or tokenizer.pieces[token]


def _target_guesses(program: TrainProgram, params: Params, batch: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """The most likely token at each target position, [B, T], given the targets before it (objectives/text_to_text)."""
    model: Any = program.build_model(params)
    segments = batch["target_segment_ids"]
    inputs = shift_right(batch["target_ids"], batch["target_positions"], model.config.decoder_start_token_id)
    if "input_ids" in batch:
        hidden = model.encode(batch["input_ids"], batch["segment_ids"])
        decoded = model.decode(inputs, segments, hidden, batch["segment_ids"])
    else:
        decoded = model.decode(inputs, segments, None, None, prefix_mask=batch["prefix_mask"])
    return {"guess_ids": model.logits(decoded).argmax(-1)}


def _target_samples(tokenizer: AnyTokenizer, rows: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The first example of each row; the inputs of a decoder-only model are the targets without weight."""
    found = []
    for i in range(len(rows["target_ids"])):
        row = {name: x[i] for name, x in rows.items()}
        first, weighted = row["target_segment_ids"] == 1, row["target_weights"] > 0
        if not (first & weighted).any():
            continue
        given = (
            row["input_ids"][row["segment_ids"] == 1] if "input_ids" in row else row["target_ids"][first & ~weighted]
        )
        found.append({
            "inputs": _text(tokenizer, given), "targets": _text(tokenizer, row["target_ids"][first & weighted]),
            "prediction": _text(tokenizer, row["guess_ids"][first & weighted]),
        })  # fmt: skip
    return {"teacher_forced": found[:NUM_ROWS]}


def _text(tokenizer: AnyTokenizer, ids: np.ndarray | Sequence[int]) -> str:
    shown = [int(i) for i in ids]
    return tokenizer.decode(shown[:MAX_TOKENS]) + (" …" if len(shown) > MAX_TOKENS else "")
