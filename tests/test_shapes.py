"""Shapes and dtypes of the arrays that public functions of models and objectives take and return, checked while traced.

The table gives each function's shapes in jaxtyping's notation; an axis name stands for one size within a call. The
functions run for every family under `jax.eval_shape`, which compiles nothing.
"""

# ruff: noqa: F722, F821  (shapes in tuple[...] are no forward references)
import importlib
import sys
from collections.abc import Callable, Iterator
from functools import partial
from types import FunctionType
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from beartype import beartype
from jaxtyping import Array, Bool, Float, Int, jaxtyped

from bertjax.config.schema.model import FAMILIES, BertConfig, DistilBertConfig, T5Config
from bertjax.config.schema.training import (
    OBJECTIVES,
    ClassificationObjective,
    MlmNspObjective,
    SpanQaObjective,
    TextToTextObjective,
)
from bertjax.models import registry
from bertjax.models.bert.heads import gather_positions
from bertjax.models.compute_options import ComputeOptions
from bertjax.models.decoding import beam, sample
from bertjax.objectives import registry as objectives
from bertjax.objectives.base import LossTerm

BS, BT, BSD, BTD = Int[Array, "B S"], Int[Array, "B T"], Float[Array, "B S D"], Float[Array, "B T D"]
LOGITS, TARGETS, LOSSES = Float[Array, "*N V"], Int[Array, "*N"], Float[Array, "*N"]
KV = tuple[Float[Array, "B S H K"], Float[Array, "B S H K"]]
CACHED = tuple[Float[Array, "B H K S"], Float[Array, "B H S K"]]
TABLE: dict[str, dict[str, Any]] = {
    "bertjax.models.attention:dot_product_attention": {
        "q_BSHK": Float[Array, "B S H K"], "k_BSHK": Float[Array, "B S H K"], "v_BSHK": Float[Array, "B S H K"],
        "segment_ids_BS": BS, "return": Float[Array, "B S H K"],
    },
    "bertjax.models.attention:make_attention_mask": {"segment_ids": BS, "return": Bool[Array, "B 1 _ S"]},
    "bertjax.models.vocab_parallel:embedding_lookup": {"table": Float[Array, "V D"], "ids": BS, "return": BSD},
    "bertjax.models.bert.model:Embeddings.__call__": {
        "input_ids": BS, "token_type_ids": BS, "positions": BS, "return": BSD,
    },
    "bertjax.models.bert.model:Layer.__call__": {"x_BSD": BSD, "segment_ids": BS, "return": BSD},
    "bertjax.models.bert.model:Bert.encode": {
        "input_ids": BS, "token_type_ids": BS, "segment_ids": BS, "positions": BS, "return": BSD,
    },
    "bertjax.models.bert.model:Bert.mlm_logits": {
        "hidden": BSD, "masked_positions": Int[Array, "B N"], "return": Float[Array, "B N V"],
    },
    "bertjax.models.bert.model:Bert.nsp_logits": {
        "hidden": BSD, "cls_positions": Int[Array, "B G"], "return": Float[Array, "B G 2"],
    },
    "bertjax.models.bert.model:Bert.qa_logits": {
        "hidden": BSD, "return": tuple[Float[Array, "B S"], Float[Array, "B S"]],
    },
    "bertjax.models.bert.model:Bert.class_logits": {
        "hidden": BSD, "cls_positions": Int[Array, "B G"], "return": Float[Array, "B G C"],
    },
    "bertjax.models.bert.heads:gather_positions": {
        "hidden_BSD": BSD, "positions_BN": Int[Array, "B N"], "return": Float[Array, "B N D"],
    },
    "bertjax.models.t5.model:shift_right": {"target_ids": BT, "target_positions": BT, "return": BT},
    "bertjax.models.t5.model:T5.encode": {"input_ids": BS, "segment_ids": BS, "return": BSD},
    "bertjax.models.t5.model:T5.decode": {
        "decoder_input_ids": BT, "target_segment_ids": BT, "hidden": BSD | None, "segment_ids": BS | None,
        "prefix_mask": BT | None, "return": BTD,
    },
    "bertjax.models.t5.model:T5.logits": {"decoded": Float[Array, "*N D"], "return": Float[Array, "*N V"]},
    "bertjax.models.t5.model:T5.decode_step": {
        "ids": Int[Array, "B"], "return": tuple[Float[Array, "B V"], Any],
    },
    "bertjax.models.t5.model:T5.prefill": {
        "ids": Int[Array, "B P"], "segment_ids": Int[Array, "B P"], "prefix_mask": Int[Array, "B P"] | None,
        "return": tuple[Float[Array, "B V"], Any],
    },
    "bertjax.models.t5.model:T5.beam_step": {
        "ids": Int[Array, "B K"], "seen": Bool[Array, "B K L"],
        "return": tuple[Float[Array, "B K V"], Any, Bool[Array, "B K L"]],
    },
    "bertjax.models.t5.attention:make_segment_mask": {
        "query_ids": Int[Array, "B Q"], "key_ids": BS, "return": Bool[Array, "B 1 Q S"],
    },
    "bertjax.models.t5.attention:make_decoder_mask": {
        "segment_ids": BT, "prefix_mask": BT | None, "return": Bool[Array, "B 1 T T"],
    },
    "bertjax.models.t5.attention:RelativePositionBias.__call__": {"return": Float[Array, "1 H Q S"]},
    "bertjax.models.t5.attention:Attention.keys_values": {"source_BSD": BSD, "return": KV},
    "bertjax.models.t5.attention:dot_product_attention": {
        "q_BQHK": Float[Array, "B Q H K"], "keys_values": KV, "bias": Float[Array, "_ H _ S"] | None,
        "visible": Bool[Array, "B 1 _ S"], "return": Float[Array, "B Q H K"],
    },
    "bertjax.models.t5.attention:Attention.to_cache": {"keys_values": KV, "return": CACHED},
    "bertjax.models.t5.attention:cached_attention": {
        "q_BQHK": Float[Array, "B Q H K"], "cached": CACHED, "bias": Float[Array, "_ H _ S"] | None,
        "visible": Bool[Array, "B 1 _ S"], "return": Float[Array, "B Q H K"],
    },
    "bertjax.models.decoding.sample:greedy": {"input_ids": BS, "segment_ids": BS, "return": Int[Array, "B L"]},
    "bertjax.models.decoding.sample:sample": {
        "input_ids": BS, "segment_ids": BS, "rows": Int[Array, "B"], "return": Int[Array, "B L"],
    },
    "bertjax.models.decoding.sample:argmax": {"logits": LOGITS, "return": TARGETS},
    "bertjax.models.decoding.sample:filter_logits": {"logits": Float[Array, "B V"], "return": Float[Array, "B V"]},
    "bertjax.models.decoding.beam:beam_search": {
        "input_ids": BS, "segment_ids": BS, "return": tuple[Int[Array, "B L"], Float[Array, "B"]],
    },
    "bertjax.objectives.base:cross_entropy": {"logits": LOGITS, "targets": TARGETS, "return": LOSSES},
    "bertjax.objectives.base:target_logits": {"logits": LOGITS, "targets": TARGETS, "return": LOSSES},
    "bertjax.objectives.base:is_correct": {"logits": LOGITS, "targets": TARGETS, "return": Bool[Array, "*N"]},
    "bertjax.objectives.base:weighted_sums": {
        "loss": Float[Array, "B N"], "right": Bool[Array, "B N"] | Float[Array, "B N"], "weights": Float[Array, "B N"],
        "return": LossTerm,
    },
    "bertjax.objectives.losses:normalize_per_sequence": {
        "weights": Float[Array, "B T"], "segment_ids": BT, "return": Float[Array, "B T"],
    },
}  # fmt: skip
ROWS, LENGTH, TARGET_LENGTH = 3, 12, 7
COMPUTE = ComputeOptions(dtype=jnp.float32)
SIZES = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 10, "vocab_size": 30}
BERT, DISTILBERT = BertConfig(**SIZES), DistilBertConfig(**SIZES, type_vocab_size=0)
T5 = T5Config(d_model=8, d_kv=4, d_ff=10, num_layers=2, num_decoder_layers=1, num_heads=2, vocab_size=30)
DECODER_ONLY = T5.model_copy(update={"architecture": "decoder_only", "tie_word_embeddings": False})


def with_shapes(function: FunctionType, shapes: dict[str, Any], called: set[str], name: str) -> Callable[..., Any]:
    """The function with these annotations, checked in every call."""
    copy = FunctionType(
        function.__code__, function.__globals__, function.__name__, function.__defaults__, function.__closure__
    )
    copy.__kwdefaults__, copy.__annotations__ = function.__kwdefaults__, shapes
    checked = jaxtyped(copy, typechecker=beartype)

    def call(*args: Any, **kwargs: Any) -> Any:
        called.add(name)
        return checked(*args, **kwargs)

    return call


@pytest.fixture(scope="module")
def called() -> Iterator[set[str]]:
    """Every function of the table checked, wherever it was imported; -> the names of those that were called."""
    names: set[str] = set()
    for section in (*OBJECTIVES.values(), *FAMILIES.values()):  # a module first imported below would keep the checks
        importlib.import_module(section.implementation.partition(":")[0])
    with pytest.MonkeyPatch.context() as patch:
        for place, shapes in TABLE.items():
            module_name, _, name = place.partition(":")
            owner: Any = importlib.import_module(module_name)
            *classes, name = name.split(".")
            for part in classes:
                owner = getattr(owner, part)
            original = getattr(owner, name)
            checked = with_shapes(original, shapes, names, place)
            owners = [owner] if classes else [m for key, m in sys.modules.items() if key.startswith("bertjax")]
            for where in [*owners, *([] if classes else [sys.modules[__name__]])]:
                if getattr(where, name, None) is original:
                    patch.setattr(where, name, checked)
        yield names


def ids(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.int32)


def weights(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


ENCODER = dict.fromkeys(("input_ids", "token_type_ids", "segment_ids", "positions"), ids(ROWS, LENGTH))
TEXT = {name: ids(ROWS, TARGET_LENGTH) for name in ("target_ids", "target_segment_ids", "target_positions")}
TEXT["target_weights"] = weights(ROWS, TARGET_LENGTH)
MASKED = {name: ids(ROWS, 4) for name in ("masked_positions", "masked_ids")} | {"masked_weights": weights(ROWS, 4)}


def encoder_batch(groups: int) -> dict[str, jax.ShapeDtypeStruct]:
    """A batch with the fields of all objectives of encoders; several groups: packed rows."""
    int_fields = ("cls_positions", "nsp_labels", "start_positions", "end_positions", "labels")
    found = ENCODER | MASKED | dict.fromkeys(int_fields, ids(ROWS, groups))
    return found | dict.fromkeys(("nsp_weights", "span_weights", "label_weights"), weights(ROWS, groups))


def trace(model: Any, objective: Any, batch: dict[str, jax.ShapeDtypeStruct], key: jax.Array | None) -> None:
    made = objectives.build(objective)

    def losses(params: Any, batch: Any, key: Any) -> Any:
        module = registry.build_model(model, made.heads, params, num_labels=made.num_labels, compute=COMPUTE)
        return made.total_loss(made.losses(module, batch, key), made.normalizers(batch))

    params = registry.abstract_params(model, made.heads, made.num_labels)
    assert jax.eval_shape(losses, params, batch, key).shape == ()


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("key", [None, jax.random.key(0)], ids=["evaluation", "dropout"])
@pytest.mark.parametrize("model", [BERT, DISTILBERT], ids=["bert", "distilbert"])
def test_objectives_of_encoders(model, key, groups, called):
    nsp = float(model.family == "bert")
    for objective in (MlmNspObjective(nsp_weight=nsp), SpanQaObjective(), ClassificationObjective(num_labels=3)):
        trace(model, objective, encoder_batch(groups), key)


@pytest.mark.parametrize("key", [None, jax.random.key(0)], ids=["evaluation", "dropout"])
def test_text_to_text(key, called):
    for factor in ("num_real_target_tokens", "average_per_sequence"):
        objective = TextToTextObjective(loss_normalizing_factor=factor)
        trace(T5, objective, TEXT | {name: ENCODER[name] for name in ("input_ids", "segment_ids")}, key)
        trace(DECODER_ONLY, objective, TEXT | {"prefix_mask": ids(ROWS, TARGET_LENGTH)}, key)


@pytest.mark.parametrize("model", [T5, DECODER_ONLY], ids=["encoder_decoder", "decoder_only"])
def test_decoding(model, called):
    ways: dict[str, Any] = {
        "greedy": sample.greedy,
        "sample": partial(sample.sample, key=jax.random.key(0), rows=jnp.arange(ROWS), top_k=5, top_p=0.9),
        "beam": partial(beam.beam_search, beam_size=2),
    }
    params = registry.abstract_params(model, ("lm",))
    for generate in ways.values():

        def run(params: Any, input_ids: Any, segment_ids: Any, generate: Any = generate) -> Any:
            return generate(registry.build_model(model, ("lm",), params), input_ids, segment_ids, max_new_tokens=4)

        jax.eval_shape(run, params, ids(ROWS, LENGTH), ids(ROWS, LENGTH))


def test_every_function_of_the_table_was_called(called):
    assert called == TABLE.keys()


def test_a_wrong_shape_or_dtype_is_found(called):
    with pytest.raises(Exception, match="positions_BN"):
        gather_positions(jnp.zeros((2, 5, 4)), jnp.zeros((3, 1), jnp.int32))
    with pytest.raises(Exception, match="positions_BN"):
        gather_positions(jnp.zeros((2, 5, 4)), jnp.zeros((2, 1)))
