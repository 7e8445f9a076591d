"""What trains of a T5: its groups, episodes of both stacks in parallel, and what a frozen bottom half saves."""

import re

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from t5_models import ADAMW, TINY_T5, make_t5, rows

from bertjax.config.schema.training import Trainable
from bertjax.models.layers.numerics import ROWS_OF_ONES
from bertjax.training import freezing
from bertjax.training.program import TrainProgram
from bertjax.training.step import jit_train_step

LAYERS = TINY_T5.num_layers


def groups(encoder: int, decoder: int, *more: str, adapters: bool = False) -> tuple[str, ...]:
    """In the order of the network, as the contract of the paths names them."""
    kinds = ("", "/adapter", "/norms") if adapters else ("", "/norms")
    stacks = [("encoder", encoder)] * bool(encoder) + [("decoder", decoder)]
    inner = [
        name
        for s, depth in stacks
        for name in (f"{s}/shared", f"{s}/shared/norms", *(f"{s}/layers/{i}{k}" for i in range(depth) for k in kinds))
    ]
    return ("embeddings", *inner, *more)


def gradual(names: tuple[str, ...], steps: int, **options: object) -> tuple[freezing.Episode, ...]:
    return freezing.episodes(Trainable(kind="gradual", **options), names, steps)


def layers(episode: freezing.Episode, stack: str) -> list[int]:
    return [i for i in range(100) if f"{stack}/layers/{i}" in episode.groups]


# ---- groups and plans -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("path", "group"),
    [
        ("encoder/layers/3/mlp/output/kernel", "encoder/layers/3"),
        ("decoder/layers/11/cross_attention/query/kernel", "decoder/layers/11"),
        ("decoder/layers/11/cross_attention/norm/scale", "decoder/layers/11/norms"),
        ("encoder/layers/3/adapter/norm/scale", "encoder/layers/3/adapter"),
        ("encoder/layers/3/adapter/output/kernel", "encoder/layers/3/adapter"),
        ("encoder/position/embedding", "encoder/shared"),
        ("decoder/norm/scale", "decoder/shared/norms"),
        ("heads/lm/kernel", "heads"),
        ("embeddings/word/embedding", "embeddings"),
    ],
)
def test_groups_of_paths(path, group):
    assert freezing.param_group(path) == group


@pytest.mark.parametrize("size", [0, 4])
@pytest.mark.parametrize("tied", [True, False])
def test_groups_of_the_model_are_listed_from_the_bottom(size, tied):
    program = make_t5(adapter_size=size, tie_word_embeddings=tied)
    found = freezing.param_groups(program.abstract_params())
    assert found == groups(LAYERS, LAYERS, *(() if tied else ("heads",)), adapters=bool(size))
    alone = make_t5(architecture="decoder_only", tie_word_embeddings=tied)
    assert not any(group.startswith("encoder") for group in freezing.param_groups(alone.abstract_params()))


@given(st.data(), st.integers(0, 30), st.integers(1, 30), st.sampled_from(["auto", "last", "always", "never"]))
def test_stacks_open_in_parallel_from_the_top(data, encoder, decoder, embeddings):
    deepest = max(encoder, decoder)
    count = data.draw(st.none() | st.integers(1, deepest))
    episodes = count or deepest
    steps = data.draw(st.integers(episodes, 10_000))
    plan = gradual(groups(encoder, decoder, "heads"), steps, episodes=count, embeddings=embeddings)
    assert [e.start for e in plan] == [i * steps // episodes for i in range(episodes)] and plan[-1].stop == steps
    for n, episode in enumerate(plan):
        for name, depth in (("encoder", encoder), ("decoder", decoder)):
            opened = -(-(n + 1) * depth // episodes)
            assert layers(episode, name) == list(range(depth - opened, depth))
            norms = [i for i in range(100) if f"{name}/layers/{i}/norms" in episode.groups]
            assert norms == layers(episode, name)
        last, always = n == episodes - 1, embeddings in ("auto", "always")
        assert {"heads", "decoder/shared/norms"} <= set(episode.groups)
        assert ("embeddings" in episode.groups) == (always or (embeddings == "last" and last))
        assert ("decoder/shared" in episode.groups) == (always or last)
    for before, after in zip(plan, plan[1:], strict=False):
        assert set(before.groups) <= set(after.groups)


def test_plans_without_episodes():
    plan = lambda names, **options: freezing.episodes(Trainable(**options), names, 9)  # noqa: E731
    tied, untied = groups(2, 2, adapters=True), groups(2, 2, "heads", adapters=True)
    assert plan(untied, kind="all") == (freezing.Episode(0, 9, untied),)
    assert plan(untied, kind="head")[0].groups == ("heads",)
    assert plan(tied, kind="head")[0].groups == ("embeddings",)
    (paper,), (houlsby,) = plan(tied, kind="adapters"), plan(tied, kind="adapters", adapter_norms="houlsby")
    assert houlsby.groups == tuple(f"{s}/layers/{i}/adapter" for s in ("encoder", "decoder") for i in range(2))
    norms = {f"{s}/{where}/norms" for s in ("encoder", "decoder") for where in ("layers/0", "layers/1", "shared")}
    assert set(paper.groups) == {*houlsby.groups, *norms}


def test_groups_in_words():
    plan = gradual(groups(6, 6, "heads"), 12)
    always = "encoder position bias, encoder final norm, decoder position bias, decoder final norm, heads"
    assert freezing.format_groups(plan[1].groups) == f"embeddings, encoder layers 4..5, decoder layers 4..5, {always}"
    (paper,) = freezing.episodes(Trainable(kind="adapters"), groups(2, 1, adapters=True), 1)
    assert freezing.format_groups(paper.groups) == (
        "encoder adapters 0..1, encoder norms 0..1, decoder adapter 0, decoder norm 0, "
        "encoder final norm, decoder final norm"
    )


# ---- the compiled step ----------------------------------------------------------------------------------------------


def products(program: TrainProgram, trained: tuple[str, ...]) -> int:
    """Matrix products in the lowered step, without column sums (dots with rows of ones); a scan's body counts once."""
    like = program.abstract_state(trained, jax.random.key(0))
    text = jit_train_step(program, like).lower(like, rows(4)).as_text()
    shapes = re.findall(r"dot_general.* : \(tensor<(\d+)x", text)
    return sum(int(first) != ROWS_OF_ONES for first in shapes)


def flops(program: TrainProgram, trained: tuple[str, ...]) -> float:
    like = program.abstract_state(trained, jax.random.key(0))
    return jit_train_step(program, like).lower(like, rows(4)).compile().cost_analysis()["flops"]


def first(program: TrainProgram, **options: object) -> tuple[str, ...]:
    return gradual(freezing.param_groups(program.abstract_params()), 4, **options)[0].groups


# Products of a layer forward: query, key, value, scores, context and output of an attention, and two of the MLP.
ENCODER, DECODER = 8, 14
FORWARD = LAYERS * (ENCODER + DECODER) + 1 + 1  # the output matrix, and the gradient that goes back through it
BOTTOM = 3  # a lowest layer leaves out its own input's gradient: through query, key and value

NORMS = [f"{stack}/layers/1/norms" for stack in ("encoder", "decoder")]


@pytest.mark.parametrize(
    ("trained", "expected"),
    [
        (["decoder/shared/norms"], 0),
        # two products for each forward; the encoder, behind key and value of the cross attention, needs none
        (["decoder/layers/1"], 2 * DECODER - BOTTOM - 2),
        (["decoder/layers/0", "decoder/layers/1"], (2 * DECODER - 2) * 2 - BOTTOM),
        # through frozen layers flow the gradients of activations alone: 4 weights an attention and 2 of the MLP less.
        # The bottom decoder layer hands back those of its cross attention's keys and values: no queries, no self.
        (["encoder/layers/1"], (2 * DECODER - 10) + 8 + 2 * ENCODER - BOTTOM),
        (["encoder/layers/0", "encoder/layers/1"], (2 * DECODER - 10) + 8 + 4 * ENCODER - BOTTOM),
        # an episode without the embeddings: nothing for the encoder's bottom layer
        (["encoder/layers/1", "decoder/layers/1", *NORMS], 2 * DECODER + 8 + 2 * ENCODER),
    ],
)
def test_frozen_layers_have_no_backward_products(trained, expected):
    assert products(make_t5(dropout=0.0), tuple(trained)) == FORWARD + expected


def test_products_of_an_episode():
    """With the embeddings, activations' gradients flow down to them, but frozen weights still have none."""
    program = make_t5(dropout=0.0)
    every = freezing.param_groups(program.abstract_params())
    table = 1
    assert products(program, every) == FORWARD + table + LAYERS * 2 * (ENCODER + DECODER)
    assert products(program, first(program)) == products(program, every) - 6 - 10
    assert products(program, first(program, embeddings="never")) == FORWARD + 2 * DECODER + 8 + 2 * ENCODER


@pytest.mark.slow
def test_a_frozen_bottom_half_costs_less():
    """The compiler's own count; a frozen layer's factor is 2 of 3 with the embeddings, 1 of 3 or little more without.

    The vocabulary's product and elementwise work dilute it.
    """
    program = make_t5(dropout=0.0, d_model=64, d_ff=256)
    every = flops(program, freezing.param_groups(program.abstract_params()))
    always, never = flops(program, first(program)), flops(program, first(program, embeddings="never"))
    assert never < 0.95 * always and always < 0.9 * every


@pytest.mark.parametrize(("embeddings", "frozen"), [("always", (18, 10)), ("never", (18, 0))])
def test_a_scan_never_mixes_frozen_and_trained_layers(embeddings, frozen):
    """A scanned stack of 4 + 4 is cut where training begins: a frozen and a trained body each.

    The frozen body's backward has activations' gradients alone, where anything below it trains or, in the decoder,
    beside it.
    """
    program = make_t5(segments=(4,), num_layers=4, dropout=0.0)
    plan = gradual(freezing.param_groups(program.abstract_params()), 8, episodes=2, embeddings=embeddings)
    like = program.abstract_state(plan[0].groups, jax.random.key(0))
    assert program.split_segments(like.opt_state).compute.segments == (2, 2)
    table = embeddings == "always"
    assert products(program, plan[0].groups) == FORWARD + table + 2 * (DECODER + ENCODER) + sum(frozen)


@pytest.mark.slow
def test_a_scan_and_a_list_train_alike():
    sizes = {"num_layers": 4, "dropout": 0.0}
    results = []
    for program in (make_t5(segments=(4,), **sizes), make_t5(**sizes)):
        names = gradual(freezing.param_groups(program.abstract_params()), 8, episodes=2, embeddings="last")[0].groups
        state = program.init_state(program.initialize(jax.random.key(0)), names, jax.random.key(1))
        state, _ = jit_train_step(program, state)(state, jax.device_put(rows(4), program.batch_sharding()))
        results.append(jax.device_get(state.params))
    for path, x in results[0].items():
        np.testing.assert_allclose(x, results[1][path], rtol=1e-3, atol=1e-5, err_msg=path)


@pytest.mark.slow
def test_episodes_change_what_they_train_and_nothing_else():
    """Slots of surviving groups are carried over, those of thawed ones made; frozen bytes stay."""
    program = make_t5(optimizer=ADAMW, steps=4)
    plan = gradual(freezing.param_groups(program.abstract_params()), 4, embeddings="last")
    assert len(plan) == LAYERS
    state = program.init_state(program.initialize(jax.random.key(0)), plan[0].groups, jax.random.key(1))
    batch = jax.device_put(rows(4), program.batch_sharding())
    for episode in plan:
        if set(state.opt_state) != set(episode.groups):
            state = program.unfreeze(state, episode.groups)
        before = jax.device_get({**state.params, **state.frozen})
        step = jit_train_step(program, state)
        for _ in range(episode.start, episode.stop):
            state, metrics = step(state, batch)
        after = jax.device_get({**state.params, **state.frozen})
        changed = {freezing.param_group(path) for path in after if after[path].tobytes() != before[path].tobytes()}
        assert changed == set(episode.groups)
        assert np.isfinite(metrics["loss"])
    counts = {group: int(slots[0].count) for group, slots in state.opt_state.items()}
    assert counts["decoder/layers/1"] == counts["encoder/layers/1/norms"] == counts["decoder/shared/norms"] == 4
    assert counts["decoder/layers/0"] == counts["encoder/shared"] == counts["embeddings"] == 2
