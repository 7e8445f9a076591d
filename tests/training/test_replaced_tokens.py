"""Replaced-token detection: losses and gradients of transformers' ELECTRA, sampling, meshes, stages and export."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats

from bertjax.cli.main import main
from bertjax.config.loading.load import build, load
from bertjax.config.schema.model import ElectraConfig
from bertjax.config.schema.pretraining import ReplacedTokensObjective
from bertjax.data.tokenizers.load import Tokenizer, build_wordpiece
from bertjax.errors import UserError
from bertjax.evaluation.evaluators.build import build_evaluators
from bertjax.evaluation.restore import restore
from bertjax.interop import hf_folder
from bertjax.models import registry
from bertjax.models.bert import flops
from bertjax.models.bert.generator import standalone_paths
from bertjax.objectives import registry as objectives
from bertjax.objectives import replaced_tokens
from bertjax.objectives.base import LossTerm
from bertjax.training import freezing, loop, step

V, S = 64, 32  # as the rows of conftest.py
MODEL = ElectraConfig(
    vocab_size=V, embedding_size=16, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64,
    max_position_embeddings=S, initializer_range=0.2, generator_hidden_size=0.5, generator_layers=0.5,
    hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
)  # fmt: skip
HEADS = ("generator", "discriminator")
OBJECTIVE = ReplacedTokensObjective()
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def masked_rows(make_rows: Any, count: int = 8, groups: int = 1, seed: int = 0) -> dict[str, np.ndarray]:
    """Rows with different masked positions in each, 0 among the padding of these, and [MASK] in the text."""
    batch, rng = make_rows("pairs", count, groups=groups, seed=seed), np.random.default_rng(seed)
    for row in range(count):
        real = np.flatnonzero(batch["segment_ids"][row])
        chosen = int(rng.integers(1, 6)) if row else 0
        places = np.sort(rng.choice(real, chosen, replace=False))
        batch["masked_positions"][row] = np.pad(places, (0, 5 - chosen))
        batch["masked_weights"][row] = np.arange(5) < chosen
        batch["masked_ids"][row] = np.pad(batch["input_ids"][row, places], (0, 5 - chosen))
        batch["input_ids"][row, places] = 4
    return batch


def initial(seed: int = 0, model: ElectraConfig = MODEL) -> dict[str, jax.Array]:
    """Random parameters, biases and norms too."""
    params = jax.jit(registry.init_params, static_argnums=(0, 1, 2))(model, HEADS, 2, jax.random.key(seed))
    rng = np.random.default_rng(seed)
    return {path: x + jnp.asarray(0.1 * rng.normal(size=x.shape), jnp.float32) for path, x in params.items()}


# ---- parity ---------------------------------------------------------------------------------------------------------


def folders(out: Path, params: dict[str, Any]) -> None:
    """The discriminator and the generator as folders of transformers."""
    backend = build_wordpiece({piece: i for i, piece in enumerate(PIECES)}, lowercase=True)
    tokenizer = Tokenizer(backend, "test")
    arrays = {path: np.asarray(x) for path, x in params.items()}
    generator = {path: arrays[here] for path, here in standalone_paths(arrays).items()}
    hf_folder.save_folder(out / "generator", generator, MODEL.generator, ("mlm",), tokenizer=tokenizer)
    own = {path: x for path, x in arrays.items() if not path.startswith("heads/generator/")}
    hf_folder.save_folder(out / "discriminator", own, MODEL, ("discriminator",), tokenizer=tokenizer)


def replaced_ids(batch: dict[str, np.ndarray], sampled: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """-> (ids with samples, original ids), by loops."""
    original = batch["input_ids"].copy()
    ids = original.copy()
    for row in range(len(ids)):
        for place, weight, gold, sample in zip(
            batch["masked_positions"][row], batch["masked_weights"][row], batch["masked_ids"][row], sampled[row],
            strict=True,
        ):  # fmt: skip
            if weight:
                original[row, place], ids[row, place] = gold, sample
    return ids, original


def torch_losses(out: Path, batch: dict[str, np.ndarray], sampled: np.ndarray) -> tuple[Any, Any, Any, Any]:
    """-> (generator, discriminator, MLM loss, RTD loss) of transformers with tied embeddings."""
    import torch
    import transformers

    generator = transformers.ElectraForMaskedLM.from_pretrained(out / "generator").eval()
    discriminator = transformers.ElectraForPreTraining.from_pretrained(out / "discriminator").eval()
    discriminator.electra.embeddings = generator.electra.embeddings
    mask = torch.tensor(batch["segment_ids"] > 0).long()
    types = torch.tensor(batch["token_type_ids"]).long()
    ids, original = replaced_ids(batch, sampled)
    labels = np.full_like(ids, -100)
    for row, places in enumerate(batch["masked_positions"]):
        real = places[batch["masked_weights"][row] > 0]
        labels[row, real] = original[row, real]
    about = {"attention_mask": mask, "token_type_ids": types}
    mlm = generator(torch.tensor(batch["input_ids"]).long(), **about, labels=torch.tensor(labels).long()).loss
    replaced = torch.tensor(ids != original).long()
    rtd = discriminator(torch.tensor(ids).long(), **about, labels=replaced).loss
    return generator, discriminator, mlm, rtd


def test_losses_and_gradients_are_those_of_torch(make_rows, tmp_path):
    pytest.importorskip("torch")
    params, batch, objective = initial(), masked_rows(make_rows), objectives.build(OBJECTIVE)
    folders(tmp_path, params)

    def total(params: dict[str, jax.Array]) -> tuple[jax.Array, Any]:
        terms = objective.losses(registry.build_model(MODEL, HEADS, params), batch, None)
        return objective.total_loss(terms, objective.normalizers(batch)), terms

    (loss, terms), grads = jax.jit(jax.value_and_grad(total, has_aux=True))(params)
    fields = (batch[name] for name in ("input_ids", "token_type_ids", "segment_ids", "positions", "masked_positions"))
    logits = registry.build_model(MODEL, HEADS, params).generator_logits(*map(jnp.asarray, fields))
    sampled = np.asarray(replaced_tokens.sample_tokens(logits, jax.random.key(replaced_tokens.EVALUATION_SEED)))

    generator, discriminator, mlm, rtd = torch_losses(tmp_path, batch, sampled)
    weight = {name: float(term.weight) for name, term in terms.items()}
    assert float(terms["mlm"].loss) / weight["mlm"] == pytest.approx(mlm.item(), abs=1e-4)
    assert float(terms["rtd"].loss) / weight["rtd"] == pytest.approx(rtd.item(), abs=1e-4)
    expected = mlm + 50 * rtd
    assert float(loss) == pytest.approx(expected.item(), abs=1e-3)
    expected.backward()
    named = {**dict(discriminator.named_parameters()), **dict(generator.named_parameters())}
    shared = {"embeddings/word/embedding": "electra.embeddings.word_embeddings.weight",
              "embeddings/norm/scale": "electra.embeddings.LayerNorm.weight",
              "embeddings/position/embedding": "electra.embeddings.position_embeddings.weight"}  # fmt: skip
    for path, name in shared.items():
        kept = slice(1 if "word" in path else 0, None)  # torch passes no gradient to padding_idx, where it is sampled
        theirs = named[name].grad.numpy()
        atol = 1e-4 * np.abs(theirs).max()
        np.testing.assert_allclose(grads[path][kept], theirs[kept], rtol=0, atol=atol, err_msg=path)
    inside = {
        "heads/generator/layers/0/mlp/output/kernel": (generator, "electra.encoder.layer.0.output.dense.weight"),
        "heads/generator/mlm/transform/kernel": (generator, "generator_predictions.dense.weight"),
        "layers/1/mlp/intermediate/kernel": (discriminator, "electra.encoder.layer.1.intermediate.dense.weight"),
        "embeddings/project/kernel": (discriminator, "electra.embeddings_project.weight"),
        "heads/discriminator/output/kernel": (discriminator, "discriminator_predictions.dense_prediction.weight"),
    }
    for path, (model, name) in inside.items():
        theirs = dict(model.named_parameters())[name].grad.numpy().T
        np.testing.assert_allclose(grads[path], theirs, rtol=0, atol=1e-4 * np.abs(theirs).max(), err_msg=path)


def test_scores_of_the_discriminator(make_rows):
    """Precision, recall and accuracy against counts by loops, and only from non-padding tokens."""
    params, batch, objective = initial(3), masked_rows(make_rows, seed=1), objectives.build(OBJECTIVE)
    model = registry.build_model(MODEL, HEADS, params)
    found = step.loss_metrics(jax.jit(lambda batch: objective.losses(model, batch, None))(batch))
    fields = [jnp.asarray(batch[n]) for n in ("input_ids", "token_type_ids", "segment_ids", "positions")]
    logits = model.generator_logits(*fields, jnp.asarray(batch["masked_positions"]))
    sampled = np.asarray(replaced_tokens.sample_tokens(logits, jax.random.key(replaced_tokens.EVALUATION_SEED)))
    ids, original = replaced_ids(batch, sampled)
    scores = np.asarray(model.heads.discriminator(model.encode(jnp.asarray(ids), *fields[1:])))
    said = scores > 0
    real, replaced = batch["segment_ids"] > 0, ids != original
    assert float(found["rtd_accuracy"]) == pytest.approx((said == replaced)[real].mean())
    assert float(found["rtd_precision"]) == pytest.approx(replaced[real & said].mean())
    assert float(found["rtd_recall"]) == pytest.approx(said[real & replaced].mean())
    assert float(found["rtd_positives"]) == pytest.approx(replaced[real].mean())
    assert 0 < replaced.sum() <= batch["masked_weights"].sum()
    high, low = scores[real & replaced][:, None], scores[real & ~replaced]
    assert float(found["rtd_auc"]) == pytest.approx(((high > low) + (high == low) / 2).mean(), abs=5e-3)


@pytest.mark.parametrize(
    ("scores", "positive", "area"),
    [([3.0, -2.0, 0.5], [1, 0, 1], 1.0), ([3.0, -2.0, 0.5], [0, 1, 0], 0.0), ([1.0, 1.0], [1, 0], 0.5),
     ([99.0, -99.0, 0.0, 0.0], [1, 0, 1, 0], 0.875), ([1.0, 2.0], [0, 0], 0.5)],
)  # fmt: skip
def test_the_area_under_the_roc_curve(scores, positive, area):
    given = jnp.array([scores]), jnp.array([positive], bool), jnp.ones((1, len(scores)))
    counts = replaced_tokens._weights_by_score(*given)
    zero = jnp.float32(0)
    term = LossTerm(zero, zero, jnp.float32(1), positives=jnp.zeros(3), by_score=counts)
    assert float(step.loss_metrics({"rtd": term})["rtd_auc"]) == pytest.approx(area)


def test_padding_of_masked_positions_replaces_nothing():
    batch = {"masked_positions": jnp.asarray([[0, 2, 0, 0]]), "masked_weights": jnp.asarray([[1.0, 1.0, 0.0, 0.0]])}
    found = replaced_tokens.put_tokens(jnp.asarray([[9, 8, 7, 6]]), batch, jnp.asarray([[1, 2, 3, 4]]))
    assert found.tolist() == [[1, 8, 2, 6]]


# ---- sampling -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_samples_have_the_distribution_of_the_softmax(temperature):
    """Chi-square of 40,000 samples over 12 tokens, with a fixed key."""
    logits = jnp.asarray(np.random.default_rng(0).normal(size=12) * 1.5, jnp.float32)
    many = jnp.broadcast_to(logits, (200, 200, 12))
    sampled = replaced_tokens.sample_tokens(many, jax.random.key(5), temperature)
    counts = np.bincount(np.asarray(sampled).ravel(), minlength=12)
    expected = np.asarray(jax.nn.softmax(logits / temperature), np.float64)
    assert stats.chisquare(counts, expected / expected.sum() * counts.sum()).pvalue > 0.01
    other = replaced_tokens.sample_tokens(many, jax.random.key(6), temperature)
    assert (np.asarray(other) != np.asarray(sampled)).mean() > 0.3


def test_an_unlikely_token_is_sampled_as_often_as_it_should():
    """One token in 2,000, which needs the tail of the noise, and never one with a probability of 1e-13."""
    logits = jnp.asarray([0.0, np.log(1 / 2000), -30.0], jnp.float32)
    sampled = replaced_tokens.sample_tokens(jnp.broadcast_to(logits, (1000, 400, 3)), jax.random.key(1))
    counts = np.bincount(np.asarray(sampled).ravel(), minlength=3)
    assert abs(counts[1] - 200) < 4 * 200**0.5 and counts[2] == 0


# ---- meshes ---------------------------------------------------------------------------------------------------------

MESHES = {
    "data2_fsdp2_tensor2": {"data": 2, "fsdp": 2, "tensor": 2},
    "fsdp4_tensor2": {"fsdp": 4, "tensor": 2},
    "data8": {"data": 8},
}


def trained(program: Any, batches: list[dict]) -> tuple[list[dict[str, float]], dict[str, np.ndarray]]:
    groups = freezing.param_groups(program.abstract_params())
    state = program.init_state(program.initialize(jax.random.key(1)), groups, jax.random.key(2))
    run, found = step.jit_train_step(program, state), []
    for batch in batches:
        state, metrics = run(state, jax.device_put(batch, program.batch_sharding()))
        found.append({name: float(x) for name, x in metrics.items()})
    return found, jax.device_get(state.params)


@pytest.fixture(scope="module")
def single(make_program, make_rows) -> Any:
    kept: dict[int, tuple] = {}

    def get(accumulate: int) -> tuple:
        if accumulate not in kept:
            batches = [masked_rows(make_rows, 16, groups=2, seed=seed) for seed in range(3)]
            kept[accumulate] = (batches, *trained(make_program(OBJECTIVE, model=MODEL, grad_accum=accumulate), batches))
        return kept[accumulate]

    return get


@pytest.mark.parametrize(
    ("mesh", "accumulate", "more"),
    [
        ("data2_fsdp2_tensor2", 2, {}),
        pytest.param("fsdp4_tensor2", 1, {}, marks=pytest.mark.slow),
        pytest.param("data8", 1, {"segments": (2,)}, marks=pytest.mark.slow),
        pytest.param("data2_fsdp2_tensor2", 1, {"rules": {"sequence": "tensor"}}, marks=pytest.mark.slow),
    ],
)
def test_a_mesh_changes_nothing(make_program, single, mesh, accumulate, more):
    """Packed rows with dropout: samples and dropout bits have global coordinates."""
    batches, expected, params = single(accumulate)
    program = make_program(OBJECTIVE, model=MODEL, grad_accum=accumulate, **more, **MESHES[mesh])
    found, after = trained(program, batches)
    for one, other in zip(found, expected, strict=True):
        for name in ("loss", "mlm_loss", "rtd_loss", "rtd_accuracy", "rtd_positives"):
            assert one[name] == pytest.approx(other[name], abs=2e-4 if name == "loss" else 1e-5), name
    for path, x in params.items():
        if not path.endswith("qkv/bias"):  # the bias of keys has a gradient of rounding
            np.testing.assert_allclose(after[path], x, rtol=0, atol=5e-4, err_msg=path)


def test_flops_count_both_networks(make_program, make_rows):
    program = make_program(OBJECTIVE, model=MODEL)
    fields = {name: (x.shape[1:], x.dtype) for name, x in masked_rows(make_rows).items()}
    groups = freezing.param_groups(program.abstract_params())
    own = MODEL.generator
    encoders = flops.encoder_flops(MODEL, S) + flops.encoder_flops(own, S) + 2 * 32 * 33 * S
    projections = 2 * 16 * 32 * S  # the generator is as wide as the embeddings
    assert program.row_flops(fields, groups) == 3 * (encoders + projections + flops.head_flops(own, 5))
    assert (own.hidden_size, own.num_attention_heads, own.intermediate_size, own.num_hidden_layers) == (16, 2, 32, 1)


def test_sizes_of_the_papers_generators():
    """Table 6 of the paper: a quarter of small (64, one head, 256), a third of base (256, 4, 1024)."""
    base = ElectraConfig(embedding_size=768, hidden_size=768, num_attention_heads=12, intermediate_size=3072,
                         generator_hidden_size=0.33333)  # fmt: skip
    found = [(one.hidden_size, one.num_attention_heads, one.intermediate_size, one.num_hidden_layers)
             for one in (ElectraConfig().generator, base.generator)]  # fmt: skip
    assert found == [(64, 1, 256, 12), (256, 4, 1024, 12)]
    assert "generator_layers" not in ElectraConfig().model_dump() and base.generator.embedding_size == 768


# ---- runs -----------------------------------------------------------------------------------------------------------

CONFIG = """\
extends: {tiny}
model: {{family: electra, embedding_size: 8, hidden_size: 16, num_attention_heads: 2, generator_hidden_size: 0.5}}
run: {{root: {root}, name: rtd, checkpoint: {{save_every: 100}}}}
tasks:
  masked: {{source: {{kind: text, files: [text.txt], layout: sentences}}, preprocess: &rows {{sequence_length: 32,
    next_sentence: false, pack: true, mask_token_prob: 0.85, random_token_prob: 0}}}}
stages:
  - {{name: pretrain, data: masked, objective: {{kind: replaced_tokens}}, steps: 4, batch_size: 8,
     optimizer: {{learning_rate: 5e-3}},
     evaluate: [{{kind: mlm, data: {{source: {{kind: text, files: [more.txt], layout: sentences}},
       preprocess: *rows}}}}]}}
  - {{name: qa, data: questions, objective: {{kind: span_qa}}, steps: 2, batch_size: 8, trainable: gradual,
     optimizer: {{learning_rate: 5e-3}}, evaluate: []}}
"""


@pytest.fixture(scope="module")
def run(tiny_project, tmp_path_factory, once) -> Path:
    home = tmp_path_factory.mktemp("rtd")
    for name in ("text.txt", "more.txt", "train.json", "heldout.json"):
        (home / name).symlink_to(tiny_project / name)
    (home / "c.yaml").write_text(CONFIG.format(tiny=tiny_project / "tiny.yaml", root=home / "runs"))
    config = load(home / "c.yaml")
    with once():
        loop.train(config, home, build_evaluators)
    return config.run_dir


def test_a_run_logs_both_networks_and_carries_them_on(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    logged = next(line for line in lines if "rtd_loss" in line)
    assert {"mlm_loss", "mlm_accuracy", "rtd_accuracy", "rtd_precision", "rtd_recall", "rtd_positives"} <= logged.keys()
    scores = next(line["scores"] for line in lines if "scores" in line)
    assert {"mlm_perplexity", "rtd_loss", "rtd_recall"} <= scores.keys()
    starts = {line["stage"]: line["init"] for line in lines if line.get("event") == "start"}
    assert starts["qa"].endswith("carried on, not trained here: heads/discriminator, heads/generator")
    before, after = (restore(run, stage=stage).params for stage in ("pretrain", "qa"))
    inside = [path for path in before if path.startswith(("heads/generator/", "heads/discriminator/"))]
    assert len(inside) > 20 and all(np.array_equal(before[path], after[path]) for path in inside)


def test_export_of_either_network(run, tmp_path, capsys):
    stage = str(next((run / "checkpoints").glob("*pretrain")))
    assert main(["export", stage, str(tmp_path / "discriminator")]) == 0
    assert "heads/generator" in "".join(capsys.readouterr())
    assert main(["export", stage, str(tmp_path / "generator"), "--head", "generator"]) == 0
    configs = {name: json.loads((tmp_path / name / "config.json").read_text())
               for name in ("generator", "discriminator")}  # fmt: skip
    assert configs["discriminator"]["architectures"] == ["ElectraForPreTraining"]
    assert configs["generator"]["architectures"] == ["ElectraForMaskedLM"]
    assert (configs["generator"]["hidden_size"], configs["discriminator"]["hidden_size"]) == (8, 16)
    assert not any(name.startswith("generator_") for config in configs.values() for name in config)
    capsys.readouterr()
    assert main(["predict", "fill-mask", str(tmp_path / "generator"), "The dog [MASK] near the barn."]) == 0
    assert main(["export", str(run), str(tmp_path / "again"), "--head", "generator"]) == 0  # carried
    assert (tmp_path / "again/config.json").read_text() == (tmp_path / "generator/config.json").read_text()
    capsys.readouterr()
    assert main(["export", stage, str(tmp_path / "no"), "--head", "qa"]) == 2
    assert "has no head 'qa'; --head can be generator, discriminator" in capsys.readouterr().err


# ---- what does not fit ----------------------------------------------------------------------------------------------

STAGE = {"name": "s", "steps": 1, "objective": {"kind": "replaced_tokens"},
         "data": {"source": {"kind": "text", "files": ["a.txt"]}}}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"model": {"family": "bert"}}, "not for a bert model"),
        ({"stages": [STAGE | {"objective": {"kind": "replaced_tokens", "temperature": 0}}]}, "temperature"),
        ({"model": {"family": "electra", "generator_layers": 0}}, "generator_layers"),
        ({"stages": [STAGE | {"data": STAGE["data"] | {"preprocess": {"mask_token_prob": 0.95}}}]}, "add up to"),
    ],
)
def test_options_that_do_not_fit_are_refused(change, said):
    with pytest.raises(UserError, match=said):
        build({"model": {"family": "electra"}, "stages": [STAGE]} | change)
