"""The records of the denoising kinds: span_corruption, iid_denoising, deshuffling, prefix_lm and causal_lm."""

from functools import partial
from typing import Any, Literal

from bertjax.data.preprocess.denoising.batch import corrupt_spans, corrupt_tokens, denoise_rows, deshuffle, split_prefix
from bertjax.data.preprocess.denoising.concat_and_split import chunk_dtype, plan_chunks
from bertjax.data.preprocess.denoising.rules import Corruption, DenoisingRules, iid_lengths, span_corruption_lengths
from bertjax.data.preprocess.registry import PreprocessKind, Transform


def _corrupt(options: Any, tokenizer: Any) -> Transform:
    return partial(denoise_rows, rules=DenoisingRules.from_options(options, tokenizer))


def _kind(
    version: int, corruption: Corruption, layout: Literal["encoder_decoder", "decoder"] = "encoder_decoder"
) -> PreprocessKind:
    return PreprocessKind(
        version=version,
        reads="texts",
        layout=layout,
        plan=plan_chunks,
        dtype=lambda options, classes: chunk_dtype(corruption.lengths(options)[0]),
        uses_seed=True,
        transform=_corrupt,
        corruption=corruption,
    )


def _same_lengths(options: Any) -> tuple[int, int, int]:
    """Inputs and targets each have room for the text and its end."""
    return options.sequence_length - 1, options.sequence_length, 0


def _full_lengths(options: Any) -> tuple[int, int, int]:
    """The ends of documents are in the text."""
    return options.sequence_length, options.sequence_length, 0


SPAN_CORRUPTION = _kind(1, Corruption(span_corruption_lengths, corrupt_spans))
IID_DENOISING = _kind(1, Corruption(iid_lengths, corrupt_tokens))
DESHUFFLING = _kind(1, Corruption(_same_lengths, deshuffle, concat_documents=False))  # objectives/all_permute.gin
PREFIX_LM = _kind(1, Corruption(_same_lengths, split_prefix, concat_documents=False))  # objectives/prefix_lm.gin
CAUSAL_LM = _kind(1, Corruption(_full_lengths, None, ends_documents=True), "decoder")  # full_lm
