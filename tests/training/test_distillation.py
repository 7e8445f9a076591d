"""Distillation: the losses of transformers' scripts, the same on every mesh, and no teacher in evaluations."""

from dataclasses import replace
from typing import Any

import jax
import numpy as np
import pytest

from bertjax.config.schema.distillation import Distillation
from bertjax.config.schema.training import MlmNspObjective, SpanQaObjective
from bertjax.objectives import registry
from bertjax.training import freezing
from bertjax.training.program import TrainProgram
from bertjax.training.step import compute_gradients, jit_eval_step, jit_train_step

MLM = MlmNspObjective(mlm_weight=2.0, nsp_weight=0)


def distilled(
    make_program: Any, objective: Any, rule: Distillation, *, layers: int = 3, **options: Any
) -> TrainProgram:
    """A program of two layers with a teacher of `layers`, on the same mesh."""
    program = make_program(objective, **options)
    heads = registry.teacher_heads(objective, rule)
    model = program.model.model_copy(update={"num_hidden_layers": layers})
    teacher = replace(make_program(objective, **options), model=model, heads=heads)
    return replace(program, objective=registry.build(objective, 1, rule), teacher=teacher)


def weights_of(teacher: TrainProgram) -> dict[str, jax.Array]:
    return teacher.initialize(jax.random.key(7))


def begin(program: TrainProgram) -> Any:
    groups = freezing.param_groups(program.abstract_params())
    return program.init_state(program.initialize(jax.random.key(1)), groups, jax.random.key(2))


def train(program: TrainProgram, batches: list[dict]) -> tuple[list[dict], dict[str, np.ndarray]]:
    state, found = begin(program), []
    step = jit_train_step(program, state, weights_of(program.teacher))
    for batch in batches:
        state, metrics = step(state, jax.device_put(batch, program.batch_sharding()))
        found.append({name: float(x) for name, x in metrics.items()})
    return found, jax.device_get(state.params)


# ---- the losses of transformers' scripts ----------------------------------------------------------------------------


def torch_bert(kind: str, params: dict[str, Any], model: Any) -> Any:
    """transformers' model with these parameters."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    from bertjax.interop import bert_names

    sizes = {name: getattr(model, name) for name in (
        "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "intermediate_size", "hidden_act",
        "max_position_embeddings", "layer_norm_eps",
    )}  # fmt: skip
    made = getattr(transformers, kind)(transformers.BertConfig(**sizes)).eval()
    heads = ("mlm",) if "MaskedLM" in kind else ("qa",)
    state = made.state_dict()
    for path, names in bert_names.BERT.tensors(model, heads).items():
        pieces = bert_names.to_hf(path, np.asarray(params[path]), len(names))
        state |= {name: torch.from_numpy(np.array(x)) for name, x in zip(names, pieces, strict=True)}
    state["cls.predictions.decoder.weight"] = state["bert.embeddings.word_embeddings.weight"]
    made.load_state_dict({name: x for name, x in state.items() if name in made.state_dict()})
    made.tie_weights()
    return made


def torch_gradients(made: Any, loss: Any, model: Any, heads: tuple[str, ...]) -> dict[str, np.ndarray]:
    from bertjax.interop import bert_names

    loss.backward()
    found = dict(made.named_parameters())
    zeros = lambda x: np.zeros(x.shape, np.float32) if x.grad is None else x.grad.numpy()  # noqa: E731
    return {
        path: bert_names.from_hf(path, [zeros(found[name]) for name in names])
        for path, names in bert_names.BERT.tensors(model, heads).items()
        if all(name in found for name in names)
    }


def our_gradients(program: TrainProgram, batch: dict) -> tuple[dict, dict, float]:
    state, teacher = begin(program), weights_of(program.teacher)
    run = jax.jit(lambda state, batch, teacher: compute_gradients(program, state, batch, teacher))
    grads, terms, loss = jax.device_get(run(state, batch, teacher))
    return grads, {name: float(term.loss / term.weight) for name, term in terms.items()}, float(loss)


def fields_for_torch(batch: dict) -> dict[str, Any]:
    torch = pytest.importorskip("torch")
    own = {"input_ids": "input_ids", "token_type_ids": "token_type_ids", "attention_mask": "segment_ids"}
    return {name: torch.from_numpy(np.minimum(batch[ours], 10**6).astype(np.int64)) for name, ours in own.items()}


@pytest.mark.parametrize("tokens", ["all", "masked"])
def test_mlm_losses_and_gradients_are_those_of_distiller_py(make_program, make_rows, tokens):
    """Distiller.step: KLDivLoss(batchmean) * T^2, CrossEntropyLoss(ignore_index=-100), CosineEmbeddingLoss."""
    torch = pytest.importorskip("torch")
    program = distilled(make_program, MLM, Distillation(teacher="t", temperature=2.0, tokens=tokens), dropout=0.0)
    batch = make_rows("pairs", 4)
    batch["masked_positions"] = np.stack([np.random.default_rng(i).permutation(4)[:3] for i in range(4)]).astype(
        np.int32
    )
    batch["masked_ids"], batch["masked_weights"] = batch["masked_ids"][:, :3], batch["masked_weights"][:, :3]
    grads, terms, loss = our_gradients(program, batch)

    state = begin(program)
    student = torch_bert("BertForMaskedLM", state.params, program.model)
    teacher = torch_bert("BertForMaskedLM", weights_of(program.teacher), program.teacher.model)
    inputs, labels = fields_for_torch(batch), torch.full((4, batch["input_ids"].shape[1]), -100)
    for row, places, ids, own in zip(
        labels, batch["masked_positions"], batch["masked_ids"], batch["masked_weights"], strict=True
    ):
        for place, token, weight in zip(places, ids, own, strict=True):
            row[place] = int(token) if weight else row[place]
    mine = student(**inputs, output_hidden_states=True)
    with torch.no_grad():
        theirs = teacher(**inputs, output_hidden_states=True)
    chosen = labels > -1 if tokens == "masked" else inputs["attention_mask"] > 0
    kd = torch.nn.KLDivLoss(reduction="batchmean")(
        torch.log_softmax(mine.logits[chosen] / 2.0, -1), torch.softmax(theirs.logits[chosen] / 2.0, -1)
    ) * 2.0**2  # fmt: skip
    mlm = torch.nn.CrossEntropyLoss(ignore_index=-100)(mine.logits.flatten(0, 1), labels.flatten())
    real = inputs["attention_mask"] > 0
    mine_hidden, their_hidden = mine.hidden_states[-1][real], theirs.hidden_states[-1][real]
    cosine = torch.nn.CosineEmbeddingLoss()(mine_hidden, their_hidden, torch.ones(len(mine_hidden)))
    total = 5.0 * kd + 2.0 * mlm + 1.0 * cosine

    for name, expected in {"kd": kd, "mlm": mlm, "cosine": cosine}.items():
        assert terms[name] == pytest.approx(expected.item(), rel=2e-5), name
    assert loss == pytest.approx(total.item(), rel=2e-5)
    wanted = torch_gradients(student, total, program.model, ("mlm",))
    assert len(wanted) > 20
    for path, value in wanted.items():
        np.testing.assert_allclose(grads[path], value, rtol=0, atol=2e-5, err_msg=path)


def test_span_loss_is_that_of_run_squad_w_distillation(make_program, make_rows):
    """The mean of start and end, KLDivLoss(batchmean) * T^2 each; rows without padding, whose tokens it counts too."""
    torch = pytest.importorskip("torch")
    rule = Distillation(teacher="t", temperature=3.0, kd_weight=0.5, cosine_weight=0)
    program = distilled(make_program, SpanQaObjective(), rule, dropout=0.0)
    batch = make_rows("span", 4)
    batch |= {"segment_ids": np.ones_like(batch["segment_ids"]), "span_weights": np.ones((4, 1), np.float32)}
    batch["input_ids"] = np.maximum(batch["input_ids"], 1)  # torch has no gradient for the embedding of padding, 0
    batch["positions"] = np.broadcast_to(np.arange(batch["input_ids"].shape[1], dtype=np.int32), (4, 32)).copy()
    grads, terms, loss = our_gradients(program, batch)

    student = torch_bert("BertForQuestionAnswering", begin(program).params, program.model)
    teacher = torch_bert("BertForQuestionAnswering", weights_of(program.teacher), program.teacher.model)
    inputs = fields_for_torch(batch)
    mine, theirs = student(**inputs), teacher(**inputs)
    divergence = torch.nn.KLDivLoss(reduction="batchmean")
    soft = lambda own, other: divergence(  # noqa: E731
        torch.log_softmax(own / 3.0, -1), torch.softmax(other.detach() / 3.0, -1)
    ) * 3.0**2  # fmt: skip
    kd = (soft(mine.start_logits, theirs.start_logits) + soft(mine.end_logits, theirs.end_logits)) / 2
    hard = sum(
        torch.nn.functional.cross_entropy(logits, torch.from_numpy(batch[name][:, 0].astype(np.int64))) / 2
        for logits, name in ((mine.start_logits, "start_positions"), (mine.end_logits, "end_positions"))
    )
    assert terms["kd"] == pytest.approx(kd.item(), rel=2e-5)
    assert loss == pytest.approx((0.5 * kd + hard).item(), rel=2e-5)
    for path, value in torch_gradients(student, 0.5 * kd + hard, program.model, ("qa",)).items():
        np.testing.assert_allclose(grads[path], value, rtol=0, atol=2e-5, err_msg=path)


# ---- meshes, micro-batches, evaluations -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def batches(make_rows) -> list[dict]:
    return [make_rows("pairs", 16, seed=seed) for seed in range(2)]


@pytest.fixture(scope="module")
def single(make_program, batches) -> tuple:
    return train(distilled(make_program, MLM, Distillation(teacher="t")), batches)


@pytest.mark.parametrize(
    ("mesh", "accum"),
    [
        ({"dcn": 2, "fsdp": 2, "tensor": 2}, 1),
        pytest.param({"data": 8}, 1, marks=pytest.mark.slow),
        pytest.param({"fsdp": 4, "tensor": 2}, 1, marks=pytest.mark.slow),
    ],
)
def test_a_mesh_changes_nothing(make_program, batches, single, mesh, accum):
    """With dropout in the model and none in its teacher, and where the step gathers by hand (`manual_axes`)."""
    program = distilled(make_program, MLM, Distillation(teacher="t"), grad_accum=accum, **mesh)
    assert bool(program.manual_axes) == ("dcn" in mesh)
    metrics, params = train(program, batches)
    for one, other in zip(metrics, single[0], strict=True):
        assert one == pytest.approx(other, abs=2e-5)
    for path, value in single[1].items():
        np.testing.assert_allclose(params[path], value, rtol=0, atol=2e-5, err_msg=path)


def test_micro_batches_on_a_mesh_change_nothing(make_program, batches):
    """One device in one batch against eight with two micro-batches, without dropout, whose bits they would change.

    The model has a next-sentence head, its teacher none.
    """
    rule, both = Distillation(teacher="t"), MlmNspObjective(mlm_weight=2.0)
    alone, expected = train(distilled(make_program, both, rule, dropout=0.0), batches[:1])
    program = distilled(make_program, both, rule, dropout=0.0, grad_accum=2, data=2, fsdp=2, tensor=2)
    metrics, params = train(program, batches[:1])
    assert metrics[0] == pytest.approx(alone[0], abs=2e-5) and {"kd_loss", "cosine_loss", "mlm_loss"} <= set(metrics[0])
    for path, value in expected.items():
        np.testing.assert_allclose(params[path], value, rtol=0, atol=2e-5, err_msg=path)


def test_an_evaluation_needs_no_teacher(make_program, batches):
    program = distilled(make_program, MLM, Distillation(teacher="t"))
    plain = make_program(MLM)
    params = plain.initialize(jax.random.key(1))
    found, expected = (jit_eval_step(one)(params, batches[0]) for one in (program, plain))
    assert found.keys() == expected.keys() == {"mlm"}
    assert float(found["mlm"].loss) == pytest.approx(float(expected["mlm"].loss), rel=1e-5)


def test_a_teacher_is_its_own_student(make_program, batches):
    """Equal models have no soft loss and the same predictions."""
    program = distilled(make_program, MLM, Distillation(teacher="t"), layers=2, dropout=0.0)
    state = begin(program)
    step = jit_train_step(program, state, {path: jax.numpy.array(x) for path, x in state.params.items()})
    _, metrics = step(state, jax.device_put(batches[0], program.batch_sharding()))
    assert abs(float(metrics["kd_loss"])) < 1e-5 and abs(float(metrics["cosine_loss"])) < 1e-5
    assert float(metrics["kd_accuracy"]) == 1 and float(metrics["mlm_loss"]) > 1


def test_flops_count_the_forward_pass_of_the_teacher(make_program, batches):
    fields = {name: (x.shape[1:], x.dtype) for name, x in batches[0].items()}
    plain, program = make_program(MLM), distilled(make_program, MLM, Distillation(teacher="t", tokens="masked"))
    groups = freezing.param_groups(plain.abstract_params())
    assert program.row_flops(fields, groups) - plain.row_flops(fields, groups) == program.teacher.row_flops(fields, ())
