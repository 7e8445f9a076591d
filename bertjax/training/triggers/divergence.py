"""End a run whose steps stay non-finite, and keep the checkpoints from before the cause."""

from bertjax.errors import DivergedError
from bertjax.training.checkpoint.manager import CheckpointManager


def raise_diverged(checkpoints: CheckpointManager, stage: str, first: int, count: int) -> None:
    """Raise DivergedError for `count` non-finite steps in a row from step `first` on.

    That step only showed that the parameters before it are bad: checkpoints of them and of later steps are moved to
    quarantine/ if there are older ones, so that the same command does not continue from the cause.
    """
    left = checkpoints.set_aside(first - 1, f"step {first} and the {count - 1} after it were not finite")
    raise DivergedError(
        f"stage '{stage}' step {first + count - 1}: the loss or the gradients were not finite {count} steps in a row; "
        f"{left}; lower the learning rate or lengthen the warm-up"
    )
