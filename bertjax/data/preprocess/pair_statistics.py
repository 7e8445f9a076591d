"""Statistics of sentence pairs: share of the text in them, share of random labels, masks that fit; and warnings."""

from collections.abc import Iterator, Mapping
from math import ceil
from typing import Any

import numpy as np

from bertjax.config.schema.data import BertPairs
from bertjax.data.jobs.tokenize import LONG_DOCUMENT_SENTENCES

MIN_TOKENS_USED, MAX_RANDOM_NEXT, MIN_MASKED = 0.8, 0.6, 0.95  # beyond these a warning says what to do


def pair_sums(rows: np.ndarray) -> dict[str, int]:
    """Sums over unpacked rows: pairs, pairs with a random B, tokens of the document that the pair was made from."""
    is_b = rows["token_type_ids"] == 1
    real = np.count_nonzero(rows["segment_ids"], axis=1)
    in_b = np.count_nonzero(is_b, axis=1)
    paired, random = rows["nsp_weights"][:, 0] > 0, rows["nsp_labels"][:, 0] == 1
    own = real - in_b - 2 + np.where(paired & ~random, in_b - 1, 0)
    return {"pairs": len(rows), "random": int(np.count_nonzero(paired & random)), "own_tokens": int(own.sum())}


def pair_metadata(
    options: BertPairs, text: dict[str, Any], lengths: np.ndarray, sums: Mapping[str, int]
) -> dict[str, Any]:
    """`Store.meta["pairs"]`; `lengths` int32 [pairs]: tokens of each, special ones included; `sums`: of `pair_sums`."""
    wanted = np.maximum(1, np.rint(lengths * options.masked_lm_prob))
    masked = np.minimum(wanted, options.max_predictions_per_seq)
    pairs = {
        "sentences_per_document": text["sentences"] / text["documents"],
        "tokens_used": sums["own_tokens"] / (text["tokens"] * options.dupe_factor),
        "random_share": sums["random"] / sums["pairs"] if options.next_sentence else None,
        "masks_per_pair": float(masked.mean()),
        "masks_wanted": float(wanted.mean()),
        "pairs_capped": float((wanted > masked).mean()),
    }
    return {"pairs": pairs}


def report_lines(name: str, options: BertPairs, meta: dict[str, Any]) -> Iterator[str]:
    """A summary of a prepared task, then a warning for each number out of its range."""
    found = meta["pairs"]
    random = found["random_share"]
    said = [
        f"{_count(meta['documents'], 'document')}, {found['sentences_per_document']:,.1f} sentences each",
        f"{found['tokens_used']:.1%} of the tokens used",
        "" if random is None else f"{random:.1%} of the pairs random",
        f"{found['masks_per_pair']:.1f} masks a pair ({found['pairs_capped']:.1%} capped at "
        f"max_predictions_per_seq={options.max_predictions_per_seq})",
    ]
    yield f"{name}: {', '.join(filter(None, said))}"
    for warning in _warnings(options, meta):
        yield f"warning: {name}: {warning}"


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' * (number != 1)}"


def _warnings(options: BertPairs, meta: dict[str, Any]) -> Iterator[str]:
    found, length = meta["pairs"], options.sequence_length
    used, random = found["tokens_used"], found["random_share"]
    if long := meta["undivided"]:
        yield (
            f"{_count(long['documents'], 'file')} became one document each of more than {LONG_DOCUMENT_SENTENCES:,} "
            f"sentences, the longest of {long['longest']:,}, though blank lines divide {long['file']} into "
            f"{long['blocks']:,} blocks; if these are documents, set layout: paragraphs, or layout: sentences where "
            "each line is a sentence"
        )
    if options.next_sentence and meta["documents"] == 1:
        yield (
            "the text is one document, so a random B comes from the same one and next-sentence labels mean little; "
            "separate the documents (layout: paragraphs or sentences for text files, else one a record), or set "
            "next_sentence: false"
        )
    if random is not None and random > MAX_RANDOM_NEXT:
        yield (
            f"{random:.1%} of the pairs have a random B, not about half: documents of "
            f"{found['sentences_per_document']:.1f} sentences of {meta['tokens'] / meta['sentences']:.0f} tokens "
            f"seldom fill both sides of {length} tokens; join short texts into documents, raise sequence_length or set "
            "next_sentence: false"
        )
    if used < MIN_TOKENS_USED:
        yield (
            f"{used:.1%} of the tokens are used: sentences of {meta['tokens'] / meta['sentences']:.0f} tokens are cut "
            f"at {length}; raise sequence_length, or set next_sentence: false, which loses nothing"
        )
    if found["masks_per_pair"] < MIN_MASKED * found["masks_wanted"]:
        yield (
            f"max_predictions_per_seq={options.max_predictions_per_seq} leaves {found['masks_per_pair']:.1f} of "
            f"{found['masks_wanted']:.1f} masks a pair; set max_predictions_per_seq="
            f"{ceil(length * options.masked_lm_prob)}"
        )
