"""Generate text with a T5, or continue a text with a decoder-only model."""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict

from pydantic import ValidationError

from bertjax.config.huggingface import generation
from bertjax.config.schema.evaluation import Decoding
from bertjax.data.jobs import text_counts
from bertjax.data.preprocess.registry import record_of
from bertjax.errors import UserError
from bertjax.evaluation.evaluators import text_to_text
from bertjax.evaluation.evaluators.heldout import report_truncation
from bertjax.evaluation.inference.generate import Generator
from bertjax.evaluation.inference.token_rows import check_texts
from bertjax.evaluation.predictors.base import Checkpoint, Predictor, check_count, print_note
from bertjax.evaluation.restore import RestoredCheckpoint, restore

_SENTINEL = re.compile(r"▁?<extra_id_\d+>")
BATCH_SIZE = 8  # unless one is given
MAX_GENERATORS = 8  # compiled programs for different options that are kept
Spell = Callable[[str], str]  # how messages write an option


class GeneratedText(TypedDict):
    """A text and what the model generates for it."""

    text: str
    generated: str


def generate(
    checkpoint: Checkpoint, texts: list[str], choices: dict[str, Any], seed: int = 0, batch_size: int | None = None, *,
    max_input_tokens: int | None = None, overrides: Sequence[str] = (), base_model: Path | None = None,
) -> list[GeneratedText]:  # fmt: skip
    """`TextGenerator` for one call of `bertjax predict generate`; `base_model` is that of `restore`."""
    if not isinstance(checkpoint, RestoredCheckpoint):
        checkpoint = restore(checkpoint, overrides=overrides, base_model=base_model)
    predictor = TextGenerator(checkpoint, batch_size, spell=as_flag)
    found = predictor(texts, choices, seed, max_input_tokens)
    return [{"text": text, "generated": new} for text, new in zip(texts, found, strict=True)]


def generates_text(model: Any) -> bool:
    """Whether text can be generated with a model (its section): a language model with T5's decoder and its cache."""
    return "lm" in model.heads and "decoder" in model.stacks


def as_flag(option: str) -> str:
    """An option as `bertjax predict generate` has it."""
    return "--beam" if option == "beam_size" else "--" + option.replace("_", "-")


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
        self.decoding = evaluations[0].decoding if evaluations else _imported_decoding(restored)
        self.target_length = max(getattr(one, "target_length", None) or one.sequence_length for one in options)
        self.is_causal = all(record_of(one).layout == "decoder" for one in options)
        self._generators: dict[tuple[Any, ...], Generator] = {}

    def __call__(
        self, texts: Sequence[str], choices: Mapping[str, Any], seed: int = 0, max_input_tokens: int | None = None
    ) -> list[str]:
        """One generated text for each text.

        choices: fields of Decoding that override those of the stage's evaluation. Reports truncation, unknown
        characters and unread sentinels on stderr.
        """
        given = check_texts("texts", texts)
        if max_input_tokens is not None:
            max_input_tokens = check_count(self.spell("max_input_tokens"), max_input_tokens)
        seed = check_count(self.spell("seed"), seed, least=0)
        choices = {name: getattr(value, "item", lambda value=value: value)() for name, value in choices.items()}
        generator = self._generator(dict(choices), seed, max_input_tokens)
        rows = self.tokenizer.encode_batch(given)
        _report_truncation(generator, given, rows)
        generator.num_unfinished = 0
        found = generator.from_ids(self.params, rows)
        if generator.num_unfinished and "max_new_tokens" not in choices:
            ends = f"{generator.num_unfinished:,} of {len(given):,} answers reach {generator.max_new_tokens} tokens"
            print_note(f"{ends} and are truncated; {self.spell('max_new_tokens')} sets another length")
        return found

    def _generator(self, choices: dict[str, Any], seed: int, max_input_tokens: int | None) -> Generator:
        decoding = override_decoding(self.decoding, choices, self.spell)
        key = (decoding.model_dump_json(), seed, max_input_tokens)
        if key not in self._generators:
            if len(self._generators) == MAX_GENERATORS:
                del self._generators[next(iter(self._generators))]
            self._generators[key] = Generator(
                self.restored.program, self.tokenizer, decoding, sequence_length=max_input_tokens,
                target_length=self.target_length, batch_size=self.batch_size or BATCH_SIZE, seed=seed,
                causal=self.is_causal, length_option=self.spell("max_input_tokens"),
            )  # fmt: skip
        return self._generators[key]


def _report_truncation(generator: Generator, texts: Sequence[str], rows: Sequence[Sequence[int]]) -> None:
    tokenizer, limit = generator.tokenizer, generator.sequence_length
    capacity = None if limit is None else generator.input_capacity(limit)
    counts = {"inputs": text_counts.count(rows, capacity, tokenizer.unk_id)}
    report_truncation("note", counts, {"inputs": (generator.length_option, limit)})
    listed = tokenizer.pieces if tokenizer.kind != "bytes" else []  # whose sentinels are bytes
    sentinels = {i for i, piece in enumerate(listed) if _SENTINEL.fullmatch(piece)}
    read = [sum(i in sentinels for i in row) for row in rows]
    if not sentinels and any(_SENTINEL.search(text) for text in texts):
        print_note("an <extra_id_N> in a text is read as characters: the tokenizer has no pieces for sentinels")
    elif wrong := sum(len(_SENTINEL.findall(text)) > count for text, count in zip(texts, read, strict=True)):
        print_note(
            f"{wrong:,} of {len(texts):,} texts contain an <extra_id_N> that is read as characters: it is inside a "
            f"word (put a space before it), or N is too large ({len(sentinels)} sentinels)"
        )


def _imported_decoding(restored: RestoredCheckpoint) -> Decoding:
    """The generation settings of an imported folder, else greedy."""
    if restored.hugging_face is None:
        return Decoding()
    settings = generation.generation_settings(restored.hugging_face)
    if left := generation.unsupported_settings(settings):
        print_note(f"generation settings of the imported folder that are not supported: {', '.join(left)}")
    return override_decoding(Decoding(), generation.to_decoding_fields(settings))


def override_decoding(settings: Decoding, choices: dict[str, Any], spell: Spell = as_flag) -> Decoding:
    """Override fields; choosing sampling or a beam size resets the fields of the other methods."""
    if choices.get("sample", settings.sample) != settings.sample or choices.get("sample") or "beam_size" in choices:
        settings = Decoding(**settings.model_dump(include={"length_penalty", "beam_rules", "max_new_tokens"}))
    try:
        made = Decoding(**settings.model_dump() | choices)
    except ValidationError as error:
        reason = error.errors()[0]
        field = "".join(f"{name}: " for name in reason["loc"])
        raise UserError(f"generate: {field}{reason['msg'].removeprefix('Value error, ')}") from None
    if made.beam_size == 1 and (unused := [name for name in ("length_penalty", "beam_rules") if name in choices]):
        raise UserError(f"generate: {spell(unused[0])} needs beam search; give {spell('beam_size')} N above 1")
    return made
