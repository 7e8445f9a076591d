"""The jitted functions of a stage's episodes; those of the next episode are compiled while this one trains."""

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from bertjax.data.pipeline.task_rows import Fields
from bertjax.training.feature_cache.cache import jit_encode
from bertjax.training.freezing import Episode
from bertjax.training.program import MeshJit, TrainProgram
from bertjax.training.state import Params, TrainState
from bertjax.training.step import Batch, Metrics, jit_train_step


class _Functions(NamedTuple):
    """Of an episode: `unfreeze` makes its state from that of the episode before; None where that trains the same.

    encode: makes what its cache holds; None without one.
    """

    unfreeze: MeshJit | None
    step: MeshJit
    encode: MeshJit | None


class EpisodeSteps:
    """Give each episode its state and its train step.

    cached: {episode: fields of cached hidden states that its batches have}, beside those of all episodes.
    ahead: compile those of the next episode in a thread. A compilation that fails there is done again where its result
    is needed, and fails there. The interpreter waits for the thread before it ends.
    """

    def __init__(
        self, program: TrainProgram, episodes: Sequence[Episode], teacher: Params | None, *, ahead: bool,
        cached: Mapping[int, Fields] | None = None,
    ):  # fmt: skip
        self.program, self.episodes, self.teacher, self.ahead = program, episodes, teacher, ahead
        self.cached = cached or {}
        self._next: tuple[int, _Functions, threading.Thread | None] | None = None

    def enter(self, number: int, state: TrainState) -> tuple[TrainState, Callable]:
        """The state of an episode or of the one before it -> (the state divided for the episode, its train step).

        After the first call of the train step, the functions of the next episode are compiled.
        """
        functions = self._ready(number, state)
        self._next = None
        if functions.unfreeze is not None:
            state = functions.unfreeze(state)

        def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
            state, metrics = functions.step(state, batch)
            if self.ahead and self._next is None and number + 1 < len(self.episodes):
                self._compile(number + 1, *(jax.tree.map(_abstract, tree) for tree in (state, dict(batch))))
            return state, metrics

        return state, train_step

    def encoder(self, number: int, state: TrainState) -> MeshJit | None:
        """The `jit_encode` of an episode that has a cache, before it is entered with this state."""
        return self._ready(number, state).encode

    def _ready(self, number: int, state: TrainState) -> _Functions:
        """The functions of an episode, compiled or not."""
        if self._next is None or self._next[0] != number:
            self._next = number, self._functions(number, state), None
        _, functions, thread = self._next
        if thread is not None:
            thread.join()
        return functions

    def _compile(self, number: int, state: TrainState, batch: Batch) -> None:
        """Begin to compile the functions of an episode, for states and batches like those of the one before it."""
        functions = self._functions(number, state)
        plain, own = self._batch_likes(number, batch)

        def compile_() -> None:
            try:
                if functions.unfreeze is not None:
                    functions.unfreeze.lower(state).compile()
                if functions.encode is not None:
                    functions.encode.lower({**state.params, **state.frozen}, plain).compile()
                functions.step.lower(self._like(number, state), own).compile()
            except Exception:  # the call compiles again, and fails where it is seen
                return

        thread = threading.Thread(target=compile_, name=f"compiles episode {number}")
        self._next = number, functions, thread
        thread.start()

    def _functions(self, number: int, state: TrainState) -> _Functions:
        groups = self.episodes[number].groups
        unfreeze = None if set(state.opt_state) == set(groups) else self.program.jit_unfreeze(state, groups)
        encode = jit_encode(self.program.split_segments(groups)) if number in self.cached else None
        return _Functions(unfreeze, jit_train_step(self.program, self._like(number, state), self.teacher), encode)

    def _batch_likes(self, number: int, before: Batch) -> tuple[Batch, Mapping[str, Any]]:
        """The shapes of batches without cached fields and of an episode's, from those of the episode before it."""
        sharding, rows = self.program.batch_sharding(), len(next(iter(before.values())))
        plain = {name: x for name, x in before.items() if name not in self.cached.get(number - 1, {})}
        own = self.cached.get(number, {})
        return plain, plain | {
            name: jax.ShapeDtypeStruct((rows, *shape), dtype, sharding=sharding) for name, (shape, dtype) in own.items()
        }

    def _like(self, number: int, state: TrainState) -> TrainState:
        return self.program.abstract_state(self.episodes[number].groups, _abstract(state.key))


def _abstract(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding)
