"""The compiled loops of decoding: what a step does with the cache and the table of embeddings."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bertjax.config.schema.model import T5Config
from bertjax.models import registry
from bertjax.models.compute_options import ComputeOptions
from bertjax.models.decoding.beam import beam_search
from bertjax.models.decoding.sample import greedy

ROWS, WIDTH, LENGTH, BEAMS, V = 3, 12, 14, 2, 70
CONFIG = T5Config(vocab_size=V, d_model=16, d_kv=8, d_ff=20, num_layers=1, num_heads=5)
SLOTS = {"greedy": LENGTH, "beam": LENGTH * BEAMS}
OPCODE = re.compile(r"^ *(?:ROOT )?%?(\S+) = \w+\[([\d,]*)\]\S* ([\w-]+)\(", re.M)


class Reordering:
    """The model with caches that follow their rows, as where each beam has its own cache."""

    def __init__(self, model):
        self.model, self.config = model, model.config
        self.encode, self.init_cache = model.encode, model.init_cache

    def decode_step(self, ids, cache, index):
        return self.model.decode_step(ids, jax.tree.map(lambda x: x[jnp.argsort(ids)], cache), index)


def compiled(how: str, wrap=lambda model: model) -> str:
    compute = ComputeOptions(dtype=jnp.bfloat16)
    params = jax.eval_shape(lambda key: registry.init_params(CONFIG, ("lm",), 2, key), jax.random.key(0))

    def run(params, ids, real):
        inputs = wrap(registry.build_model(CONFIG, ("lm",), params, compute=compute)), ids, real, LENGTH
        return greedy(*inputs) if how == "greedy" else beam_search(*inputs, beam_size=BEAMS)

    rows = jax.ShapeDtypeStruct((ROWS, WIDTH), np.int32)
    return jax.jit(run).lower(params, rows, rows).compile().as_text()


def computation(text: str, name: str) -> str:
    start = re.search(rf"^%{re.escape(name)} ", text, re.M).start()
    return text[start : text.index("\n}", start)]


def made_in_loop(text: str, *dims: int) -> list[str]:
    """Opcodes in the loop that make an array with these dimensions, in any order; of a fusion, that of its root."""
    (name,) = [x for x in re.findall(r"body=%([\w.-]+)", text) if f"{LENGTH}]" in computation(text, x)]
    found = []
    for line in computation(text, name).split("\n"):
        made = OPCODE.search(line)
        if made and sorted(map(int, filter(None, made[2].split(",")))) == sorted(dims):
            root = line
            if made[3] == "fusion":
                fused = computation(text, re.search(r"calls=%([\w.-]+)", line)[1])
                root = fused[fused.index("  ROOT ") :]
            found.append(OPCODE.search(root)[3])
    return [x for x in found if x != "get-tuple-element"]


@pytest.mark.parametrize("how", ["greedy", "beam"])
def test_a_step_updates_the_caches_in_place(how):
    """No copy, conversion or transpose of a cache or of the table of embeddings in the loop's body."""
    text = compiled(how)
    shape = ROWS, CONFIG.num_heads, CONFIG.d_kv
    assert set(made_in_loop(text, *shape, SLOTS[how])) == {"dynamic-update-slice"}, "self-attention"
    assert not made_in_loop(text, *shape, WIDTH), "keys and values of the inputs are made before the loop"
    assert not made_in_loop(text, V, CONFIG.d_model), "and so is the table"


def test_a_copied_cache_is_seen():
    text = compiled("greedy", Reordering)
    shape = ROWS, CONFIG.num_heads, CONFIG.d_kv
    assert set(made_in_loop(text, *shape, SLOTS["greedy"])) > {"dynamic-update-slice"}
    assert made_in_loop(text, *shape, WIDTH)
