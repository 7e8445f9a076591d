"""Data pipeline: MLM masking against transformers' collator, and packing. Prints one JSON object.

    python benchmarks/data.py
    python benchmarks/data.py --squad train-v1.1.json.gz --vocab vocab.txt    # packing of real windows

Masking: both sides mask the same rows in this one process, by turns; medians over the rounds. The collator gets Python
lists, as `datasets` yields them; it masks a Bernoulli share, ours an exact count gathered to [B, K] (more work).
Packing: without --squad the lengths are drawn (lognormal, like SQuAD windows).
"""

import argparse
import gzip
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np

from bertjax.config.schema.data import BertPairs
from bertjax.data.preprocess.masking import MaskingRules, mask_rows
from bertjax.data.preprocess.packing import pack_lengths

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
VOCAB = 30522


def seconds(turns: dict[str, Callable[[], Any]], rounds: int, least: float = 0.05) -> dict[str, float]:
    """The median time of each callable. They take turns of at least `least` seconds; the first round is not counted."""
    times: dict[str, list[float]] = {name: [] for name in turns}
    for number in range(rounds + 1):
        for name, run in turns.items():
            calls, start = 0, time.perf_counter()
            while (took := time.perf_counter() - start) < least or not calls:
                run()
                calls += 1
            if number:
                times[name].append(took / calls)
    return {name: statistics.median(values) for name, values in times.items()}


def collators() -> dict[str, Callable]:
    from transformers import BertTokenizerFast, DataCollatorForLanguageModeling

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "vocab.txt"
        path.write_text("\n".join(SPECIAL + [f"w{n}" for n in range(VOCAB - len(SPECIAL))]) + "\n")
        tokenizer = BertTokenizerFast(str(path))
    kinds = ["np"]
    try:
        import torch  # noqa: F401

        kinds.append("pt")
    except ImportError:
        pass
    return {f"collator_{kind}": DataCollatorForLanguageModeling(tokenizer, return_tensors=kind) for kind in kinds}


def masking(length: int, predictions: int, batch: int, rounds: int) -> dict[str, Any]:
    ids = np.random.default_rng(0).integers(len(SPECIAL), VOCAB, (batch, length)).astype(np.int32)
    ids[:, 0], ids[:, length // 2], ids[:, -1] = 2, 3, 3
    rows = {"input_ids": ids, "segment_ids": np.ones_like(ids)}
    special = np.isin(ids, [2, 3]).astype(int)
    lists = [
        {"input_ids": row.tolist(), "special_tokens_mask": mask.tolist()}
        for row, mask in zip(ids, special, strict=True)
    ]
    vocabulary = SimpleNamespace(
        vocab_size=VOCAB, cls_id=2, sep_id=3, mask_id=4, is_continuation=np.arange(VOCAB) % 5 == 0
    )
    turns: dict[str, Callable[[], Any]] = {}
    for name, words in (("bertjax", False), ("bertjax_whole_word", True)):
        pairs = BertPairs(sequence_length=length, max_predictions_per_seq=predictions, whole_word_mask=words)
        rules = MaskingRules.from_options(pairs, vocabulary)
        turns[name] = lambda rules=rules: mask_rows(rows, rules, seed=0, epoch=0, indices=np.arange(batch))
    for name, collator in collators().items():
        turns[name] = lambda collator=collator: collator([dict(row) for row in lists])
    rates = {name: batch / took for name, took in seconds(turns, rounds).items()}
    ratios = {name: round(rates["bertjax"] / rate, 1) for name, rate in rates.items() if name.startswith("collator")}
    return {
        "sequence_length": length,
        "batch": batch,
        "rows_per_second": {name: round(rate) for name, rate in rates.items()},
        "times_faster_than": ratios,
    }


def squad_lengths(
    squad: Path, vocab: Path, length: int, doc_stride: int = 128, max_query_length: int = 64
) -> np.ndarray:
    """Tokens in each training window, counted as run_squad.py cuts them."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

    words = vocab.read_text(encoding="utf-8").splitlines()
    tokenizer = Tokenizer(models.WordPiece({word: n for n, word in enumerate(words)}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    with (gzip.open if squad.suffix == ".gz" else open)(squad, "rb") as file:
        paragraphs = [paragraph for article in json.load(file)["data"] for paragraph in article["paragraphs"]]
    contexts = [len(e.ids) for e in tokenizer.encode_batch([paragraph["context"] for paragraph in paragraphs])]
    lengths = []
    for left, paragraph in zip(contexts, paragraphs, strict=True):
        for encoded in tokenizer.encode_batch([qa["question"] for qa in paragraph["qas"]]):
            question = min(len(encoded.ids), max_query_length) + 3
            window = length - question
            starts = range(0, max(0, left - window) + doc_stride, doc_stride) if left > window else range(1)
            lengths += [question + min(window, left - start) for start in starts]
    return np.array(lengths)


def packing(lengths: np.ndarray, name: str, length: int, max_segments: int, rounds: int) -> dict[str, Any]:
    took = seconds({"pack": lambda: pack_lengths(lengths, length, max_segments)}, rounds)["pack"]
    assignment = pack_lengths(lengths, length, max_segments)
    return {
        "lengths": name,
        "examples": len(lengths),
        "sequence_length": length,
        "max_segments": max_segments,
        "seconds": round(took, 4),
        "rows": assignment.rows,
        "density_padded": round(float(lengths.mean()) / length, 4),
        "density_packed": round(float(lengths.sum()) / (assignment.rows * length), 4),
        "rows_ratio": round(len(lengths) / assignment.rows, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--squad", type=Path, help="a SQuAD training file, plain or .gz (with --vocab)")
    parser.add_argument("--vocab", type=Path, help="a WordPiece vocab.txt")
    parser.add_argument("--rounds", type=int, default=7)
    options = parser.parse_args()
    if bool(options.squad) != bool(options.vocab):
        parser.error("--squad and --vocab go together")
    drawn = np.random.default_rng(0).lognormal(np.log(155), 0.4, 100_000).astype(int)
    packed = []
    for length in (384, 512):
        if options.squad:
            lengths, name = squad_lengths(options.squad, options.vocab, length), options.squad.name
        else:
            lengths, name = np.clip(drawn, 20, length), "lognormal"
        packed.append(packing(lengths, name, length, 8, options.rounds))
    masked = [masking(length, k, 256, options.rounds) for length, k in ((128, 20), (512, 77))]
    print(
        json.dumps({"cores": os.cpu_count(), "numpy": np.__version__, "masking": masked, "packing": packed}, indent=1)
    )


if __name__ == "__main__":
    main()
