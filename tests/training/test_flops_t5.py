"""T5's FLOPs against closed forms worked out by hand and against the compiler's count of the real model."""

import jax
import jax.numpy as jnp
import pytest

from bertjax.config.schema.model import T5Config
from bertjax.models import registry
from bertjax.models.peft_options import PeftOptions
from bertjax.models.t5 import flops
from bertjax.models.t5.model import shift_right
from bertjax.training.freezing import param_group

BASE = T5Config(d_model=768, d_ff=3072, num_layers=12, num_heads=12)


def test_base_by_hand() -> None:
    """6 N per token with N the weights that multiply it, and 12 x the attended pairs x 768 a layer."""
    S, T, D = 512, 114, 768
    encoder, decoder, cross = 84_934_656, 84_934_656 + 12 * 2 * D * D, 12 * 2 * D * D
    weights = 6 * (encoder * S + decoder * T + cross * S + D * 32128 * T)
    attention = 12 * 12 * D * (S * S + T * (T + 1) // 2 + S * T)
    assert flops.train_flops(BASE, S, T) == weights + attention


def test_the_decoder_alone_by_hand() -> None:
    T, D = 512, 768
    alone = BASE.model_copy(update={"architecture": "decoder_only"})
    expected = 6 * T * (84_934_656 + D * 32128) + 12 * 12 * D * T * (T + 1) // 2
    assert flops.train_flops(alone, 0, T) == expected


SMALL = T5Config(
    vocab_size=512, d_model=128, d_kv=32, d_ff=384, num_layers=2, num_heads=4, dropout_rate=0.0,
    feed_forward_proj="gated-gelu", tie_word_embeddings=False,
)  # fmt: skip
TOP = {"decoder/layers/1", "decoder/layers/1/norms", "heads"}
ADAPTERS = {f"{stack}/layers/{i}/adapter" for stack in ("encoder", "decoder") for i in range(2)}


WITH_ADAPTERS = PeftOptions(adapter_size=16)
WITH_LORA = PeftOptions(lora_rank=8, lora_targets=("query", "value", "mlp_gate", "mlp_output"))


@pytest.mark.parametrize(
    ("groups", "peft"),
    [
        *(
            (groups, WITH_ADAPTERS)
            for groups in (None, {"heads"}, TOP, TOP | {"encoder/layers/1"}, TOP | {"embeddings"})
        ),
        (ADAPTERS, WITH_ADAPTERS),
        ({group.replace("adapter", "lora") for group in ADAPTERS}, WITH_LORA),
    ],
    ids=["all", "head", "top decoder layer", "top layers", "embeddings and top", "adapters", "lora"],
)
def test_agrees_with_xla(groups, peft) -> None:
    """What is frozen is an argument without a gradient; the compiler counts elementwise work besides.

    It also sees that the lowest trained layers need no gradients of what they read, which the formula counts.
    """
    S, T = 48, 32
    graph = registry.abstract_model(SMALL, ("lm",), peft=peft)
    params = jax.eval_shape(lambda key: registry.init_params(SMALL, ("lm",), 2, key, peft), jax.random.key(0))
    trained = {p: x for p, x in params.items() if groups is None or param_group(p) in groups}
    frozen = {p: x for p, x in params.items() if p not in trained}
    inputs, targets = (jax.ShapeDtypeStruct((1, n), jnp.int32) for n in (S, T))

    def loss(trained, frozen, inputs, targets):
        model, ones = registry.merge(*graph, trained | frozen), jnp.ones_like
        hidden = model.encode(inputs, ones(inputs))
        decoded = model.decode(shift_right(targets, jnp.arange(T)[None]), ones(targets), hidden, ones(inputs))
        log_p = jax.nn.log_softmax(model.logits(decoded))
        return -jnp.take_along_axis(log_p, targets[..., None], axis=-1).sum()

    counted = jax.jit(jax.grad(loss)).lower(trained, frozen, inputs, targets).compile().cost_analysis()["flops"]
    formula = flops.train_flops(SMALL, S, T, groups=groups, peft=peft)
    lowest = (flops.encoder_layer(SMALL, S), flops.decoder_layer(SMALL, S, T))
    unneeded = 0 if groups is None else sum(cost.kernels + 2 * cost.attention for cost in lowest)
    assert formula - unneeded < counted < 1.1 * formula
