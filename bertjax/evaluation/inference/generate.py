"""Text generation: inputs are sorted by length into batches, and each width has one compiled program.

generator = Generator(program, tokenizer, Decoding(beam_size=4), sequence_length=512, target_length=114, batch_size=32)
answers = generator(params, ["translate English to German: Hello."])
"""

from collections.abc import Iterator, Sequence
from typing import Any, TypedDict

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from bertjax.config.schema.evaluation import Decoding
from bertjax.data.tokenizers.sentencepiece import SentencePieceTokenizer
from bertjax.errors import UserError
from bertjax.evaluation.inference.batches import round_up_batch
from bertjax.models.decoding.beam import beam_answers, beam_search
from bertjax.models.decoding.processors import Processors
from bertjax.models.decoding.sample import greedy, greedy_answers, sample, sample_answers
from bertjax.parallel import batches
from bertjax.progress import reporter
from bertjax.training.monitor import preemption
from bertjax.training.program import MeshJit, TrainProgram
from bertjax.training.state import Params

WIDTH_MULTIPLE = 64  # input widths are multiples: few programs, little padding
# For inputs without a maximum length: the longest input accepted by default, and the token pairs per batch (8 attention
# heads need 1 GB of float32 for them).
MAX_INPUT_TOKENS, MAX_TOKEN_PAIRS = 8192, 8 * 2048**2
MAX_KEPT_TOKENS = 2**20  # of all answers to one text: each token has keys and values in every layer


class ScoredText(TypedDict):
    """One answer. `score`: what beam search ranks by, the log probability divided by its length penalty; in greedy
    search and sampling the log probability by the distributions from which the tokens were taken.
    """

    generated: str
    score: float


class Generator:
    """Generates text with one model, tokenizer and decoding method; every process makes the same calls."""

    def __init__(
        self, program: TrainProgram, tokenizer: SentencePieceTokenizer, decoding: Decoding, *,
        sequence_length: int | None, target_length: int, batch_size: int, seed: int = 0, causal: bool = False,
        length_option: str = "max_input_tokens", num_return_sequences: int | None = None,
    ) -> None:  # fmt: skip
        """sequence_length: maximum input tokens, EOS included (None: no limit, but UserError above MAX_INPUT_TOKENS).
        target_length: tokens to generate, unless `decoding` has its own number. seed: of sampling.
        causal: the model continues a text: causal attention, and no EOS after the input.
        length_option: what errors call the option that sets `sequence_length`.
        num_return_sequences: answers for each text, for `scored_answers`, at most the number of beams and 1 in greedy
        search; None: one answer, without score.

        Raises UserError for options that contradict each other, or name tokens that the model does not have.
        """
        self.program, self.tokenizer, self.decoding, self.causal = program, tokenizer, decoding, causal
        self.sequence_length, self.batch_size, self.seed = sequence_length, batch_size, seed
        self.length_option = length_option
        self.max_new_tokens = decoding.max_new_tokens or target_length
        self.num_return_sequences = num_return_sequences
        self._check()
        bad_words = tuple(tuple(words) for words in decoding.bad_words_ids)
        self._processors = Processors(
            decoding.repetition_penalty, decoding.no_repeat_ngram_size, bad_words, decoding.min_new_tokens
        )
        jitted = jax.jit(self._decode, out_shardings=NamedSharding(program.mesh, P()))
        self._shapes: set[tuple[int, int]] = set()  # (rows, width) of the compiled programs
        self.num_unfinished = 0  # answers so far that reached the maximum length without EOS
        self._jitted = MeshJit(jitted, program.mesh, program.rules)
        self.lower = self._jitted.lower  # (params, input_ids, segment_ids, row numbers) of any width

    def _check(self) -> None:
        how = self.decoding
        if how.min_new_tokens > self.max_new_tokens:
            raise UserError(
                f"generate: min_new_tokens {how.min_new_tokens} is above the {self.max_new_tokens} tokens of an "
                "answer; lower it or raise max_new_tokens"
            )
        answers = max(how.beam_size, self.num_return_sequences or 1)
        if answers * self.max_new_tokens > MAX_KEPT_TOKENS:
            raise UserError(
                f"generate: {answers:,} beams or answers of {self.max_new_tokens:,} tokens are above the limit of "
                f"{MAX_KEPT_TOKENS:,} tokens for a text; lower one of the numbers"
            )
        size = self.program.model.vocab_size
        if wrong := [i for words in how.bad_words_ids for i in words if i >= size]:
            raise UserError(f"generate: bad_words_ids has {wrong[0]}; the ids of the model end at {size - 1}")

    def __call__(self, params: Params, texts: Sequence[str]) -> list[str]:
        """-> one generated text for each text, in their order."""
        return self.from_ids(params, self.tokenizer.encode_batch(list(texts)))

    def from_ids(self, params: Params, rows: Sequence[Sequence[int]], first_row: int = 0) -> list[str]:
        """Generate from token ids without EOS. `first_row`: number of the first of them in the data set."""
        found = {i: self._text(ids) for i, (ids,) in self._batches(params, rows, first_row)}
        return [found[i] for i in range(len(rows))]

    def scored_answers(
        self, params: Params, rows: Sequence[Sequence[int]], first_row: int = 0
    ) -> list[list[ScoredText]]:
        """`num_return_sequences` answers from the ids of each text; of beam search the best first."""
        found = {
            i: [ScoredText(generated=self._text(one), score=float(score)) for one, score in zip(*pair, strict=True)]
            for i, pair in self._batches(params, rows, first_row)
        }
        return [found[i] for i in range(len(rows))]

    def _batches(
        self, params: Params, rows: Sequence[Sequence[int]], first_row: int
    ) -> Iterator[tuple[int, tuple[np.ndarray, ...]]]:
        """(number of a text, what the program gives for it), shortest text first."""
        fitted = [self._truncate(row) for row in rows]
        lengths = np.array([len(row) for row in fitted], np.int64)
        if self.sequence_length is None and (lengths > MAX_INPUT_TOKENS).any():
            number = int(np.argmax(lengths > MAX_INPUT_TOKENS))
            raise UserError(
                f"text {first_row + number + 1}: has {lengths[number]:,} tokens, and attention memory grows with their "
                f"square; above {MAX_INPUT_TOKENS:,} set {self.length_option}"
            )
        order = np.argsort(lengths, kind="stable")
        with reporter.ensure_task("generating"):
            reporter.expect(len(fitted), "texts")
            while len(order):
                preemption.check()
                size, width = self._batch(lengths[order])
                picked, order = order[:size], order[size:]
                made = self._generate(params, [fitted[i] for i in picked], picked + first_row, width, size)
                yield from ((int(i), one) for i, one in zip(picked, zip(*made, strict=True), strict=False))
                reporter.advance(len(picked), "texts")

    def _batch(self, lengths: np.ndarray) -> tuple[int, int]:
        """(rows, width) of the next batch of texts with these lengths, shortest first.

        The last batch takes a program of up to twice its rows rather than compile one of its own, which takes longer.
        """
        size, width = self._least_batch(lengths)
        if size >= len(lengths):
            size = min((n for n, w in self._shapes if w == width and size <= n <= 2 * size), default=size)
        return size, width

    def _least_batch(self, lengths: np.ndarray) -> tuple[int, int]:
        size = round_up_batch(min(self.batch_size, len(lengths)), self.program)
        longest = max(int(lengths[:size].max()), 1)
        if self.sequence_length is not None:
            return size, min(self.sequence_length, -(-longest // WIDTH_MULTIPLE) * WIDTH_MULTIPLE)
        if size * longest**2 > MAX_TOKEN_PAIRS:
            size = round_up_batch(max(1, MAX_TOKEN_PAIRS // longest**2), self.program)
            longest = max(int(lengths[:size].max()), 1)
        step = max(WIDTH_MULTIPLE, 1 << (longest - 1).bit_length() >> 3)  # four to eight widths per doubling
        return size, -(-longest // step) * step

    def _truncate(self, row: Sequence[int]) -> list[int]:
        """Truncates at the end and adds EOS, as in training; for a causal model keeps the end of the text."""
        room = self.input_capacity(len(row))
        return list(row)[len(row) - room :] if self.causal else [*row[:room], self.tokenizer.eos_id]

    def input_capacity(self, tokens: int) -> int:
        """The number of tokens read of a text."""
        return tokens if self.sequence_length is None else min(tokens, self.sequence_length - (not self.causal))

    def _generate(
        self, params: Params, rows: list[list[int]], numbers: np.ndarray, width: int, size: int
    ) -> tuple[np.ndarray, ...]:
        """-> ids int32 [size, L], or ids [size, N, L] and scores [size, N]; rows after the last one repeat it."""
        self._shapes.add((size, width))
        ids = np.zeros((size, width), np.int32)
        lengths = np.array([len(row) for row in rows])
        for i, row in enumerate(rows):
            ids[i, : len(row)] = row
        last = np.minimum(np.arange(size), len(rows) - 1)
        real = (np.arange(width)[None] < lengths[last, None]).astype(np.int32)
        batch = {"input_ids": ids[last], "segment_ids": real, "rows": numbers[last].astype(np.int32)}
        sharding = self.program.batch_sharding()
        ours = batches.local_rows(sharding, size)
        put = batches.place({name: x[ours] for name, x in batch.items()}, sharding, size)
        try:
            return tuple(np.asarray(x) for x in jax.device_get(self._jitted(params, *put.values())))
        except jax.errors.JaxRuntimeError as error:
            if not str(error).startswith("RESOURCE_EXHAUSTED"):
                raise
            raise UserError(
                f"generate: {size} texts of {width} tokens with answers of {self.max_new_tokens} need more memory than "
                "the device has; lower the batch size, the number of beams or answers, or max_new_tokens"
            ) from None

    def _decode(
        self, params: Params, input_ids: jax.Array, segment_ids: jax.Array, rows: jax.Array
    ) -> tuple[jax.Array, ...]:
        model, how = self.program.build_model(params), self.decoding
        inputs = (model, input_ids, segment_ids, self.max_new_tokens)
        count = self.num_return_sequences
        shared: dict[str, Any] = {
            "causal": self.causal,
            "eos_id": self.tokenizer.eos_id,
            "processors": self._processors,
        }
        if how.sample:
            options = shared | {"temperature": how.temperature, "top_k": how.top_k, "top_p": how.top_p}
            drawn = (*inputs, jax.random.key(self.seed), rows)
            return sample_answers(*drawn, count, **options) if count else (sample(*drawn, **options),)
        if how.beam_size > 1:
            options = shared | {
                "beam_size": how.beam_size, "alpha": how.length_penalty, "rules": how.beam_rules,
                "early_stopping": how.early_stopping,
            }  # fmt: skip
            return beam_answers(*inputs, count, **options) if count else (beam_search(*inputs, **options)[0],)
        return greedy_answers(*inputs, **shared) if count else (greedy(*inputs, **shared),)

    def _text(self, ids: np.ndarray) -> str:
        ends = np.flatnonzero(ids == self.tokenizer.eos_id)
        self.num_unfinished += not len(ends)
        return self.tokenizer.decode(ids[: ends[0] if len(ends) else None].tolist())
