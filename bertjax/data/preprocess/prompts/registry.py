"""The table of prompts: the function of each name in `preprocess.prompt`, its classes and what is trained on."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from bertjax.config.schema.data import TextToText
from bertjax.data.preprocess.prompts import t5_prompts as t5
from bertjax.data.preprocess.prompts import winograd
from bertjax.data.preprocess.prompts.t5_prompts import GLUE_TASKS, PromptFn, TextExample


@dataclass(frozen=True)
class Prompt:
    make: Callable[..., list[TextExample]]  # of a record
    classes: tuple[str, ...] | None = None  # the targets of a classification, by number
    correct_referents_only: bool = False  # targets may be wrong answers; only those with label 1 are trained on


def _glue_prompt(name: str) -> Prompt:
    benchmark, texts, classes = GLUE_TASKS[name]
    make = {"super_glue_multirc": t5.multirc, "super_glue_axb": t5.axb}.get(name, t5.glue)
    return Prompt(partial(make, name=benchmark, texts=texts, classes=classes), classes)


PROMPTS: dict[str, Prompt] = {
    **{name: _glue_prompt(name) for name in GLUE_TASKS},
    "glue_stsb": Prompt(t5.stsb),
    "glue_wnli": Prompt(winograd.wnli, correct_referents_only=True),
    "super_glue_record": Prompt(t5.record_cloze),
    "super_glue_wsc": Prompt(winograd.wsc, correct_referents_only=True),
    "definite_pronoun_resolution": Prompt(winograd.definite_pronoun_resolution),
    "squad": Prompt(t5.squad),
    "squad_closed_book": Prompt(t5.squad_closed_book),
    "trivia_qa_closed_book": Prompt(t5.trivia_qa_closed_book),
    "translate": Prompt(t5.translate),
    "summarize": Prompt(t5.summarize),
}


def get_prompt(options: TextToText) -> PromptFn:
    """The function of `options.prompt`."""
    make = PROMPTS[options.prompt or ""].make
    return partial(make, languages=options.languages) if options.languages is not None else make
