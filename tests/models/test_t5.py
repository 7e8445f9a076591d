"""T5's own properties: sizes, stacks, packing, prefixes, caches, precision. Parity is in test_t5_parity.py."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from bertjax.config.schema.model import T5Config
from bertjax.config.schema.run import MeshConfig
from bertjax.models import registry
from bertjax.models.compute_options import ComputeOptions
from bertjax.models.peft_options import PeftOptions
from bertjax.models.t5.model import shift_right
from bertjax.parallel import sharding
from bertjax.parallel.mesh import make_mesh

V = 50
SMALL = T5Config(
    vocab_size=V, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_decoder_layers=3, num_heads=4, dropout_rate=0.0,
    relative_attention_num_buckets=8, relative_attention_max_distance=12,
)  # fmt: skip
GATED = SMALL.model_copy(update={"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False})
DROPPING = SMALL.model_copy(update={"dropout_rate": 0.2})
ALONE = SMALL.model_copy(update={"architecture": "decoder_only"})
BASE = {"d_model": 768, "d_ff": 3072, "num_layers": 12, "num_heads": 12}


@cache
def parameters(config: T5Config, adapter_size: int = 0) -> dict[str, jax.Array]:
    """Fresh, with random norms and livelier position biases, so that no part goes unseen."""
    params = registry.init_params(config, ("lm",), 2, jax.random.key(0), PeftOptions(adapter_size=adapter_size))
    draw = np.random.default_rng(1)
    livelier = lambda path: 1.0 if "position" in path else 0.1 if path.endswith("scale") else 0.0  # noqa: E731
    return {p: x + livelier(p) * draw.normal(size=x.shape).astype(np.float32) for p, x in params.items()}


def model_of(config: T5Config, compute: ComputeOptions = ComputeOptions(), adapter_size: int = 0):  # noqa: B008
    params = parameters(config, adapter_size)
    return registry.build_model(config, ("lm",), params, compute=compute, peft=PeftOptions(adapter_size=adapter_size))


def fields(prefix: str, lengths: list[list[int]], width: int, seed: int) -> dict[str, np.ndarray]:
    """Rows of examples with these lengths, side by side from the left."""
    rng = np.random.default_rng(seed)
    ids, segments, positions = (np.zeros((len(lengths), width), np.int32) for _ in range(3))
    for row, parts in enumerate(lengths):
        at = 0
        for number, length in enumerate(parts):
            place = slice(at, at + length)
            ids[row, place], segments[row, place] = rng.integers(2, V, length), number + 1
            positions[row, place] = np.arange(length)
            at += length
    name = "target_ids" if prefix else "input_ids"
    return {name: ids, f"{prefix}segment_ids": segments, f"{prefix}positions": positions}


def examples(count: int = 3, seed: int = 0) -> dict[str, np.ndarray]:
    """One example in a row."""
    rng = np.random.default_rng(seed)
    inputs = [[int(n)] for n in rng.integers(1, 17, count)]
    targets = [[int(n)] for n in rng.integers(1, 11, count)]
    return fields("", inputs, 16, seed) | fields("target_", targets, 10, seed + 1)


def logits_of(model, rows, key=None, prefix_mask=None):
    k1, k2 = (None, None) if key is None else jax.random.split(key)
    hidden, segment_ids = None, None
    if "input_ids" in rows:
        segment_ids = rows["segment_ids"]
        hidden = model.encode(rows["input_ids"], segment_ids, key=k1)
    inputs = shift_right(rows["target_ids"], rows["target_positions"])
    decoded = model.decode(inputs, rows["target_segment_ids"], hidden, segment_ids, prefix_mask=prefix_mask, key=k2)
    return model.logits(decoded)


@cache
def runner(config: T5Config):
    """rows, dropout key -> logits, compiled once for each shape."""
    graph, params = registry.abstract_model(config, ("lm",)), parameters(config)
    run = jax.jit(lambda params, rows, key: logits_of(registry.merge(*graph, params), rows, key))
    return lambda rows, key=None: np.asarray(run(params, rows, key))


def loss_and_grads(config, params, rows, compute, key=None, adapter_size=0):
    """Logits of real targets and the gradient of their summed cross-entropy."""
    graph = registry.abstract_model(config, ("lm",), compute=compute, peft=PeftOptions(adapter_size=adapter_size))

    def run(params):
        logits = logits_of(registry.merge(*graph, params), rows, key)
        real = rows["target_segment_ids"] > 0
        picked = jnp.take_along_axis(jax.nn.log_softmax(logits), rows["target_ids"][..., None], axis=-1)[..., 0]
        return -(picked * real).sum(), logits * real[..., None]

    (_, logits), grads = jax.jit(jax.value_and_grad(run, has_aux=True))(params)
    return np.asarray(logits), {path: np.asarray(g) for path, g in grads.items()}


def assert_close(found, expected, tolerance=1e-5):
    np.testing.assert_allclose(found[0], expected[0], atol=tolerance * max(1, np.abs(expected[0]).max()))
    assert found[1].keys() == expected[1].keys()
    for path, value in expected[1].items():
        np.testing.assert_allclose(found[1][path], value, atol=tolerance * max(1, np.abs(value).max()), err_msg=path)


# ---- sizes and initialisation ----------------------------------------------------------------------------------------


@cache
def size(config: T5Config, adapter_size: int = 0) -> int:
    return sum(
        x.size
        for x in jax.tree.leaves(
            registry.abstract_model(config, ("lm",), peft=PeftOptions(adapter_size=adapter_size))[1]
        )
    )


@pytest.mark.parametrize(
    ("config", "expected"),
    [  # transformers' num_parameters() of t5-small, t5-base, t5-large and t5-3b; google/t5-v1_1-base as released
        (T5Config(), 60_506_624),
        (T5Config(**BASE), 222_903_552),
        (T5Config(d_model=1024, d_ff=4096, num_layers=24, num_heads=16), 737_668_096),
        (T5Config(d_model=1024, d_kv=128, d_ff=16384, num_layers=24, num_heads=32), 2_851_598_336),
        (T5Config(**BASE | {"d_ff": 2048, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
         247_577_856),
    ],
)  # fmt: skip
def test_parameter_counts(config, expected):
    assert size(config) == expected


@pytest.mark.parametrize(
    ("width", "expected"), [(32, 1_198_080), (128, 4_737_024), (512, 18_892_800), (2048, 75_515_904)]
)
def test_adapter_counts(width, expected):
    """24 x (2 x 768 x d + 768) in T5-base, by hand from arXiv 1910.10683 section 3.5.1."""
    assert size(T5Config(**BASE), width) - size(T5Config(**BASE)) == expected


def test_parameter_paths():
    def paths(config: T5Config, adapter_size: int = 0) -> set[str]:
        return set(
            registry.logical_axes(
                registry.abstract_model(config, ("lm",), peft=PeftOptions(adapter_size=adapter_size))[1]
            )
        )

    attention = {f"{k}/kernel" for k in ("query", "key", "value", "output")} | {"norm/scale"}
    mlp = {"mlp/intermediate/kernel", "mlp/output/kernel", "mlp/norm/scale"}
    expected = {"embeddings/word/embedding"}
    for part, depth in (("encoder", 2), ("decoder", 3)):
        expected |= {f"{part}/position/embedding", f"{part}/norm/scale"}
        layer = {f"attention/{x}" for x in attention} | mlp
        layer |= {f"cross_attention/{x}" for x in attention} if part == "decoder" else set()
        expected |= {f"{part}/layers/{i}/{x}" for i in range(depth) for x in layer}
    assert paths(SMALL) == expected
    adapter = {f"adapter/{x}" for x in ("norm/scale", "intermediate/kernel", "output/kernel")}
    more = {f"{p}/layers/{i}/{x}" for p, n in (("encoder", 2), ("decoder", 3)) for i in range(n) for x in adapter}
    assert paths(SMALL, 4) == expected | more
    gates = {f"{p}/layers/{i}/mlp/gate/kernel" for p, n in (("encoder", 2), ("decoder", 3)) for i in range(n)}
    assert paths(GATED) == expected | gates | {"heads/lm/kernel"}
    assert paths(ALONE) == {x for x in expected if not x.startswith("encoder") and "cross" not in x}


def test_initialisation():
    """Deviations of transformers' T5 _init_weights; unit norms; no array twice the same."""
    config = GATED.model_copy(update={"d_model": 256, "d_kv": 16, "d_ff": 300, "num_heads": 12, "vocab_size": 400})
    D, K, inner, F, d = 256, 16, 192, 300, 64
    params = registry.init_params(config, ("lm",), 2, jax.random.key(0), PeftOptions(adapter_size=d))
    expected = {
        "word/embedding": 1.0, "position/embedding": D**-0.5, "query": (D * K) ** -0.5, "key": D**-0.5,
        "value": D**-0.5, "attention/output": inner**-0.5, "mlp/intermediate": D**-0.5, "mlp/gate": D**-0.5,
        "mlp/output": F**-0.5, "adapter/intermediate": D**-0.5, "adapter/output": d**-0.5, "heads/lm": D**-0.5,
    }  # fmt: skip
    for path, x in params.items():
        assert x.dtype == np.float32
        if path.endswith("scale"):
            assert (np.asarray(x) == 1).all()
        else:
            (std,) = (value for name, value in expected.items() if name in path)
            assert abs(float(x.std()) / std - 1) < 4 / x.size**0.5, path
    assert len({np.asarray(x).tobytes() for p, x in params.items() if not p.endswith("scale")}) == sum(
        not p.endswith("scale") for p in params
    )


def test_a_furthest_distance_within_the_exact_buckets_is_refused():
    with pytest.raises(ValidationError, match="relative_attention_max_distance"):
        T5Config(relative_attention_num_buckets=32, relative_attention_max_distance=16)


# ---- position bias, shift, packing -----------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [1, 5, 17, 200])
@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_bias_along_diagonals_is_the_look_up_of_every_pair(part, length):
    position = getattr(model_of(SMALL), part).position
    relative = jnp.arange(length)[None] - jnp.arange(length)[:, None]
    found = position(jnp.zeros((2, length), jnp.int32))
    np.testing.assert_array_equal(found[0], jnp.moveaxis(position.bias_at(relative), 2, 0))


def test_targets_shift_within_their_example():
    """seqio utils_test.py: make_autoregressive_inputs with and without sequence ids."""
    ids = np.array([[3, 8, 9, 5, 1, 6, 8, 0]])
    positions = np.array([[0, 1, 2, 3, 4, 5, 6, 7]])
    np.testing.assert_array_equal(shift_right(ids, positions), [[0, 3, 8, 9, 5, 1, 6, 8]])
    packed = np.array([[0, 1, 2, 3, 4, 0, 1, 0]])
    np.testing.assert_array_equal(shift_right(ids, packed), [[0, 3, 8, 9, 5, 0, 6, 0]])


LENGTHS = st.lists(st.tuples(st.integers(1, 6), st.integers(1, 5)), min_size=1, max_size=4)


@settings(max_examples=20, deadline=None)
@given(LENGTHS, st.integers(0, 1000))
def test_packed_examples_are_as_if_alone(lengths, seed):
    run, widths = runner(GATED), {"": 24, "target_": 20}
    parts = {"": [n for n, _ in lengths], "target_": [n for _, n in lengths]}
    together, alone = {}, {}
    for prefix, sizes in parts.items():
        together |= fields(prefix, [sizes], widths[prefix], seed)
        alone |= fields(prefix, [[n] for n in sizes] + [[]] * (4 - len(sizes)), widths[prefix], seed)
        ids = "target_ids" if prefix else "input_ids"
        alone[ids][alone[f"{prefix}segment_ids"] > 0] = together[ids][together[f"{prefix}segment_ids"] > 0]
    found, expected = run(together), run(alone)
    real = alone["target_segment_ids"] > 0
    np.testing.assert_allclose(found[together["target_segment_ids"] > 0], expected[real], atol=2e-5)


def test_padding_is_never_seen():
    run, rows = runner(SMALL), examples()
    real = rows["target_segment_ids"] > 0
    expected = run(rows)[real]
    noisy = dict(rows, input_ids=np.where(rows["segment_ids"] > 0, rows["input_ids"], 7))
    np.testing.assert_array_equal(run(noisy)[real], expected)
    longer = {n: np.pad(x, ((0, 0), (0, 5))) for n, x in rows.items()}
    np.testing.assert_allclose(run(longer)[:, :-5][real], expected, atol=1e-5)


def test_the_decoder_never_looks_ahead():
    """Eight rows that differ in one target each: logits up to it are the same, all behind it are not."""
    same = fields("", [[16]], 16, 0) | fields("target_", [[8]], 8, 1)
    rows = {n: np.repeat(x, 9, axis=0) for n, x in same.items()}
    changed = (np.arange(8), np.arange(8))
    rows["target_ids"][changed] = 2 + (rows["target_ids"][changed] - 1) % (V - 2)
    *found, plain = runner(GATED)(rows)
    moved = np.abs(np.stack(found) - plain).max(axis=-1) > 1e-4
    np.testing.assert_array_equal(moved, np.tri(8, k=-1).T > 0)


# ---- the decoder alone -----------------------------------------------------------------------------------------------


def influence(prefix: list[int], segments: list[int]) -> np.ndarray:
    """[T, T]: whether the decoder input at column s reaches the hidden state at row t."""
    model, width = model_of(ALONE), len(segments)
    ids = jnp.arange(2, 2 + width)[None]
    decode = jax.jit(
        lambda ids: model.decode(ids, jnp.array([segments]), None, None, prefix_mask=jnp.array([prefix]))[0]
    )
    base = decode(ids)
    moved = [np.abs(decode(ids.at[0, s].set(V - 1)) - base).max(axis=-1) > 1e-5 for s in range(width)]
    return np.stack(moved, axis=1)


def test_a_prefix_is_fully_visible_within_its_example():
    """t5x decoder_only layers.py make_decoder_mask, worked out by hand for two examples and padding."""
    found = influence([1, 1, 1, 0, 0, 1, 1, 0, 0], [1, 1, 1, 1, 1, 2, 2, 2, 0])[:-1, :-1]
    expected = np.array(
        [[1, 1, 1, 0, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0, 0, 0], [1, 1, 1, 0, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0, 0, 0],
         [1, 1, 1, 1, 1, 0, 0, 0], [0, 0, 0, 0, 0, 1, 1, 0], [0, 0, 0, 0, 0, 1, 1, 0], [0, 0, 0, 0, 0, 1, 1, 1]]
    )  # fmt: skip
    np.testing.assert_array_equal(found, expected > 0)


def test_without_a_prefix_it_is_causal():
    np.testing.assert_array_equal(influence([0] * 6, [1] * 6), np.tril(np.ones((6, 6))) > 0)


# ---- cached decoding -------------------------------------------------------------------------------------------------


def test_cached_steps_are_the_uncached_decoder():
    """Logits of every position, teacher-forced, with more slots than targets and a traced index."""
    model, rows = model_of(GATED), examples(4)
    rows |= fields("target_", [[10]] * 4, 10, 3)
    expected = runner(GATED)(rows)
    inputs = shift_right(rows["target_ids"], rows["target_positions"])
    hidden = model.encode(rows["input_ids"], rows["segment_ids"])
    state, found, step = model.init_cache(hidden, rows["segment_ids"], 15), [], jax.jit(model.decode_step)
    for index in range(10):
        logits, state = step(inputs[:, index], state, index)
        assert logits.dtype == jnp.float32
        found.append(logits)
    np.testing.assert_allclose(np.stack(found, axis=1), expected, atol=2e-5)
    assert {x.shape[0] for x in jax.tree.leaves(state)} == {4}  # so that beams are one tree.map
    order = np.array([2, 0, 0, 1])
    again, _ = step(inputs[order, 9], jax.tree.map(lambda x: x[order], state), 9)  # slot 9 is written anew
    np.testing.assert_allclose(again, expected[order, 9], atol=2e-5)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("full", [True, False])
def test_prompts_of_any_length_then_steps_are_the_uncached_decoder(side, full):
    """The decoder alone: prompts padded on either side, with a fully visible prefix and without."""
    model, width, more, lengths = model_of(ALONE), 7, 4, [7, 3, 1]
    rng = np.random.default_rng(0)
    inputs = [np.concatenate([[0], rng.integers(2, V, n - 1 + more)]) for n in lengths]
    prompts, real = np.zeros((3, width), np.int32), np.zeros((3, width), np.int32)
    for row, n in enumerate(lengths):
        at = width - n if side == "left" else 0
        prompts[row, at : at + n], real[row, at : at + n] = inputs[row][:n], 1
    state = model.init_cache(None, real, width + more + 2)
    logits, state = jax.jit(model.prefill)(prompts, real, real if full else None, state)
    found, decode_step = [logits], jax.jit(model.decode_step)
    for step in range(more):
        ids = np.array([x[n + step] for x, n in zip(inputs, lengths, strict=True)])
        logits, state = decode_step(ids, state, width + step)
        found.append(logits)
    for row, n in enumerate(lengths):
        whole = inputs[row][None]
        prefix = (np.arange(n + more) < n)[None].astype(int) if full else None
        decoded = model.decode(whole, np.ones_like(whole), None, None, prefix_mask=prefix)
        np.testing.assert_allclose(np.stack(found)[:, row], model.logits(decoded)[0, n - 1 :], atol=2e-5)


# ---- how it runs -----------------------------------------------------------------------------------------------------

KEY = jax.random.key(3)


@cache
def listed():
    return loss_and_grads(DROPPING, parameters(DROPPING, 4), examples(), ComputeOptions(), KEY, 4)


@pytest.mark.parametrize(
    ("segments", "remat"),
    [
        ((2,), "dots"),
        pytest.param((3,), "full", marks=pytest.mark.slow),
        pytest.param((1, 2), "none", marks=pytest.mark.slow),
    ],
)
def test_scanned_listed_and_recomputed_stacks_are_the_same_model(segments, remat):
    """Adapters and dropout on; segments of two cut the encoder, of three the decoder."""
    compute = ComputeOptions(segments=segments, remat=remat)
    found = loss_and_grads(DROPPING, parameters(DROPPING, 4), examples(), compute, KEY, 4)
    assert_close(found, listed())
    assert all(np.isfinite(g).all() and np.abs(g).max() > 0 for g in found[1].values())


def test_dropout_drops_and_no_key_means_none():
    run, rows = runner(DROPPING), examples()
    plain = runner(SMALL)(rows)
    np.testing.assert_array_equal(run(rows), plain)
    drawn = [run(rows, jax.random.key(n)) for n in (0, 0, 1)]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    assert np.abs(drawn[0] - drawn[2]).max() > 0.1 and np.abs(drawn[0] - plain).max() > 0.1


@pytest.mark.parametrize("rng", ["hash", "threefry"])
def test_one_dropout_mask_for_a_whole_row(rng):
    """t5x network.py: broadcast_dims=(-2,)."""
    from bertjax.models.layers.dropout import dropout

    x = dropout(jnp.ones((3, 5, 400)), 0.25, KEY, ComputeOptions(dropout_rng=rng), broadcast_length=True)
    assert (x == x[:, :1]).all() and abs(float((x == 0).mean()) - 0.25) < 0.06 and x.max() == pytest.approx(4 / 3)
    assert (x[0] != x[1]).any()


def test_rms_norm_and_its_gradient():
    """Against the formula of arXiv 1910.07467 and jax's own gradient of it."""
    from bertjax.models.layers.numerics import rms_norm

    x, scale, g = (jax.random.normal(jax.random.key(n), shape) for n, shape in enumerate([(2, 3, 8), (8,), (2, 3, 8)]))
    plain = lambda x, scale: x / jnp.sqrt((x**2).mean(-1, keepdims=True) + 1e-6) * scale  # noqa: E731
    expected, pull = jax.vjp(plain, x, scale)
    found, ours = jax.vjp(lambda x, scale: rms_norm(x, scale, 1e-6), x, scale)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
    for a, b in zip(ours(g), pull(g), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_bfloat16_is_close_to_float32():
    params, rows = parameters(GATED), examples(6)
    exact, exact_grads = loss_and_grads(GATED, params, rows, ComputeOptions())
    low, low_grads = loss_and_grads(GATED, params, rows, ComputeOptions(dtype=jnp.bfloat16))
    assert low.dtype == np.float32
    assert 1e-4 < np.abs(low - exact).mean() / np.abs(exact).mean() < 0.05
    for path, value in exact_grads.items():
        assert low_grads[path].dtype == np.float32
        error = np.linalg.norm(low_grads[path] - value) / np.linalg.norm(value)
        assert error < 0.12, (path, error)


@pytest.mark.parametrize("kernel", ["cudnn", "splash"])
def test_flash_kernels_by_name_are_refused(kernel):
    with pytest.raises(ValueError, match="position bias"):
        registry.abstract_model(SMALL, ("lm",), compute=replace(ComputeOptions(), attention=kernel))


@pytest.mark.slow
@pytest.mark.parametrize("sizes", [{"data": 2, "fsdp": 2, "tensor": 2}, {"data": 1, "tensor": 8}])
def test_a_model_split_over_eight_devices_is_the_same_model(sizes):
    """Logits, gradients and dropout on one device and split, also where the mesh does not divide the heads."""
    if jax.device_count() < 8:
        pytest.skip("needs eight devices")
    config = DROPPING.model_copy(update={"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False})
    params, rows = parameters(config, 4), examples(8)
    expected = loss_and_grads(config, params, rows, ComputeOptions(), KEY, 4)
    mesh = make_mesh(MeshConfig(**sizes))
    names = registry.logical_axes(registry.abstract_model(config, ("lm",), peft=PeftOptions(adapter_size=4))[1])
    placed = {p: jax.device_put(x, sharding.named_sharding(mesh, names[p], x.shape)) for p, x in params.items()}
    assert len({x.sharding.spec for x in placed.values()}) > 3
    split = jax.sharding.NamedSharding(mesh, sharding.logical_to_mesh_axes(("batch",)))
    put = {name: jax.device_put(x, split) for name, x in rows.items()}
    with jax.set_mesh(mesh):
        found = loss_and_grads(config, placed, put, ComputeOptions(), KEY, 4)
    assert_close(found, expected)
