"""What `bertjax predict generate` does with texts, from a restored checkpoint or the name of a model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bertjax.evaluation.predictors.generation import TextGenerator, as_flag
from bertjax.evaluation.restore import RestoredCheckpoint, restore


def generated(
    checkpoint: RestoredCheckpoint | str | Path, texts: Sequence[str], max_input_tokens: int | None = None,
    batch_size: int | None = None, **choices: Any,
) -> list[str]:  # fmt: skip
    """The first answer to each text; what is to be noted is printed."""
    restored = checkpoint if isinstance(checkpoint, RestoredCheckpoint) else restore(checkpoint)
    generator = TextGenerator(restored, batch_size, spell=as_flag)
    found = generator(texts, choices, 0, max_input_tokens)
    generator.print_notes()
    return found
