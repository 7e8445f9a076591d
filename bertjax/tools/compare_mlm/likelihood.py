"""Pseudo-perplexities of two models on the same sentences, and the tokens that their tokenizers make of them."""

import math
from collections import Counter
from typing import Any

import numpy as np

from bertjax.errors import UserError
from bertjax.evaluation.predictors.masked_scores import MaskScorer
from bertjax.progress import reporter
from bertjax.tools.compare_mlm.significance import bootstrap
from bertjax.tools.compare_mlm.texts import TextSample

MAX_TOKENS = 256  # of a sentence: each one costs as many rows of this length
_MOST = 700.0  # exp of more is no float


def compare_likelihoods(
    sample: TextSample, scorers: tuple[MaskScorer, MaskScorer], limit: int, seed: int, name: str
) -> dict[str, Any]:
    """Pseudo-perplexities of the first `limit` sentences that both models can read.

    Sentences of more than MAX_TOKENS tokens, or of more than a model reads, are left out of both and counted.
    Perplexity is exp(-L / N) with L the sum of pseudo-log-likelihoods and N the tokens without special ones, or the
    words, which are separated by white space and therefore the same for both models. `tokens_per_word` and
    `unknown_tokens` are those of all `tokenized_sentences`. Raises UserError where no sentence is left.
    """
    rooms = [room for scorer in scorers if (room := scorer.room()) is not None]
    most = min([MAX_TOKENS, *rooms])
    encoded = [scorer.tokenizer.encode_batch(sample.sentences) for scorer in scorers]
    picked: list[int] = []
    left_out: Counter[str] = Counter()
    for number, sizes in enumerate(zip(*(map(len, side) for side in encoded), strict=True)):
        if len(picked) == limit:
            break
        if max(sizes) > most:
            left_out[f"more than {most} tokens"] += 1
        elif not min(sizes):
            left_out["no token"] += 1
        else:
            picked.append(number)
    if not picked:
        raise UserError(f"{sample.files[0]}: no sentence of at most {most} tokens; give a text with shorter sentences")
    words = sum(len(sample.sentences[number].split()) for number in picked)
    found: dict[str, Any] = {
        "files": sample.files, "documents": sample.documents, "sentences": sample.total, "words": sample.words,
        "scored_sentences": len(picked), "scored_words": words, "left_out": dict(left_out),
        "tokenized_sentences": len(sample.sentences),
    }  # fmt: skip
    all_words = sum(len(sentence.split()) for sentence in sample.sentences)
    likelihoods = []
    for letter, scorer, ids in zip("ab", scorers, encoded, strict=True):
        rows = [ids[number] for number in picked]
        tokens = sum(map(len, rows))
        with reporter.task(f"pseudo-perplexity of {letter.upper()}, {name}", tokens, "texts"):
            likelihoods.append(scorer.pseudo_log_likelihoods(rows))
        total = math.fsum(likelihoods[-1])
        found[letter] = {
            "tokens": tokens, "pseudo_log_likelihood": total, "perplexity_per_token": _perplexity(total, tokens),
            "perplexity_per_word": _perplexity(total, words), "tokens_per_word": sum(map(len, ids)) / all_words,
            "unknown_tokens": sum(row.count(scorer.tokenizer.unk_id) for row in ids),
        }  # fmt: skip
    a, b = map(np.asarray, likelihoods)
    found["counts"] = {"won": int((b > a).sum()), "lost": int((b < a).sum()), "tied": int((b == a).sum())}
    found["bootstrap"] = bootstrap({"pseudo_log_likelihood": b - a}, seed)
    return found


def _perplexity(log_likelihood: float, count: int) -> float:
    return math.exp(min(-log_likelihood / count, _MOST))
