"""Predictions for texts of the user: fill masks, answer a question, generate text."""

import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from pydantic import ValidationError

from bertjax.config.huggingface import generation
from bertjax.config.schema.evaluation import Decoding
from bertjax.data.jobs import text_counts
from bertjax.data.preprocess.registry import record_of
from bertjax.data.preprocess.span_qa import Example
from bertjax.data.tokenizers.load import Tokenizer
from bertjax.errors import UserError
from bertjax.evaluation.evaluators import span_qa, text_to_text
from bertjax.evaluation.evaluators.heldout import report_truncation
from bertjax.evaluation.inference.generate import Generator
from bertjax.evaluation.restore import RestoredCheckpoint, restore

MASK = "[MASK]"
_SENTINEL = re.compile(r"▁?<extra_id_\d+>")


def fill_mask(
    checkpoint: str | Path | RestoredCheckpoint, texts: list[str], top_k: int = 5, overrides: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """The `top_k` most likely tokens for each [MASK], one item per text.

    -> [{"text", "masks": [[{"token", "probability", "text"}...]...]}...]; probabilities are a softmax over the
    vocabulary; the inner `text` has that mask filled. UserError for a text without [MASK] or too long, or no MLM head.
    """
    restored = restore_with_head(checkpoint, "mlm", overrides)
    return [_fill_text(restored, text, top_k) for text in texts]


def _fill_text(restored: RestoredCheckpoint, text: str, top_k: int) -> dict[str, Any]:
    tokenizer, given = restored.ctx.tokenizer, text
    text = _to_tokenizer_mask(tokenizer, text)
    ids = _encode_with_masks(tokenizer, text)
    places = [i for i, token in enumerate(ids) if token == tokenizer.mask_id]
    if not places:
        raise UserError(f"text {text[:60]!r}: contains no {MASK}; write {MASK} in place of a word")
    length = len(ids)
    if length > restored.ctx.config.model.max_position_embeddings:
        raise UserError(f"text {text[:60]!r}: {length} tokens exceed the positions of the model; shorten it")
    one = lambda values: jnp.asarray([values], jnp.int32)  # noqa: E731
    model = restored.program.build_model(restored.params)
    with jax.set_mesh(restored.ctx.mesh):
        hidden = model.encode(one(ids), one([0] * length), one([1] * length), one(list(range(length))))
        logits = model.mlm_logits(hidden, one(places))
        probabilities = np.asarray(jax.nn.softmax(logits[0].astype(np.float32)))[:, : tokenizer.vocab_size]
    masks = []
    for number, row in enumerate(probabilities):
        best = np.argsort(-row, kind="stable")[:top_k]
        masks.append([fill_result(tokenizer, text, number, t, float(row[t])) for t in best.tolist()])
    return {"text": given, "masks": masks}


def _to_tokenizer_mask(tokenizer: Tokenizer, text: str) -> str:
    if tokenizer.mask_id is None:
        raise UserError("the checkpoint's tokenizer has no mask_token; fill-mask needs a model trained with masks")
    return text.replace(MASK, tokenizer.special.roles["mask"])


def _encode_with_masks(tokenizer: Tokenizer, text: str) -> list[int]:
    """Ids of [CLS] text [SEP], with the mask id for each mask token in the text."""
    if tokenizer.special.in_text:
        (ids,) = tokenizer.encode_batch([text])
    else:
        texts = text.split(tokenizer.special.roles["mask"])
        parts = [tokenizer.encode_batch([part])[0] if part.strip() else [] for part in texts]
        mask = tokenizer.pieces.index(tokenizer.special.roles["mask"])
        ids = parts[0] + [i for part in parts[1:] for i in (mask, *part)]
    return [tokenizer.cls_id, *ids, tokenizer.sep_id]


def fill_result(tokenizer: Tokenizer, text: str, number: int, index: int, probability: float) -> dict[str, Any]:
    """The result for piece `index` at mask `number` of a text."""
    token, mask = tokenizer.pieces[index], tokenizer.special.roles["mask"]
    parts = text.split(mask)
    before, after = mask.join(parts[: number + 1]), mask.join(parts[number + 1 :])
    if token.startswith("##"):
        before, word = before.rstrip(), token[2:]
    else:  # Metaspace and byte-level BPE mark the start of a word
        bare = token.removeprefix("▁").removeprefix("Ġ")
        word = tokenizer.decode([index]).strip() or bare
        before += " " if bare != token and before and not before[-1].isspace() else ""
    return {"token": token, "probability": round(probability, 4), "text": before + word + after}


def answer(
    checkpoint: str | Path | RestoredCheckpoint, question: str, context: str, n_best: int = 3,
    null_threshold: float | None = None, min_probability: float | None = None, overrides: Sequence[str] = (),
) -> dict[str, Any]:  # fmt: skip
    """Answer a question with a span of a context of any length, by the settings of the stage's evaluation.

    -> {"answer": text or None, "probability", "candidates": [{"text", "probability"}...]}, the `n_best` candidates best
    first; probabilities are a softmax over all candidates. A model that can predict "no answer" (unanswerable questions
    in its training data, version_2 or `null_threshold`) adds "no_answer": {"probability", "null_odds", "threshold"}.
    The answer is None, with "reason" instead of "probability", when the odds exceed the threshold (default: that of the
    evaluation) or the best probability is below `min_probability`.

    Raises UserError when the checkpoint has no QA head, or a text is empty or not Unicode.
    """
    restored = restore_with_head(checkpoint, "qa", overrides)
    for what, text in (("question", question), ("context", context)):
        _check_text(what, text)
    settings, windows = span_qa.stage_settings(restored.ctx.config, restored.ctx.config.stages[restored.stage])
    version_2 = bool(restored.unanswerable) if settings.version_2 is None else settings.version_2
    threshold = settings.null_score_diff_threshold if null_threshold is None else null_threshold
    settings = settings.model_copy(update={"n_best": max(n_best, settings.n_best), "batch_size": 1})
    windows = windows.model_copy(update={"profile": "hf"})  # all candidates of this profile are in the context
    asked = [Example(id="0", question=question, context=context, answers=[])]
    version_2 = version_2 or null_threshold is not None
    find = span_qa.make_answer_fn(restored.program, restored.ctx.tokenizer, asked, windows, settings, version_2)
    _, nbest, odds = find(restored.params)
    return _select_answer(nbest["0"], n_best, odds.get("0"), threshold, min_probability)


def _check_text(what: str, text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(
            f"the {what} contains half of a surrogate pair or bytes that are not UTF-8; fix its encoding"
        ) from None
    if not text.strip():
        raise UserError(f"the {what} is empty; give a {what} of at least one word")


def _select_answer(
    entries: list[dict[str, Any]], n_best: int, odds: float | None, threshold: float, min_probability: float | None
) -> dict[str, Any]:
    """The result of `answer` from an n-best list and the null odds, if any."""
    candidates = [{"text": e["text"], "probability": round(e["probability"], 4)} for e in entries if e["text"]]
    if not candidates:
        raise UserError("the tokenizer finds no token in the context; give a context of at least one word")
    best = next(e for e in entries if e["text"])
    reason = None
    if odds is not None and odds > threshold:
        reason = f"the null odds, {odds:.4g}, are above the threshold, {threshold:.4g}"
    elif min_probability is not None and best["probability"] < min_probability:
        reason = f"the best candidate's probability, {best['probability']:.4g}, is below {min_probability:.4g}"
    result: dict[str, Any] = {"answer": None, "reason": reason} if reason else {
        "answer": best["text"], "probability": candidates[0]["probability"]
    }  # fmt: skip
    if odds is not None:
        null = next(e for e in entries if not e["text"])
        result["no_answer"] = {
            "probability": round(null["probability"], 4), "null_odds": round(odds, 4), "threshold": threshold
        }  # fmt: skip
    return result | {"candidates": candidates[:n_best]}


def generate(
    checkpoint: str | Path | RestoredCheckpoint, texts: list[str], choices: dict[str, Any], seed: int = 0,
    batch_size: int = 8, *, max_input_tokens: int | None = None, overrides: Sequence[str] = (),
    base_model: Path | None = None,
) -> list[dict[str, str]]:  # fmt: skip
    """Generate text -> [{"text", "generated"}...] in the order of the texts.

    `choices`: fields of Decoding that override those of the stage's text-to-text evaluation; the maximum output length
    is that of the stage's tasks. Reports truncation, unknown characters and unread sentinels on stderr. `base_model` is
    that of `restore`. Raises UserError when the model is not a T5.
    """
    if isinstance(checkpoint, RestoredCheckpoint):
        restored = checkpoint
    else:
        restored = restore(checkpoint, overrides=overrides, base_model=base_model)
    config, tokenizer = restored.ctx.config, restored.ctx.tokenizer
    if "lm" not in config.model.heads:
        raise UserError(f"{checkpoint}: a {config.model.family} model generates no text; name a run of family t5")
    stage = config.stages[restored.stage]
    evaluations = text_to_text.stage_settings(stage)
    options = [task.preprocess for task in (*config.stage_tasks(stage).values(), *(e.data for e in evaluations))]
    generator = Generator(
        restored.program, tokenizer,
        _override_decoding(evaluations[0].decoding if evaluations else _imported_decoding(restored), choices),
        sequence_length=max_input_tokens,
        target_length=max(getattr(one, "target_length", None) or one.sequence_length for one in options),
        batch_size=batch_size, seed=seed, causal=all(record_of(one).layout == "decoder" for one in options),
    )  # fmt: skip
    rows = tokenizer.encode_batch(texts)
    _report_truncation(generator, texts, rows)
    found = generator.from_ids(restored.params, rows)
    if generator.num_unfinished and "max_new_tokens" not in choices:
        ends = f"{generator.num_unfinished:,} of {len(texts):,} answers reach {generator.max_new_tokens} tokens"
        _print_note(f"{ends} and are truncated; --max-new-tokens sets another length")
    return [{"text": text, "generated": new} for text, new in zip(texts, found, strict=True)]


def _report_truncation(generator: Generator, texts: Sequence[str], rows: Sequence[Sequence[int]]) -> None:
    tokenizer, limit = generator.tokenizer, generator.sequence_length
    capacity = None if limit is None else generator.input_capacity(limit)
    counts = {"inputs": text_counts.count(rows, capacity, tokenizer.unk_id)}
    report_truncation("note", counts, {"inputs": ("--max-input-tokens", limit)})
    sentinels = {i for i, piece in enumerate(tokenizer.pieces) if _SENTINEL.fullmatch(piece)}
    read = [sum(i in sentinels for i in row) for row in rows]
    if wrong := sum(len(_SENTINEL.findall(text)) > count for text, count in zip(texts, read, strict=True)):
        _print_note(
            f"{wrong:,} of {len(texts):,} texts contain an <extra_id_N> that is read as characters: it is inside a "
            f"word (put a space before it), or N is too large ({len(sentinels)} sentinels)"
        )


def _print_note(line: str) -> None:
    print(f"note: {line}", file=sys.stderr, flush=True)


def _imported_decoding(restored: RestoredCheckpoint) -> Decoding:
    """The generation settings of an imported folder, else greedy."""
    if restored.hugging_face is None:
        return Decoding()
    settings = generation.generation_settings(restored.hugging_face)
    if left := generation.unsupported_settings(settings):
        _print_note(f"generation settings of the imported folder that are not supported: {', '.join(left)}")
    return _override_decoding(Decoding(), generation.to_decoding_fields(settings))


def _override_decoding(settings: Decoding, choices: dict[str, Any]) -> Decoding:
    """Override fields; choosing sampling or a beam size resets the fields of the other methods."""
    if "sample" in choices or "beam_size" in choices:
        settings = Decoding(**settings.model_dump(include={"length_penalty", "beam_rules", "max_new_tokens"}))
    try:
        made = Decoding(**settings.model_dump() | choices)
    except ValidationError as error:
        reason = error.errors()[0]
        field = "".join(f"{name}: " for name in reason["loc"])
        raise UserError(f"predict generate: {field}{reason['msg'].removeprefix('Value error, ')}") from None
    if made.beam_size == 1 and (unused := [name for name in ("length_penalty", "beam_rules") if name in choices]):
        option = unused[0].replace("_", "-")
        raise UserError(f"predict generate: --{option} needs beam search; give --beam N above 1")
    return made


def restore_with_head(
    checkpoint: str | Path | RestoredCheckpoint, head: str, overrides: Sequence[str] = ()
) -> RestoredCheckpoint:
    """Restore a checkpoint that has this head, else UserError; `overrides` (key.path=value) change its config."""
    restored = checkpoint if isinstance(checkpoint, RestoredCheckpoint) else restore(checkpoint, overrides=overrides)
    if head not in restored.program.heads:
        raise UserError(
            f"{checkpoint}: has no '{head}' head (it has: {', '.join(restored.program.heads)}); "
            "name a checkpoint of a stage that trained one"
        )
    if head in restored.untrained_heads:
        how = f"stage '{restored.ctx.config.stages[restored.stage].name}' trained the encoder without the '{head}' head"
        _print_note(f"{how}; the stage that trained it gives better predictions")
    return restored
