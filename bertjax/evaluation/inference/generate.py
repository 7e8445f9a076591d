"""Text generation: inputs are sorted by length into batches, and each width has one compiled program.

generator = Generator(program, tokenizer, Decoding(beam_size=4), sequence_length=512, target_length=114, batch_size=32)
answers = generator(params, ["translate English to German: Hello."])
"""

from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from bertjax.config.schema.evaluation import Decoding
from bertjax.data.tokenizers.sentencepiece import SentencePieceTokenizer
from bertjax.errors import UserError
from bertjax.evaluation.inference.batches import round_up_batch
from bertjax.models.decoding.beam import beam_search
from bertjax.models.decoding.sample import greedy, sample
from bertjax.parallel import batches
from bertjax.progress import reporter
from bertjax.training.monitor import preemption
from bertjax.training.program import MeshJit, TrainProgram
from bertjax.training.state import Params

WIDTH_MULTIPLE = 64  # input widths are multiples: few programs, little padding
# For inputs without a maximum length: the longest input accepted by default, and the token pairs per batch (8 attention
# heads need 1 GB of float32 for them).
MAX_INPUT_TOKENS, MAX_TOKEN_PAIRS = 8192, 8 * 2048**2


class Generator:
    """Generates text with one model, tokenizer and decoding method; every process makes the same calls."""

    def __init__(
        self, program: TrainProgram, tokenizer: SentencePieceTokenizer, decoding: Decoding, *,
        sequence_length: int | None, target_length: int, batch_size: int, seed: int = 0, causal: bool = False,
        length_option: str = "max_input_tokens",
    ) -> None:  # fmt: skip
        """sequence_length: maximum input tokens, EOS included (None: no limit, but UserError above MAX_INPUT_TOKENS).
        target_length: tokens to generate, unless `decoding` has its own number. seed: of sampling.
        causal: the model continues a text: causal attention, and no EOS after the input.
        length_option: what errors call the option that sets `sequence_length`.
        """
        self.program, self.tokenizer, self.decoding, self.causal = program, tokenizer, decoding, causal
        self.sequence_length, self.batch_size, self.seed = sequence_length, batch_size, seed
        self.length_option = length_option
        self.max_new_tokens = decoding.max_new_tokens or target_length
        jitted = jax.jit(self._decode, out_shardings=NamedSharding(program.mesh, P()))
        self.num_unfinished = 0  # answers so far that reached the maximum length without EOS
        self._jitted = MeshJit(jitted, program.mesh, program.rules)
        self.lower = self._jitted.lower  # (params, input_ids, segment_ids, row numbers) of any width

    def __call__(self, params: Params, texts: Sequence[str]) -> list[str]:
        """-> one generated text for each text, in their order."""
        return self.from_ids(params, self.tokenizer.encode_batch(list(texts)))

    def from_ids(self, params: Params, rows: Sequence[Sequence[int]]) -> list[str]:
        """Generate from token ids without EOS."""
        fitted = [self._truncate(row) for row in rows]
        lengths = np.array([len(row) for row in fitted], np.int64)
        if self.sequence_length is None and (lengths > MAX_INPUT_TOKENS).any():
            number = int(np.argmax(lengths > MAX_INPUT_TOKENS))
            raise UserError(
                f"text {number + 1}: has {lengths[number]:,} tokens, and attention memory grows with their square; "
                f"above {MAX_INPUT_TOKENS:,} set {self.length_option}"
            )
        found: dict[int, str] = {}
        order = np.argsort(lengths, kind="stable")
        with reporter.ensure_task("generating"):
            reporter.expect(len(fitted), "texts")
            while len(order):
                preemption.check()
                size, width = self._batch(lengths[order])
                picked, order = order[:size], order[size:]
                ids = self._generate(params, [fitted[i] for i in picked], picked, width, size)
                found |= {int(i): self._text(row) for i, row in zip(picked, ids, strict=False)}
                reporter.advance(len(picked), "texts")
        return [found[i] for i in range(len(fitted))]

    def _batch(self, lengths: np.ndarray) -> tuple[int, int]:
        """(rows, width) of the next batch of texts with these lengths, shortest first."""
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
    ) -> np.ndarray:
        """-> ids int32 [size, L]; rows after the last one repeat it."""
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
        return np.asarray(jax.device_get(self._jitted(params, *put.values())))

    def _decode(self, params: Params, input_ids: jax.Array, segment_ids: jax.Array, rows: jax.Array) -> jax.Array:
        model, how = self.program.build_model(params), self.decoding
        inputs = (model, input_ids, segment_ids, self.max_new_tokens)
        causal, eos_id = self.causal, self.tokenizer.eos_id
        if how.sample:
            return sample(
                *inputs, jax.random.key(self.seed), rows, causal=causal, eos_id=eos_id,
                temperature=how.temperature, top_k=how.top_k, top_p=how.top_p,
            )  # fmt: skip
        if how.beam_size > 1:
            return beam_search(
                *inputs, beam_size=how.beam_size, alpha=how.length_penalty, causal=causal, eos_id=eos_id,
                rules=how.beam_rules,
            )[0]  # fmt: skip
        return greedy(*inputs, causal=causal, eos_id=eos_id)

    def _text(self, ids: np.ndarray) -> str:
        ends = np.flatnonzero(ids == self.tokenizer.eos_id)
        self.num_unfinished += not len(ends)
        return self.tokenizer.decode(ids[: ends[0] if len(ends) else None].tolist())
