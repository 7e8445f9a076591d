"""Gradual unfreezing: which groups train when, and that frozen ones cost nothing and do not change."""

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertjax.config.schema.model import BertConfig
from bertjax.config.schema.run import Stage
from bertjax.config.schema.training import AdamW, MlmNspObjective, SpanQaObjective, Trainable
from bertjax.errors import UserError
from bertjax.models import layer_stack, param_paths
from bertjax.models.bert.flops import train_flops
from bertjax.models.layers.numerics import ROWS_OF_ONES
from bertjax.training import freezing
from bertjax.training.program import TrainProgram
from bertjax.training.state import TrainState
from bertjax.training.step import jit_train_step

# ---- the plan -------------------------------------------------------------------------------------------------------


def groups(layers: int) -> tuple[str, ...]:
    return ("embeddings", *(f"layers/{i}" for i in range(layers)), "heads")


def gradual(layers: int, steps: int, **options: object) -> tuple[freezing.Episode, ...]:
    return freezing.episodes(Trainable(kind="gradual", **options), groups(layers), steps)


def test_boundaries_of_the_paper():
    """arXiv 1910.10683 section 3.5.1: 12 episodes of 2^18 / 12 = 21845.33 steps each, rounded down at each boundary."""
    plan = gradual(12, 2**18)
    starts = [0, 21845, 43690, 65536, 87381, 109226, 131072, 152917, 174762, 196608, 218453, 240298]
    assert [e.start for e in plan] == starts and [e.stop for e in plan] == [*starts[1:], 262144]


def test_the_papers_first_episode_is_the_top_layer_and_the_twelfth_is_all():
    plan = gradual(12, 2**18)
    assert plan[0].groups == ("layers/11", "heads")
    assert plan[5].groups == (*(f"layers/{i}" for i in range(6, 12)), "heads")
    assert plan[10].groups == (*(f"layers/{i}" for i in range(1, 12)), "heads")
    assert plan[11].groups == groups(12)


@given(st.data(), st.integers(1, 48), st.sampled_from(["last", "always", "never"]))
def test_plans_cover_the_stage_and_only_ever_open_groups(data, layers, embeddings):
    count = data.draw(st.integers(1, layers))
    steps = data.draw(st.integers(count, 10_000))
    plan = gradual(layers, steps, episodes=count, embeddings=embeddings)
    assert len(plan) == count and plan[0].start == 0 and plan[-1].stop == steps
    for before, after in zip(plan, plan[1:], strict=False):
        assert before.stop == after.start and set(before.groups) < set(after.groups)
    lengths = [e.stop - e.start for e in plan]
    assert min(lengths) >= 1 and max(lengths) - min(lengths) <= 1
    for n, episode in enumerate(plan):
        top = [g for g in episode.groups if g.startswith("layers/")]
        assert top == [f"layers/{i}" for i in range(layers - len(top), layers)]  # no holes, from the top
        assert "heads" in episode.groups
        assert ("embeddings" in episode.groups) == {"last": n == count - 1, "always": True, "never": False}[embeddings]
        assert all(freezing.episode_at(plan, s) == n for s in {episode.start, episode.stop - 1})
    assert len(top) == layers
    assert freezing.episode_at(plan, steps) == count - 1


@pytest.mark.parametrize(("episodes", "expected"), [(1, [6]), (2, [3, 6]), (3, [2, 4, 6]), (4, [2, 3, 5, 6])])
def test_fewer_episodes_open_several_layers(episodes, expected):
    plan = gradual(6, 100, episodes=episodes)
    assert [sum(g.startswith("layers/") for g in e.groups) for e in plan] == expected


def test_lengths_of_episodes():
    """`episode_lengths` are shares of the steps; layers are unfrozen as with that number of equal episodes."""
    plan = gradual(3, 100, episode_lengths=[1, 1, 8])
    assert [(e.start, e.stop) for e in plan] == [(0, 10), (10, 20), (20, 100)]
    assert [e.groups for e in plan] == [e.groups for e in gradual(3, 100)]
    assert gradual(4, 2**18, episode_lengths=[2.5] * 4) == gradual(4, 2**18)
    # 0.1 + 0.2 is above 0.3 in floating point, and 0.7 * 10 / 1.0 below 7
    assert [e.stop for e in gradual(2, 10, episode_lengths=[0.7, 0.3])] == [7, 10]


def test_unfreeze_ratio_is_where_everything_trains():
    """The same option fits models of any depth."""
    for layers in (2, 6, 12):
        plan = gradual(layers, 4400, unfreeze_ratio=0.25)
        assert len(plan) == layers and plan[-1].start == 1100 and plan[-1].stop == 4400
        assert {e.stop - e.start for e in plan[:-1]} <= {1100 // (layers - 1), 1100 // (layers - 1) + 1}
    assert gradual(12, 440, unfreeze_ratio=0.25) == gradual(12, 440, episode_lengths=[1] * 11 + [33])
    assert gradual(12, 440, episodes=3, unfreeze_ratio=0.5) == gradual(12, 440, episode_lengths=[1, 1, 2])
    with pytest.raises(ValueError, match="unfreeze_ratio needs episodes of 2 or more"):
        gradual(6, 100, episodes=1, unfreeze_ratio=0.5)
    with pytest.raises(UserError, match="unfreeze_ratio: the model has 1 layer"):
        gradual(1, 100, unfreeze_ratio=0.5)
    with pytest.raises(ValueError, match="both say how long episodes are"):
        Trainable(kind="gradual", unfreeze_ratio=0.5, episode_lengths=[1, 2])
    with pytest.raises(ValueError, match="less than 1"):
        Trainable(kind="gradual", unfreeze_ratio=1.0)
    assert "unfreeze_ratio" not in Trainable(kind="gradual").model_dump()


@given(
    st.lists(st.floats(0.01, 100).map(lambda x: round(x, 3)), min_size=1, max_size=6), st.integers(1, 10**6)
)  # fmt: skip
def test_lengths_cover_all_steps_or_are_refused(lengths, steps):
    try:
        plan = gradual(6, steps, episode_lengths=lengths)
    except UserError as error:
        assert "trainable" in str(error) and steps < 10**5 * len(lengths)
        return
    assert plan[0].start == 0 and plan[-1].stop == steps
    assert all(a.stop == b.start and a.start < a.stop for a, b in zip(plan, plan[1:], strict=False))
    for n, episode in enumerate(plan):
        assert abs(episode.stop - steps * sum(lengths[: n + 1]) / sum(lengths)) < 1 + 1e-6 * steps


def test_lengths_that_do_not_fit():
    with pytest.raises(UserError, match=r"trainable: episode 0 has no step, by the lengths .* the stage has 5 steps"):
        gradual(2, 5, episode_lengths=[1, 100])
    with pytest.raises(ValueError, match="2 entries for 3 episodes"):
        Trainable(kind="gradual", episodes=3, episode_lengths=[1, 2])
    assert "episode_lengths" not in Trainable(kind="gradual").model_dump()


def test_options_of_other_kinds_are_named():
    unused = lambda **options: freezing.unused_options(Trainable(**options))  # noqa: E731
    assert unused(kind="all", episode_lengths=[1, 2], embeddings="never") == ["episode_lengths", "embeddings"]
    assert unused(kind="lora", adapter_size=4, lora_rank=4) == ["adapter_size"]
    assert unused(kind="adapters", lora_targets=["key"], adapter_size=4) == ["lora_targets"]
    assert unused(kind="head", adapter_only_checkpoints=False) == ["adapter_only_checkpoints"]
    assert not unused(kind="gradual", episodes=2) and not unused(kind="lora", adapter_only_checkpoints=False)
    known = {name for names in freezing._OPTIONS.values() for name in names}
    assert known == set(Trainable.model_fields) - {"kind"}, "a new option needs its kind here"


def test_plans_without_episodes():
    assert freezing.episodes(Trainable(kind="all"), groups(3), 9) == (freezing.Episode(0, 9, groups(3)),)
    assert freezing.episodes(Trainable(kind="head"), groups(3), 9) == (freezing.Episode(0, 9, ("heads",)),)


@pytest.mark.parametrize(
    ("steps", "episodes", "words"),
    [(100, 13, "trainable.episodes: 13 .*12 layers"), (11, None, "12 episodes .*has 11"), (2, 3, "3 episodes .*has 2")],
)
def test_impossible_plans_are_user_errors(steps, episodes, words):
    with pytest.raises(UserError, match=words):
        gradual(12, steps, episodes=episodes)
    stage = Stage(name="qa", data="b", steps=steps, trainable={"kind": "gradual", "episodes": episodes})
    with pytest.raises(UserError, match=f"^stages.qa.*{words}"):
        freezing.stage_episodes(stage, groups(12), steps)


def test_groups_are_listed_from_the_bottom():
    names = [f"layers/{i}/mlp/norm/scale" for i in range(11, -1, -1)] + ["heads/qa/bias", "embeddings/norm/bias"]
    assert freezing.param_groups(names) == groups(12)


@given(st.lists(st.integers(1, 6), max_size=6), st.integers(0, 40))
def test_segments_are_cut_at_a_layer_and_nowhere_else(segments, at):
    found = layer_stack.split_segments(segments, at)
    bounds = lambda lengths: set(np.cumsum((0, *lengths)).tolist())  # noqa: E731
    assert all(n > 0 for n in found) and sum(found) == sum(segments)
    assert bounds(found) == bounds(segments) | ({at} if at <= sum(segments) else set())


# ---- the compiled step ----------------------------------------------------------------------------------------------

LAYERS, ROWS, LENGTH = 3, 4, 64
MODEL = BertConfig(  # wide enough for the matrix products to outweigh the rest
    vocab_size=64, hidden_size=128, num_hidden_layers=LAYERS, num_attention_heads=4, intermediate_size=512,
    max_position_embeddings=LENGTH,
)  # fmt: skip
ADAMW = AdamW(kind="adamw", learning_rate=1e-3, warmup_steps=0)


@dataclass(frozen=True)
class Ran:
    """An episode that ran: its plan, the compiled step's cost, and the state before, after one step and at its end."""

    episode: freezing.Episode
    flops: float
    begun: TrainState
    first: TrainState
    ended: TrainState


def on_host(state: TrainState) -> TrainState:
    return jax.device_get(replace(state, key=jax.random.key_data(state.key)))


@pytest.fixture(scope="module")
def program(make_program) -> TrainProgram:
    return make_program(SpanQaObjective(), model=MODEL, dropout=0.0, optimizer=ADAMW, steps=9)


@pytest.fixture(scope="module")
def batch(make_rows) -> dict[str, np.ndarray]:
    return make_rows("span", ROWS, length=LENGTH)


@pytest.fixture(scope="module")
def ran(program, batch) -> list[Ran]:
    """Three episodes of three steps; the embeddings stay frozen throughout, so that only layers make a difference."""
    names = freezing.param_groups(program.abstract_params())
    plan = freezing.episodes(Trainable(kind="gradual", embeddings="never"), names, 9)
    state, out = None, []
    for episode in plan:
        if state is None:
            state = program.init_state(program.initialize(jax.random.key(0)), episode.groups, jax.random.key(1))
        else:
            state = program.unfreeze(state, episode.groups)
        step = jit_train_step(program, state).lower(state, batch).compile()
        seen = [on_host(state)]
        for _ in range(episode.start, episode.stop):
            state, _ = step(state, jax.device_put(batch, program.batch_sharding()))
            seen.append(on_host(state))
        out.append(Ran(episode, step.cost_analysis()["flops"], seen[0], seen[1], seen[-1]))
    return out


def same_bits(found: object, expected: object) -> list[str]:
    """Paths whose bytes differ."""
    flat = param_paths.flatten(expected)
    return [
        p for p, x in param_paths.flatten(found).items() if np.asarray(x).tobytes() != np.asarray(flat[p]).tobytes()
    ]


def test_frozen_bytes_do_not_change_and_trained_ones_do(ran):
    for r in ran:
        assert {freezing.param_group(p) for p in r.begun.params} == set(r.episode.groups)
        assert same_bits(r.ended.frozen, r.begun.frozen) == []
        assert len(r.begun.params) + len(r.begun.frozen) == len(ran[0].begun.params) + len(ran[0].begun.frozen)
        still = set(r.begun.params) - set(same_bits(r.ended.params, r.begun.params))
        assert still == set(), "trained, but the same after three steps"


def test_frozen_groups_have_no_optimizer_state(ran):
    for r in ran:
        assert set(r.begun.opt_state) == set(r.episode.groups)
        slots = sum(x.size for x in jax.tree.leaves(r.begun.opt_state) if x.ndim)
        assert slots == 2 * sum(x.size for x in r.begun.params.values())


def test_slots_and_parameters_survive_a_thaw_bit_for_bit(ran):
    for before, after in zip(ran, ran[1:], strict=False):
        merged = {**after.begun.params, **after.begun.frozen}
        assert same_bits({**before.ended.params, **before.ended.frozen}, merged) == []
        assert same_bits(before.ended.opt_state, after.begun.opt_state) == []
        assert int(after.begun.step) == after.episode.start


def test_thawed_groups_start_with_fresh_slots_and_counts(ran):
    for before, after in zip(ran, ran[1:], strict=False):
        (thawed,) = set(after.episode.groups) - set(before.episode.groups)
        fresh = after.begun.opt_state[thawed][0]
        assert int(fresh.count) == 0 and not any(np.any(x) for x in jax.tree.leaves((fresh.mu, fresh.nu)))
        first = after.first.opt_state[thawed][0]
        for path, mu in first.mu.items():  # after one step from zero: mu = .1 g and nu = .001 g^2
            np.testing.assert_allclose((mu / 0.1) ** 2, first.nu[path] / 0.001, rtol=1e-3, atol=1e-12, err_msg=path)
    counts = {group: int(slots[0].count) for group, slots in ran[-1].ended.opt_state.items()}
    assert counts == {"heads": 9, "layers/2": 9, "layers/1": 6, "layers/0": 3}


def test_a_thawed_groups_first_update_is_bias_corrected(ran):
    """With a fresh count adamw's first step is about the learning rate; an old count would make it three times that."""
    after = ran[-1]
    rate = ADAMW.learning_rate * (1 - after.episode.start / 9)
    moved = [np.abs(after.first.params[p] - w) for p, w in after.begun.params.items() if p.startswith("layers/0/mlp/")]
    typical = np.median(np.concatenate([m.ravel() for m in moved]))
    assert rate * 0.5 < typical < rate * 1.05


def test_flops_of_the_compiled_step_fall_with_the_frozen_layers(ran):
    """The compiler's own count against the formula that MFU uses: forward for all, backward for what trains."""
    ratios, counted = [], []
    for trained, r in enumerate(ran, 1):
        counted.append(r.flops)
        ratios.append(r.flops / (ROWS * train_flops(MODEL, LENGTH, trainable_layers=trained)))
    assert all(1.0 < ratio < 1.1 for ratio in ratios), ratios
    per_layer = np.diff(counted) / (ROWS * 2 * train_flops(MODEL, LENGTH, trainable_layers=0) / LAYERS)
    assert all(1.0 < share < 1.15 for share in per_layer), per_layer  # and column sums, elementwise work, its optimizer


def products(program: TrainProgram, trained: tuple[str, ...], batch: dict) -> int:
    """Matrix products in the lowered step, without the column sums of bias gradients (dots with rows of ones)."""
    like = program.abstract_state(trained, jax.random.key(0))
    dots = re.findall(r"dot_general.* : \(tensor<(\d+)x", jit_train_step(program, like).lower(like, batch).as_text())
    assert ROWS_OF_ONES not in (ROWS, MODEL.hidden_size, MODEL.intermediate_size)
    return sum(int(rows) != ROWS_OF_ONES for rows in dots)


def top(count: int, *more: str) -> tuple[str, ...]:
    return (*more, *groups(LAYERS)[1 + LAYERS - count : -1], "heads")


@pytest.mark.parametrize("trained", range(LAYERS + 1))
def test_frozen_layers_have_no_backward_products(program, batch, trained):
    """6 products a layer forward (qkv, scores, context, output, two of the MLP) and 12 backward where it trains.

    Besides: the segment embeddings, and the head with its kernel's gradient. The head's input gradient starts the
    backward pass, and the lowest trained layer leaves out that of its own input.
    """
    assert products(program, top(trained), batch) == 6 * LAYERS + 3 + 12 * trained


def test_embeddings_bring_the_backward_pass_down_to_them(program, batch):
    """Gradients of activations flow through frozen layers (6 products each), those of their weights (2 of 6) do not."""
    every = products(program, groups(LAYERS), batch)
    assert every == 6 * LAYERS + 3 + 12 * LAYERS + 2  # the lowest layer's input, and the segment embeddings
    some = products(program, top(1, "embeddings"), batch)
    assert some == every - 4 * (LAYERS - 1)  # qkv, output and the MLP's two kernels; attention has no weights


@pytest.mark.parametrize("limit", [None, 1.0, 1e-3])
def test_clipping_brings_no_backward_work_back(make_program, batch, limit):
    optimizer = ADAMW.model_copy(update={"clip_norm": limit})
    program = make_program(SpanQaObjective(), model=MODEL, dropout=0.0, optimizer=optimizer)
    assert products(program, top(1), batch) == 6 * LAYERS + 3 + 12


@pytest.mark.parametrize("trained", [1, 2])
def test_a_scan_never_mixes_frozen_and_trained_layers(make_program, batch, trained):
    """A scanned stack is cut where training begins: 6 products for the frozen scan, 18 for the trained part."""
    program = make_program(SpanQaObjective(), model=MODEL, dropout=0.0, optimizer=ADAMW, segments=(LAYERS,))
    last_input = 1 if trained > 1 else 0  # a scan's body computes its input's gradient for every layer of it
    assert products(program, top(trained), batch) == 6 + 18 + 3 + last_input


def test_heads_alone_leave_the_encoder_without_backward(make_program, make_rows):
    """Pre-training heads: the tied output matrix belongs to the embeddings and stays frozen with them."""
    program: TrainProgram = make_program(MlmNspObjective(), model=MODEL, dropout=0.0)
    build: Callable = make_rows
    found = products(program, ("heads",), build("pairs", ROWS, length=LENGTH))
    forward = 6 * LAYERS + 1 + 4  # segment embeddings; transform, decoder, pooler, NSP
    assert found == forward + 5  # kernels of transform, pooler and NSP; what reaches transform and pooler
