"""Generate text with a T5, or continue a text with a decoder-only model."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from bertjax.config.huggingface import generation
from bertjax.config.schema.evaluation import Decoding
from bertjax.data.jobs import text_counts
from bertjax.data.jobs.text_counts import TextCounts
from bertjax.data.preprocess.registry import record_of
from bertjax.errors import UserError
from bertjax.evaluation.evaluators import text_to_text
from bertjax.evaluation.evaluators.heldout import report_truncation
from bertjax.evaluation.inference.generate import Generator, ScoredText
from bertjax.evaluation.inference.token_rows import check_texts
from bertjax.evaluation.predictors.base import Predictor, check_count, print_note
from bertjax.evaluation.restore import RestoredCheckpoint

_SENTINEL = re.compile(r"▁?<extra_id_\d+>")
BATCH_SIZE = 8  # unless one is given
MAX_SEED = 2**63 - 1  # of jax.random.key
MAX_GENERATORS = 8  # compiled programs for different options that are kept
Spell = Callable[[str], str]  # how messages write an option


def generates_text(model: Any) -> bool:
    """Whether text can be generated with a model (its section): a language model with T5's decoder and its cache."""
    return "lm" in model.heads and "decoder" in model.stacks


def as_flag(option: str) -> str:
    """An option as `bertjax predict generate` has it."""
    return "--beam" if option == "beam_size" else "--" + option.replace("_", "-")


@dataclass
class _Counts:
    """What is reported after the last text."""

    inputs: TextCounts = field(default_factory=dict)
    limit: tuple[str, int | None] = ("", None)  # the option of the longest input, and its value
    texts: int = 0
    wrong_sentinels: int = 0  # texts with one that is read as characters
    answers: int = 0
    unfinished: int = 0
    longest: int = 0  # tokens of an answer


class TextGenerator(Predictor):
    """Generates by the settings of the stage's text-to-text evaluation; the maximum length is that of its tasks."""

    def __init__(self, restored: RestoredCheckpoint, batch_size: int | None = None, spell: Spell = str) -> None:
        """`spell`: how messages write an option, by default as an argument of `Model.generate`."""
        config = restored.ctx.config
        if not generates_text(config.model):
            raise UserError(
                f"{restored.where}: a {config.model.family} model generates no text; name a run of family t5"
            )  # fmt: skip
        super().__init__(restored, batch_size)
        self.spell = spell
        stage = config.stages[restored.stage]
        evaluations = text_to_text.stage_settings(stage)
        options = [task.preprocess for task in (*config.stage_tasks(stage).values(), *(e.data for e in evaluations))]
        self.num_return_sequences = 1  # by default
        if evaluations:
            self.decoding = evaluations[0].decoding
        else:
            self.decoding, self.num_return_sequences = _imported_decoding(restored)
        self.target_length = max(getattr(one, "target_length", None) or one.sequence_length for one in options)
        self.is_causal = all(record_of(one).layout == "decoder" for one in options)
        self._generators: dict[tuple[Any, ...], Generator] = {}
        listed = self.tokenizer.pieces if self.tokenizer.kind != "bytes" else []  # whose sentinels are bytes
        self._sentinels = {i for i, piece in enumerate(listed) if _SENTINEL.fullmatch(piece)}
        self._counted = _Counts()

    def __call__(
        self, texts: Sequence[str], choices: Mapping[str, Any], seed: int = 0, max_input_tokens: int | None = None,
        first_row: int = 0,
    ) -> list[str]:  # fmt: skip
        """One generated text for each text.

        choices: fields of Decoding that override those of the stage's evaluation. first_row: number of the first text,
        by which samples are drawn. Truncation, unknown characters and unread sentinels are counted; `print_notes`
        reports them.
        """
        generator, rows = self._prepare(texts, choices, seed, max_input_tokens, None)
        found = generator.from_ids(self.params, rows, first_row)
        self._count_answers(generator, len(found), choices)
        return found

    def scored_answers(
        self, texts: Sequence[str], choices: Mapping[str, Any], num_return_sequences: int | None = None, seed: int = 0,
        max_input_tokens: int | None = None, first_row: int = 0,
    ) -> list[list[ScoredText]]:  # fmt: skip
        """As `__call__`, all answers for each text, of beam search the best first.

        num_return_sequences: default: 1, or as the imported folder says.
        """
        name = self.spell("num_return_sequences")
        if num_return_sequences is not None:
            count = check_count(name, num_return_sequences)
        else:
            count = 1 if _resets(self.decoding, choices) else self.num_return_sequences
        decoding = override_decoding(self.decoding, _plain(choices), self.spell)
        if not decoding.sample and count > decoding.beam_size:
            raise UserError(
                f"{name} {count}: more than the beams ({decoding.beam_size}); give {self.spell('beam_size')} {count} "
                f"or {self.spell('sample')}"
            )
        generator, rows = self._prepare(texts, choices, seed, max_input_tokens, count)
        found = generator.scored_answers(self.params, rows, first_row)
        self._count_answers(generator, sum(map(len, found)), choices)
        return found

    def print_notes(self) -> None:
        """Report on stderr what was counted since the last report."""
        counted, self._counted = self._counted, _Counts()
        if counted.inputs:
            report_truncation("note", counted.inputs, {"inputs": counted.limit})
        if counted.wrong_sentinels and not self._sentinels:
            print_note("an <extra_id_N> in a text is read as characters: the tokenizer has no pieces for sentinels")
        elif counted.wrong_sentinels:
            print_note(
                f"{counted.wrong_sentinels:,} of {counted.texts:,} texts contain an <extra_id_N> that is read as "
                f"characters: it is inside a word (put a space before it), or N is too large "
                f"({len(self._sentinels)} sentinels)"
            )
        if counted.unfinished:
            ends = f"{counted.unfinished:,} of {counted.answers:,} answers reach {counted.longest} tokens"
            print_note(f"{ends} and are truncated; {self.spell('max_new_tokens')} sets another length")

    def _prepare(
        self, texts: Sequence[str], choices: Mapping[str, Any], seed: int, max_input_tokens: int | None,
        num_return_sequences: int | None,
    ) -> tuple[Generator, list[list[int]]]:  # fmt: skip
        """Check the arguments -> the generator and the ids of the texts, which are counted."""
        given = check_texts("texts", texts)
        if max_input_tokens is not None:
            max_input_tokens = check_count(self.spell("max_input_tokens"), max_input_tokens)
        seed = check_count(self.spell("seed"), seed, least=0, most=MAX_SEED)
        generator = self._generator(_plain(choices), seed, max_input_tokens, num_return_sequences)
        rows = self.tokenizer.encode_batch(given)
        self._count_inputs(generator, given, rows)
        generator.num_unfinished = 0
        return generator, rows

    def _generator(
        self, choices: dict[str, Any], seed: int, max_input_tokens: int | None, num_return_sequences: int | None
    ) -> Generator:
        decoding = override_decoding(self.decoding, choices, self.spell)
        key = (decoding.model_dump_json(), seed, max_input_tokens, num_return_sequences)
        if key not in self._generators:
            if len(self._generators) == MAX_GENERATORS:
                del self._generators[next(iter(self._generators))]
            self._generators[key] = Generator(
                self.restored.program, self.tokenizer, decoding, sequence_length=max_input_tokens,
                target_length=self.target_length, batch_size=self.batch_size or BATCH_SIZE, seed=seed,
                causal=self.is_causal, length_option=self.spell("max_input_tokens"),
                num_return_sequences=num_return_sequences,
            )  # fmt: skip
        return self._generators[key]

    def _count_inputs(self, generator: Generator, texts: Sequence[str], rows: Sequence[Sequence[int]]) -> None:
        limit = generator.sequence_length
        capacity = None if limit is None else generator.input_capacity(limit)
        counts = {"inputs": text_counts.count(rows, capacity, self.tokenizer.unk_id)}
        self._counted.inputs = text_counts.merge_counts(self._counted.inputs, counts)
        self._counted.limit = (generator.length_option, limit)
        read = [sum(i in self._sentinels for i in row) for row in rows]
        wrong = (len(_SENTINEL.findall(text)) > count for text, count in zip(texts, read, strict=True))
        self._counted.texts += len(texts)
        self._counted.wrong_sentinels += sum(wrong)

    def _count_answers(self, generator: Generator, answers: int, choices: Mapping[str, Any]) -> None:
        self._counted.answers += answers
        if "max_new_tokens" not in choices:
            self._counted.unfinished += generator.num_unfinished
            self._counted.longest = generator.max_new_tokens


def _plain(choices: Mapping[str, Any]) -> dict[str, Any]:
    """The options with Python's numbers and lists in place of NumPy's."""
    return {name: getattr(value, "tolist", lambda value=value: value)() for name, value in choices.items()}


def _imported_decoding(restored: RestoredCheckpoint) -> tuple[Decoding, int]:
    """The generation settings of an imported folder and its number of answers, else greedy search and 1."""
    if restored.hugging_face is None:
        return Decoding(), 1
    settings = generation.generation_settings(restored.hugging_face)
    if left := generation.unsupported_settings(settings):
        print_note(f"generation settings of the imported folder that are not supported: {', '.join(left)}")
    try:
        decoding = override_decoding(Decoding(), generation.to_decoding_fields(settings), str)
    except UserError as error:
        place = f"{restored.where}: {generation.FILENAME}, or config.json"
        raise UserError(f"{place}: {str(error).removeprefix('generate: ')}; correct it") from None
    return decoding, generation.num_return_sequences(settings)


# Fields that hold for every method, and those of beams.
_KEPT = ("max_new_tokens", "min_new_tokens", "no_repeat_ngram_size", "repetition_penalty", "bad_words_ids")
_OF_BEAMS = ("length_penalty", "beam_rules", "early_stopping")


def _resets(settings: Decoding, choices: Mapping[str, Any]) -> bool:
    """Whether the choices select a method, so that the settings of the others do not hold."""
    return bool(
        choices.get("sample", settings.sample) != settings.sample or choices.get("sample") or "beam_size" in choices
    )


_SPELLED = re.compile(rf"\b({'|'.join((*_KEPT[:-1], *_OF_BEAMS, 'temperature', 'top_k', 'top_p'))})\b(: (?=\w))?")


def _spelled(message: str, spell: Spell) -> str:
    """A message of `Decoding` with options as the user writes them: `beam_rules: x`, or `--beam-rules x`."""
    if spell is str:
        return message
    return _SPELLED.sub(lambda found: spell(found[1]) + (" " if found[2] else ""), message)


def override_decoding(settings: Decoding, choices: dict[str, Any], spell: Spell = as_flag) -> Decoding:
    """Override fields; choosing sampling or a beam size resets the fields of the other methods."""
    if _resets(settings, choices):
        settings = Decoding(**settings.model_dump(include={*_KEPT, *_OF_BEAMS}))
    if choices.get("beam_rules") == "t5x":
        settings = settings.model_copy(update={"early_stopping": False})
    try:
        made = Decoding(**settings.model_dump() | choices)
    except ValidationError as error:
        reasons = error.errors()
        name, *inside = reasons[0]["loc"] or [""]
        place = "".join(f"{part}: " for part in (name, *(i for i in inside if isinstance(i, int))) if part != "")
        same = [reason["msg"].removeprefix("Value error, ") for reason in reasons if (*reason["loc"], "")[0] == name]
        said = " or ".join(same) if any(isinstance(part, str) for part in inside) else same[0]  # the kinds of a union
        raise UserError(f"generate: {place}{_spelled(said, spell)}") from None
    if made.beam_size == 1 and (unused := [name for name in _OF_BEAMS if name in choices]):
        raise UserError(f"generate: {spell(unused[0])} needs beam search; give {spell('beam_size')} N above 1")
    return made
