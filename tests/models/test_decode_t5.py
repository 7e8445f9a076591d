"""Decoding of T5 itself: cached as uncached, one device as eight, float32 and bfloat16."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bertjax.config.schema.model import T5Config
from bertjax.config.schema.run import MeshConfig
from bertjax.models import registry
from bertjax.models.compute_options import ComputeOptions
from bertjax.models.decoding.beam import beam_search
from bertjax.models.decoding.sample import EOS, greedy, sample
from bertjax.parallel import sharding
from bertjax.parallel.mesh import make_mesh
from bertjax.parallel.mesh_shape import RULES

ROWS, WIDTH, LENGTH, V = 8, 12, 14, 11
HOW = {
    "greedy": greedy,
    "beam": lambda *a, **k: beam_search(*a, **k, beam_size=3)[0],
    "sample": lambda *a, **k: sample(*a, jax.random.key(1), jnp.arange(ROWS), **k, temperature=0.7, top_k=9),
}


def config_of(architecture: str, **more) -> T5Config:
    sizes = dict(vocab_size=V, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=4,
                 relative_attention_num_buckets=8, relative_attention_max_distance=10)  # fmt: skip
    return T5Config(architecture=architecture, **sizes | more)


def parameters(config: T5Config, seed: int = 0) -> dict[str, jax.Array]:
    """Random everywhere, and wild enough that the inputs and the tokens before matter."""
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(lambda key: registry.init_params(config, ("lm",), 2, key), jax.random.key(0))
    draw = lambda path, x: rng.normal(size=x.shape) * (1.0 if "kernel" in path else 0.5) + path.endswith("scale")  # noqa: E731
    return {path: jnp.asarray(draw(path, x), jnp.float32) for path, x in shapes.items()}


def inputs(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    real = np.arange(WIDTH)[None] < np.array([WIDTH, 1, 5, 7, 11, 2, 3, 9])[:, None]
    return np.where(real, rng.integers(2, V, (ROWS, WIDTH)), 0).astype(np.int32), real.astype(np.int32)


class Buffer(NamedTuple):
    tokens: jax.Array  # int32 [B, slots]
    visible: jax.Array  # bool [B, slots]
    prefix: jax.Array  # int32 [B]: how many tokens the prompt has
    hidden: jax.Array | None
    source: jax.Array | None


class Uncached:
    """The same interface with no cache but the tokens: every step runs `T5.decode` on each beam's whole prefix."""

    def __init__(self, model):
        self.model, self.encode, self.config = model, model.encode, model.config

    def init_cache(self, hidden, segment_ids, length):
        empty = jnp.zeros((len(segment_ids), length), jnp.int32)
        return Buffer(empty, empty > 0, empty[:, 0], hidden, None if hidden is None else segment_ids)

    def prefill(self, ids, segment_ids, prefix_mask, cache):
        width, lengths = ids.shape[1], segment_ids.sum(1)
        cache = cache._replace(
            tokens=cache.tokens.at[:, :width].set(ids),
            visible=cache.visible.at[:, :width].set(segment_ids > 0),
            prefix=lengths if prefix_mask is not None else jnp.zeros_like(lengths),
        )
        return self._logits(cache, cache.visible[:, None])[:, 0], cache

    def decode_step(self, ids, cache, index):
        logits, cache, _ = self.beam_step(ids[:, None], cache, index, cache.visible[:, None])
        return logits[:, 0], cache

    def beam_step(self, ids, cache, at, seen):
        seen = seen | (jnp.arange(seen.shape[2]) == at + jnp.arange(ids.shape[1])[:, None])
        tokens = jax.lax.dynamic_update_slice_in_dim(cache.tokens, ids, at, 1)
        cache = cache._replace(tokens=tokens, visible=cache.visible | seen.any(1))
        return self._logits(cache, seen), cache, seen

    def _logits(self, cache, seen):
        rows, beams, slots = seen.shape
        order = jnp.argsort(~seen, axis=-1, stable=True)  # a beam's own tokens, without gaps
        tokens = jnp.take_along_axis(jnp.repeat(cache.tokens[:, None], beams, 1), order, 2).reshape(-1, slots)
        lengths = seen.sum(-1).reshape(-1)
        place = jnp.arange(slots)[None]
        many = lambda x: None if x is None else jnp.repeat(x, beams, axis=0)  # noqa: E731
        prefix = place < many(cache.prefix)[:, None]
        decoded = self.model.decode(
            tokens, (place < lengths[:, None]).astype(jnp.int32), many(cache.hidden), many(cache.source),
            prefix_mask=prefix.astype(jnp.int32) if cache.hidden is None else None,
        )  # fmt: skip
        logits = self.model.logits(decoded)[jnp.arange(rows * beams), lengths - 1]
        return logits.reshape(rows, beams, -1)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("kind", ["encoder_decoder", "decoder_only", "causal"])
def test_cached_is_uncached(kind, how):
    architecture = "decoder_only" if kind == "causal" else kind
    config = config_of(architecture)
    model = registry.build_model(config, ("lm",), parameters(config))
    options = {"causal": True} if kind == "causal" else {}
    ids, real = inputs()
    found = jax.jit(lambda i, s: HOW[how](model, i, s, LENGTH, **options))(ids, real)
    slow = jax.jit(lambda i, s: HOW[how](Uncached(model), i, s, LENGTH, **options))(ids, real)
    np.testing.assert_array_equal(found, slow)
    assert len({tuple(row) for row in found.tolist()}) > 1, "the inputs matter"
    assert how != "sample" or (np.asarray(found) == EOS).any()


def test_the_prefix_sees_itself_only_where_it_should():
    """The two kinds of decoder alone are different models."""
    config = config_of("decoder_only")
    model = registry.build_model(config, ("lm",), parameters(config))
    run = lambda causal: jax.jit(lambda i, s: greedy(model, i, s, 4, causal=causal))(*inputs())  # noqa: E731
    assert (run(True) != run(False)).any()


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("architecture", ["encoder_decoder", "decoder_only"])
def test_eight_devices_give_the_tokens_of_one(architecture, how):
    config = config_of(architecture)
    params = parameters(config)
    ids, real = inputs()
    model = registry.build_model(config, ("lm",), params)
    expected = jax.jit(lambda i, s: HOW[how](model, i, s, LENGTH))(ids, real)

    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    abstract = registry.abstract_model(config, ("lm",))[1]
    names = registry.logical_axes(abstract)
    placed = {p: jax.device_put(x, sharding.named_sharding(mesh, names[p], x.shape)) for p, x in params.items()}
    rows = jax.NamedSharding(mesh, sharding.logical_to_mesh_axes(("batch",)))
    run = jax.jit(lambda p, i, s: HOW[how](registry.build_model(config, ("lm",), p), i, s, LENGTH))
    with sharding.use_mesh_and_rules(mesh, RULES):
        compiled = run.lower(placed, *(jax.device_put(x, rows) for x in (ids, real))).compile()
        found = compiled(placed, *(jax.device_put(x, rows) for x in (ids, real)))
    np.testing.assert_array_equal(found, expected)
    beams = 3 if how == "beam" else 1
    slots = beams * LENGTH if architecture == "encoder_decoder" else WIDTH + 1 + beams * (LENGTH - 1)
    assert f"f32[{ROWS // 4},2,{slots},8]" in compiled.as_text(), "the cache is split over rows and heads"
    for gathered in (f"f32[{ROWS},4,{slots},8]", f"f32[{ROWS},4,8,{slots}]"):
        assert gathered not in compiled.as_text(), "and nowhere gathered"


@pytest.mark.parametrize(("how", "architecture"), [("greedy", "encoder_decoder"), ("beam", "decoder_only")])
def test_bfloat16(how, architecture):
    """Tokens of the vocabulary, and where the first choice is clear the same first token as in float32."""
    config = config_of(architecture)
    params = parameters(config)
    model = lambda dtype: registry.build_model(config, ("lm",), params, compute=ComputeOptions(dtype=dtype))  # noqa: E731
    run = lambda dtype: jax.jit(lambda i, s: HOW[how](model(dtype), i, s, LENGTH))(*inputs())  # noqa: E731
    half, full = np.asarray(run(jnp.bfloat16)), np.asarray(run(jnp.float32))
    assert half.shape == (ROWS, LENGTH) and half.dtype == np.int32 and (half >= 0).all() and (half < V).all()
    assert (half[:, 0] == full[:, 0]).mean() >= 0.75
