"""Vectors of words in sentences: the mean over their occurrences of the mean over their pieces, of one layer."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from bertjax.errors import UserError
from bertjax.evaluation.predictors.vectors import LayerReader
from bertjax.evaluation.restore import RestoredCheckpoint
from bertjax.models import families
from bertjax.tools.explore.vocabulary import normalize, words_in

TEMPLATE = "This is about {}."  # the sentence of a word where no text is given
MAX_TOKENS = 128  # of a sentence
_CHUNK = 64  # sentences whose layers are in memory at once


@dataclass(frozen=True)
class WordVectors:
    """float32 [N, D], a row for each of `words`, the mean over `counts` occurrences of the layer numbered `layer`."""

    words: list[str]
    vectors: np.ndarray
    counts: list[int]
    layer: int


def has_layers(restored: RestoredCheckpoint) -> bool:
    """Whether the model has an encoder whose layers can be read."""
    model = restored.program.model
    module = restored.program.build_model(restored.params)
    return bool(families.record_of(model).encoder_inputs(model)) and hasattr(module, "hidden_states")


def template_vectors(reader: LayerReader, words: Sequence[str], layer: int | None) -> WordVectors:
    """Vectors of words, each in the sentence of TEMPLATE. Words that are not letters alone are left out."""
    texts = {normalize(word, reader.tokenizer): TEMPLATE.format(word) for word in words}
    return _pool(reader, list(texts.values()), list(texts), layer)


def text_vectors(reader: LayerReader, sentences: Sequence[str], layer: int | None) -> WordVectors:
    """Vectors of all words of letters in sentences, the most frequent first."""
    return _pool(reader, sentences, None, layer)


def _pool(reader: LayerReader, texts: Sequence[str], words: Sequence[str] | None, layer: int | None) -> WordVectors:
    """`words`: the one that is read in each text; None: all of them."""
    sums: dict[str, np.ndarray] = {}
    counts: Counter[str] = Counter()
    number, longest = 0, reader.restored.program.model.max_length
    for start in range(0, len(texts), _CHUNK):
        found = reader(texts[start : start + _CHUNK], min(longest or MAX_TOKENS, MAX_TOKENS))
        last = len(found.layers) - 1
        number = last if layer is None else layer
        if number > last:
            others = f"layers 1 to {last}, and 0 for its embeddings" if last else "no layers, and 0 for its embeddings"
            raise UserError(f"--layer: the model has {others} (got {layer})")
        for place, (ids, mask, states) in enumerate(
            zip(found.input_ids, found.attention_mask, found.layers[number], strict=True), start
        ):
            for word in words_in(ids[mask > 0].tolist(), reader.tokenizer):
                if words is None or word.text == words[place]:
                    sums[word.text] = sums.get(word.text, 0) + states[word.start : word.stop].mean(axis=0)
                    counts[word.text] += 1
    reader.print_notes()
    order = [word for word, _ in counts.most_common()]
    rows = [sums[word] / counts[word] for word in order]
    return WordVectors(order, np.stack(rows) if rows else np.zeros((0, 1)), [counts[word] for word in order], number)
