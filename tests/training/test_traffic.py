"""What a step sends over which links: gradients once, in pieces between slices, and never logits or whole tables."""

import re
from collections import Counter
from dataclasses import replace
from math import prod
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from t5_models import TINY_T5, make_t5
from t5_models import rows as t5_rows
from traffic import compile_step, lengths, lower_step, sent

from bertjax.config.schema.model import BertConfig
from bertjax.config.schema.run import MeshConfig
from bertjax.config.schema.training import TextToTextObjective
from bertjax.models.decoding.beam import beam_search
from bertjax.models.decoding.sample import greedy, sample
from bertjax.models.registry import abstract_model, init_params, logical_axes, merge
from bertjax.objectives.registry import build
from bertjax.parallel import sharding
from bertjax.parallel.mesh import make_mesh
from bertjax.parallel.mesh_shape import merge_rules
from bertjax.training.program import TrainProgram

SLOW = pytest.mark.slow
ODD = 122  # pieces of a vocabulary: no other axis is as long
SCALARS = 256  # bytes: loss, terms and norms
BERT = BertConfig(
    vocab_size=ODD, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64,
    max_position_embeddings=32,
)  # fmt: skip
UNEVEN = {"hidden_size": 38, "num_attention_heads": 2}
MESHES = {
    "data8": {"data": 8},
    "dcn2_data4": {"dcn": 2, "data": 4},
    "data2_fsdp4": {"data": 2, "fsdp": 4},
    "dcn2_fsdp4": {"dcn": 2, "fsdp": 4},
    "dcn2_fsdp2_tensor2": {"dcn": 2, "fsdp": 2, "tensor": 2},
}


def between(found: Counter[tuple[str, str]]) -> int:
    """Bytes over links that copies of the parameters have with each other."""
    return sum(size for (_, axes), size in found.items() if {"dcn", "data"} & set(axes.split("+")))


# ---- gradients -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mesh", ["data8", *(pytest.param(m, marks=SLOW) for m in list(MESHES)[1:])])
def test_micro_batches_add_no_traffic_between_copies(make_program, make_rows, mesh):
    """Gradients of 2 and of 4 micro-batches are summed once; along fsdp alone weights come and go with each of them."""
    programs = {n: make_program(model=BERT, grad_accum=n, **MESHES[mesh]) for n in (1, 2, 4)}
    found = {n: sent(compile_step(p, make_rows("pairs", 32)), p.mesh) for n, p in programs.items()}
    assert between(found[2]) == between(found[4])
    assert between(found[4]) <= between(found[1])
    if "fsdp" not in MESHES[mesh]:
        assert found[2] == found[4] and between(found[4]) <= parameters(programs[4]) + SCALARS


def parameters(program: TrainProgram, axis: str = "") -> int:
    """Bytes of them, or of those that a mesh axis splits; of one device's part along tensor."""
    params = program.abstract_params().values()
    split = lambda x, axis: axis in jax.tree.leaves(tuple(x.sharding.spec))  # noqa: E731
    ways = program.mesh.shape["tensor"]
    return sum(4 * x.size // (ways if split(x, "tensor") else 1) for x in params if not axis or split(x, axis))


@pytest.mark.parametrize("outer", ["dcn", pytest.param("data", marks=SLOW)])
@pytest.mark.parametrize("kind", ["bert", pytest.param("t5", marks=SLOW), pytest.param("bert tensor", marks=SLOW)])
def test_pieces_of_gradients_travel_between_slices(make_program, make_rows, kind, outer):
    """Sums are cut inside a slice first, so that the slow network carries one fsdp-th of them, once."""
    axes = {"dcn" if outer == "dcn" else "data": 2} | ({"fsdp": 2, "tensor": 2} if "tensor" in kind else {"fsdp": 4})
    program = make_t5(mesh=axes) if kind == "t5" else make_program(model=BERT, **axes)
    found = sent(compile_step(program, t5_rows(16) if kind == "t5" else make_rows("pairs", 16)), program.mesh)
    split = parameters(program, "fsdp")
    whole = parameters(program) - split
    table = program.abstract_params()["embeddings/word/embedding"].size * 4
    assert found["all-reduce", outer] == split // axes["fsdp"]
    assert whole <= found["all-reduce", f"{outer}+fsdp"] <= whole + SCALARS
    for collective in ("all-gather", "reduce-scatter"):  # a tied table is read in two or three places
        assert split <= found[collective, "fsdp"] <= split + 2 * table
    assert {kind for kind, axes in found if "tensor" not in axes} == {"all-gather", "all-reduce", "reduce-scatter"}


@pytest.mark.parametrize(
    ("axes", "options", "expected"),
    [
        ({"data": 8}, {}, ()),
        ({"fsdp": 8}, {"grad_accum": 2}, ()),
        ({"fsdp": 4, "tensor": 2}, {"grad_accum": 2}, ()),
        ({"data": 8}, {"grad_accum": 2}, ("data",)),
        ({"data": 2, "fsdp": 4}, {}, ("data", "fsdp")),
        ({"dcn": 2, "data": 2, "tensor": 2}, {}, ("dcn", "data")),
        ({"dcn": 2, "fsdp": 4}, {"rules": {"batch": ["fsdp", "dcn"]}}, ()),
        ({"dcn": 2, "fsdp": 4}, {"rules": {"vocab": "fsdp", "embed": None}}, ()),
        ({"dcn": 2, "fsdp": 4}, {"model": BERT.model_copy(update={"hidden_size": 36})}, ("dcn", "fsdp")),
        ({"dcn": 2, "fsdp": 4}, {"model": BERT.model_copy(update=UNEVEN)}, ()),
        ({"fsdp": 4, "tensor": 2}, {"rules": {"sequence": "tensor"}}, ("fsdp",)),
    ],
)
def test_which_axes_have_manual_collectives(make_program, axes, options, expected):
    assert make_program(**axes, **options).manual_axes == expected


# ---- vocabulary ------------------------------------------------------------------------------------------------------

SPLIT = {"fsdp2_tensor2": {"fsdp": 2, "tensor": 2}, "dcn2_fsdp2_tensor2": {"dcn": 2, "fsdp": 2, "tensor": 2}}


@pytest.mark.parametrize("mesh", [pytest.param("fsdp2_tensor2", marks=SLOW), "dcn2_fsdp2_tensor2"])
@pytest.mark.parametrize("kind", ["bert", pytest.param("tied", marks=SLOW), "own output"])
@pytest.mark.parametrize("sequence", [None, pytest.param("tensor", marks=SLOW)])
def test_no_device_has_all_logits_or_the_whole_table(make_program, make_rows, mesh, kind, sequence):
    """Look-up, loss with z-loss and smoothing, accuracy and gradients work on the device's part of the vocabulary."""
    program = compile_of(make_program, kind, SPLIT[mesh], {"sequence": sequence})
    compiled = compile_step(program, make_rows("pairs", 16) if kind == "bert" else t5_rows(16))
    assert ODD // 2 in lengths(compiled) and ODD not in lengths(compiled)


def compile_of(make_program: Any, kind: str, axes: dict, rules: dict) -> TrainProgram:
    if kind == "bert":
        return make_program(model=BERT, rules=rules, **axes)
    version = {"tie_word_embeddings": kind == "tied"}
    program = make_t5(mesh=axes, vocab_size=ODD, **version)
    objective = build(TextToTextObjective(z_loss=1e-3, label_smoothing=0.1))
    return replace(program, objective=objective, rules=merge_rules(rules))


@SLOW
def test_a_whole_vocabulary_would_be_seen(make_program, make_rows):
    """The control of the test above."""
    program = make_program(model=BERT, rules={"vocab": None}, **SPLIT["fsdp2_tensor2"])
    assert ODD in lengths(compile_step(program, make_rows("pairs", 16)))


WAYS = {
    "greedy": lambda *a: greedy(*a, 6),
    "beam": lambda *a: beam_search(*a, 6, beam_size=3),
    "sample": lambda *a: sample(*a, 6, jax.random.key(0), jnp.arange(8), top_k=5),
}


@pytest.mark.parametrize("way", ["beam", *(pytest.param(way, marks=SLOW) for way in ("greedy", "sample"))])
def test_decoding_sends_candidates_and_no_logits(way):
    mesh, rules = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2)), merge_rules({})
    model = TINY_T5.model_copy(update={"vocab_size": ODD, "num_layers": 1})
    graph, abstract = abstract_model(model, ("lm",))
    shapes = jax.eval_shape(lambda key: init_params(model, ("lm",), 2, key), jax.random.key(0))
    names = logical_axes(abstract)
    place = lambda path, x: jax.ShapeDtypeStruct(  # noqa: E731
        x.shape, x.dtype, sharding=sharding.named_sharding(mesh, names[path], x.shape, rules)
    )
    params = {path: place(path, x) for path, x in shapes.items()}
    put = jax.sharding.NamedSharding(mesh, sharding.logical_to_mesh_axes(("batch",), rules))
    ids = jax.ShapeDtypeStruct((8, 16), jnp.int32, sharding=put)
    generate = jax.jit(lambda params, ids: WAYS[way](merge(graph, abstract, params), ids, (ids > 0).astype(int)))
    with sharding.use_mesh_and_rules(mesh, rules):
        compiled = generate.lower(params, ids).compile()
    assert ODD // 2 in lengths(compiled) and ODD not in lengths(compiled)
    assert between(sent(compiled, mesh)) <= 64  # whether to go on; no row is brought to another device


# ---- fsdp alone, left to the partitioner ----------------------------------------------------------------------------

BYTES = {"f32": 4, "bf16": 2, "s32": 4, "u32": 4, "pred": 1}
COLLECTIVE = re.compile(r"= (.*?) (all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(")


def collectives(text: str) -> list[tuple[str, int]]:
    """(kind, bytes of one device's result) of each collective in a compiled program."""
    found = []
    for result, kind in COLLECTIVE.findall(text):
        shapes = [(d, [int(n) for n in s.split(",") if n]) for d, s in re.findall(r"(\w+)\[([\d,]*)\]", result)]
        found.append((kind, sum(BYTES[d] * prod(s) for d, s in shapes)))
    return found


def received(found: list[tuple[str, int]], devices: int) -> float:
    """Bytes that reach one device over a ring: (n - 1) / n of a gather, twice that of a reduction."""
    passes = {"all-reduce": 2, "reduce-scatter": devices}  # a scatter's result is one n-th of what travels
    return sum(size * passes.get(kind, 1) for kind, size in found) * (devices - 1) / devices


@pytest.fixture(scope="module")
def traffic(make_program, make_rows) -> dict[int, list[tuple[str, int]]]:
    """Collectives of one step, fully sharded over 4 and over 8 devices with two rows on each."""
    return {
        n: collectives(compile_step(make_program(model=ONE, fsdp=n), make_rows("pairs", 2 * n)).as_text())
        for n in (4, 8)
    }


ONE = BertConfig(
    vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=64,
    max_position_embeddings=32,
)  # fmt: skip


@pytest.fixture(scope="module")
def sizes(make_program) -> dict[str, int]:
    """Bytes of each parameter of that model."""
    return {path: 4 * prod(x.shape) for path, x in make_program(model=ONE, fsdp=8).abstract_params().items()}


def test_weights_are_gathered_one_at_a_time(traffic, sizes):
    """ZeRO-3: a gather brings one weight, and all of them together the model at most twice (forward and backward)."""
    for found in traffic.values():
        gathers = [size for kind, size in found if kind == "all-gather"]
        assert len(gathers) >= 10 and set(gathers) <= set(sizes.values())
        assert sum(gathers) <= 2 * sum(sizes.values())


def test_no_activation_travels(traffic, sizes):
    """All other traffic is the sum of gradients, whatever the batch: the model once and a few scalars.

    Seven rows more for each bias (the column sums have eight), and the tied table again: look-up and decoder apart.
    """
    biases = sum(size for path, size in sizes.items() if path.endswith(("bias", "scale")))
    most = sum(sizes.values()) + 7 * biases + sizes["embeddings/word/embedding"] + 256
    for found in traffic.values():
        assert {kind for kind, _ in found} <= {"all-gather", "all-reduce", "reduce-scatter"}
        assert sum(size for kind, size in found if kind != "all-gather") <= most


def test_traffic_to_a_device_does_not_grow_with_the_mesh(traffic):
    """Weak scaling: from 4 to 8 devices a ring brings 7/8 instead of 3/4 of the bytes, and no more than that."""
    four, eight = received(traffic[4], 4), received(traffic[8], 8)
    assert eight / four <= 1.1 * (7 / 8) / (3 / 4)


# ---- one device ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["bert", pytest.param("tied", marks=SLOW)])
def test_rules_change_nothing_on_one_device(make_program, make_rows, kind):
    batch = make_rows("pairs", 4) if kind == "bert" else t5_rows(4)
    programs = [compile_of(make_program, kind, {}, rules) for rules in ({}, {"sequence": "tensor"})]
    texts = {lower_step(program, batch).as_text() for program in programs}
    assert len(texts) == 1 and "shard_map" not in texts.pop()
