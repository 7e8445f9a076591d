"""Fill masks: the most likely tokens for each [MASK] of a text."""

from collections.abc import Mapping, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp

from bertjax.data.tokenizers.load import Tokenizer
from bertjax.errors import UserError
from bertjax.evaluation.inference.length_batches import LengthBatches
from bertjax.evaluation.inference.token_rows import TokenRow, check_texts, frame
from bertjax.evaluation.predictors.base import Checkpoint, Predictor, as_restored, check_count
from bertjax.evaluation.predictors.results import FilledText, MaskCandidate
from bertjax.models import families

MASK = "[MASK]"


def fill_mask(
    checkpoint: Checkpoint, texts: list[str], top_k: int = 5, overrides: Sequence[str] = ()
) -> list[FilledText]:
    """`MaskFiller` for one call on a run, a checkpoint or a restored one; `bertjax.open` keeps it open for many."""
    return MaskFiller(as_restored(checkpoint, overrides))(texts, top_k)


class MaskFiller(Predictor):
    """Fills [MASK], or the mask token of the tokenizer."""

    head = "mlm"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        require_mask_token(self.tokenizer)
        self._forwards: dict[int, LengthBatches] = {}  # by top_k

    def __call__(self, texts: Sequence[str], top_k: int = 5) -> list[FilledText]:
        """The `top_k` most likely tokens for each mask; probabilities are a softmax over the vocabulary.

        UserError for a text without a mask, or longer than the model's positions.
        """
        given = check_texts("texts", texts)
        top_k = min(check_count("top_k", top_k), self.tokenizer.vocab_size)
        rows, marked = [], [to_tokenizer_mask(self.tokenizer, text) for text in given]
        for text, ids in zip(given, encode_with_masks(self.tokenizer, marked), strict=True):
            rows.append(TokenRow(ids, extra={"masks": self._masks(text, ids)}))
        found = self._forward(top_k)(self.params, rows)
        return [
            {"text": text, "masks": self._candidates(one, len((row.extra or {})["masks"]), *out)}
            for text, one, row, out in zip(given, marked, rows, found, strict=True)
        ]

    def _masks(self, text: str, ids: Sequence[int]) -> list[int]:
        places = [i for i, token in enumerate(ids) if token == self.tokenizer.mask_id]
        if not places:
            raise UserError(f"text {text[:60]!r}: contains no {MASK}; write {MASK} in place of a word")
        longest = self.restored.program.model.max_length
        if longest is not None and len(ids) > longest:
            raise UserError(
                f"text {text[:60]!r}: {len(ids)} tokens exceed the {longest} positions of the model; shorten it"
            )
        return places

    def _forward(self, top_k: int) -> LengthBatches:
        if top_k not in self._forwards:
            names = families.record_of(self.restored.program.model).encoder_inputs(self.restored.program.model)
            size = self.tokenizer.vocab_size

            def forward(model: Any, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
                logits = model.mlm_logits(model.encode(*(batch[name] for name in names)), batch["masks"])
                probabilities = jax.nn.softmax(logits.astype(jnp.float32), axis=-1)[..., :size]
                return jax.lax.top_k(probabilities, top_k)

            self._forwards[top_k] = self.length_batches(forward)
        return self._forwards[top_k]

    def _candidates(self, text: str, masks: int, probabilities: Any, tokens: Any) -> list[list[MaskCandidate]]:
        """From probabilities and tokens [masks or more, top_k]."""
        return [
            [
                fill_result(self.tokenizer, text, number, token, probability)
                for token, probability in zip(tokens[number].tolist(), probabilities[number].tolist(), strict=True)
            ]
            for number in range(masks)
        ]


def require_mask_token(tokenizer: Tokenizer) -> None:
    """Raise UserError for a tokenizer without a mask token."""
    if tokenizer.mask_id is None:
        raise UserError("the checkpoint's tokenizer has no mask_token; name a model trained with masks")


def to_tokenizer_mask(tokenizer: Tokenizer, text: str) -> str:
    """The text with the tokenizer's own mask token for each [MASK]."""
    return text.replace(MASK, tokenizer.special.roles["mask"])


def encode_with_masks(tokenizer: Tokenizer, texts: Sequence[str]) -> list[list[int]]:
    """Ids of [CLS] text [SEP] for each text, with the mask id for each mask token in it."""
    if tokenizer.special.in_text:
        found = tokenizer.encode_batch(list(texts))
    else:
        mask, mask_id = tokenizer.special.roles["mask"], cast(int, tokenizer.mask_id)
        parts = [[part if part.strip() else "" for part in text.split(mask)] for text in texts]
        if tokenizer.mask_takes_space:
            parts = [[*(part.rstrip() for part in text[:-1]), text[-1]] for text in parts]
        encoded = iter(tokenizer.encode_batch([part for text in parts for part in text]))
        found = []
        for text in parts:
            first, *others = (next(encoded) for _ in text)
            found.append([*first, *(i for part in others for i in (mask_id, *part))])
    return [frame(tokenizer, ids) for ids in found]


def fill_result(tokenizer: Tokenizer, text: str, number: int, index: int, probability: float) -> MaskCandidate:
    """The result for piece `index` at mask `number` of a text."""
    token, mask = tokenizer.pieces[index], tokenizer.special.roles["mask"]
    parts = text.split(mask)
    before, after = mask.join(parts[: number + 1]), mask.join(parts[number + 1 :])
    if tokenizer.mask_takes_space:
        before = before.rstrip()
    if token.startswith("##"):
        before, word = before.rstrip(), token[2:]
    else:  # Metaspace and byte-level BPE mark the start of a word
        bare = token.removeprefix("▁").removeprefix("Ġ")
        word = tokenizer.decode([index]).strip() or bare
        before += " " if bare != token and before and not before[-1].isspace() else ""
    return {"token": token, "probability": probability, "text": before + word + after}
