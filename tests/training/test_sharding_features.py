"""Frozen features over eight devices, in micro-batches, kept or not: the same losses and parameters."""

from dataclasses import replace

import jax
import numpy as np
import pytest

from bertjax.config.schema.ladder_models import ElmoConfig, Word2VecConfig
from bertjax.config.schema.model import GptConfig
from bertjax.config.schema.training import ClassificationObjective, SpanQaObjective, Trainable
from bertjax.models.peft_options import PeftOptions
from bertjax.objectives.base import FEATURES
from bertjax.training import freezing
from bertjax.training.feature_cache.cache import feature_field, jit_encode
from bertjax.training.program import TrainProgram
from bertjax.training.step import jit_train_step

STEPS = 3
SEQUENCE = {"sequence": "tensor"}
SLOW = pytest.mark.slow
OTHERS = {
    "word2vec": Word2VecConfig(vocab_size=64, hidden_size=32),
    "elmo": ElmoConfig(vocab_size=64, hidden_size=32, projection_size=16, initializer_range=0.3),
    "gpt": GptConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
                     max_position_embeddings=32, initializer_range=0.1),
}  # fmt: skip


def run(program: TrainProgram, batches: list[dict], *, cached: bool) -> tuple[list[float], dict[str, np.ndarray]]:
    """-> (losses, the trained heads); the mixture starts uneven."""
    params = program.initialize(jax.random.key(1))
    if (mix := "heads/layer_mix/weights") in params:
        params[mix] = jax.device_put(np.linspace(-1, 1, params[mix].size, dtype=np.float32), params[mix].sharding)
    (episode,) = freezing.episodes(Trainable(kind="features"), freezing.param_groups(params), 10)
    assert episode.groups == ("heads",)
    kept = []
    if cached:
        encode = jit_encode(program)
        kept = [np.asarray(encode(params, jax.device_put(batch, program.batch_sharding()))) for batch in batches]
    state = program.init_state(params, episode.groups, jax.random.key(2))
    step, losses = jit_train_step(program, state), []
    for number, batch in enumerate(batches):
        if cached:
            fields = {name: (x.shape[1:], x.dtype) for name, x in batch.items()}
            assert feature_field(program, fields) == (kept[number].shape[1:], kept[number].dtype)
            batch = {name: x for name, x in batch.items() if name != "input_ids"} | {FEATURES: kept[number]}
        state, metrics = step(state, jax.device_put(batch, program.batch_sharding()))
        losses.append(float(metrics["loss"]))
    return losses, jax.device_get(state.params)


def compare(one: tuple, other: tuple) -> None:
    (expected, params), (found, others) = one, other
    assert len(set(expected)) == STEPS
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    for path, value in params.items():
        if path != "heads/qa/bias":  # its gradient is rounding: a span's softmax does not see a shift
            np.testing.assert_allclose(others[path], value, rtol=0, atol=2e-4, err_msg=path)


def classes(batch: dict, seed: int) -> dict:
    """Labels in place of spans."""
    rows, groups = batch["cls_positions"].shape
    kept = {name: x for name, x in batch.items() if "span" not in name and "start_" not in name and "end_" not in name}
    labels = np.random.default_rng(seed).integers(0, 2, (rows, groups)).astype(np.int32)
    return kept | {"labels": labels, "label_weights": batch["span_weights"]}


@pytest.mark.parametrize(
    ("objective", "layers", "mesh", "rules", "options"),
    [
        ("span", "weighted", {"data": 2, "fsdp": 2, "tensor": 2}, SEQUENCE, {"grad_accum": 2}),
        ("classes", "weighted", {"fsdp": 4, "tensor": 2}, {}, {"grad_accum": 2}),
        pytest.param("classes", "last", {"data": 8}, {}, {"segments": (4,)}, marks=SLOW),
        pytest.param("span", "sum_last_four", {"dcn": 2, "fsdp": 4}, {}, {}, marks=SLOW),
    ],
)
def test_kept_features_on_a_mesh_change_nothing(make_program, make_rows, objective, layers, mesh, rules, options):
    """Packed rows; the head has dropout, the encoder none."""
    batches = [make_rows("span", 16, groups=2, seed=seed) for seed in range(STEPS)]
    kind = SpanQaObjective() if objective == "span" else ClassificationObjective()
    if objective == "classes":
        batches = [classes(batch, seed) for seed, batch in enumerate(batches)]
    model = make_program(kind).model.model_copy(update={"num_hidden_layers": 4})
    peft = PeftOptions(feature_layers=layers)
    of = lambda **given: replace(make_program(kind, model=model, **given), peft=peft)  # noqa: E731
    shared = {name: value for name, value in options.items() if name == "grad_accum"}  # micro-batches have own masks
    one, many = of(**shared), of(rules=rules, **options, **mesh)
    expected = run(one, batches, cached=False)
    for program, cached in ((one, True), (many, False), (many, True)):
        compare(expected, run(program, batches, cached=cached))


@pytest.mark.parametrize("family", ["word2vec", "elmo", pytest.param("gpt", marks=SLOW)])
def test_kept_features_of_a_mesh_in_other_families(make_program, make_rows, family):
    """The summary of each example, which is at its [CLS], is what is kept and mixed."""
    batches = [classes(make_rows("span", 16, groups=2, seed=seed), seed) for seed in range(STEPS)]
    peft = PeftOptions(feature_layers="weighted")

    def of(**given: object) -> TrainProgram:
        program = make_program(ClassificationObjective(), model=OTHERS[family], grad_accum=2, **given)
        return replace(program, peft=peft)

    one, many = of(), of(data=2, fsdp=2, tensor=2)
    expected = run(one, batches, cached=False)
    for program, cached in ((one, True), (many, True)):
        compare(expected, run(program, batches, cached=cached))


def test_the_encoder_has_no_dropout_and_no_gradient(make_program, make_rows):
    """With `features` only the head's dropout is left: a head without any has the loss of an evaluation."""
    batch = make_rows("span", 8)
    heads = {}
    for layers in ("", "last"):
        program = replace(make_program(SpanQaObjective(), dropout=0.5), peft=PeftOptions(feature_layers=layers))
        params = program.initialize(jax.random.key(1))
        losses = lambda key, p=program, w=params: p.objective.losses(p.build_model(w), batch, key)["span"].loss  # noqa: E731
        heads[layers] = float(losses(None)), float(losses(jax.random.key(3)))
    assert heads["last"][0] == heads["last"][1] == heads[""][0] != heads[""][1]
