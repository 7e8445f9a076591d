"""Sentence embeddings: losses of sentence-transformers, global negatives on a mesh, scores, files in and out."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

import bertjax
from bertjax.cli.main import main
from bertjax.config.loading.load import build
from bertjax.config.schema.model import FAMILIES, BertConfig
from bertjax.config.schema.training import SentenceEmbeddingObjective
from bertjax.errors import UserError
from bertjax.evaluation.evaluators.build import build_evaluators
from bertjax.interop import hf_folder, sentence_folder
from bertjax.models.registry import build_model, init_params
from bertjax.objectives import registry as objectives
from bertjax.report.page import write_report
from bertjax.training import freezing, loop, step

V, S, B = 40, 12, 6
MODEL = BertConfig(
    vocab_size=V, hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=40,
    max_position_embeddings=S, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
)  # fmt: skip
LOSSES: dict[str, dict[str, Any]] = {
    "ranking": {},
    "ranking, cls, both ways": {"pooling": "cls", "symmetric": True, "scale": 7.5},
    "ranking, lengths kept": {"normalize": False},
    "triplet": {"loss": "triplet", "margin": 0.1},
    "triplet, lengths kept": {"loss": "triplet", "normalize": False, "pooling": "cls"},
    "triplet, cosine": {"loss": "triplet", "distance": "cosine", "margin": 0.02},
    "cosine": {"loss": "cosine_similarity"},
}


def pair_rows(rows: int = B, texts: int = 3, *, length: int = S, vocabulary: int = V, seed: int = 0) -> dict:
    """Random rows as the preprocess kind `text_pairs` makes them; rows 0 and 3 have the same positive."""
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, length + 1, (rows, texts, 1))
    ids = rng.integers(1, vocabulary, (rows, texts, length))
    if rows > 3:
        ids[3, 1], lengths[3, 1] = ids[0, 1], lengths[0, 1]
    place = np.arange(length)
    real = place < lengths
    fields = {
        "input_ids": ids * real, "token_type_ids": 0 * ids, "positions": place * real,
        "segment_ids": real * (np.arange(texts)[:, None] + 1),
    }  # fmt: skip
    batch = {name: x.reshape(rows, -1).astype(np.int32) for name, x in fields.items()}
    batch["text_starts"] = np.broadcast_to(np.arange(texts, dtype=np.int32) * length, (rows, texts)).copy()
    batch["pair_weights"] = np.ones((rows, 1), np.float32)
    batch["scores"] = rng.uniform(0, 1, (rows, 1)).astype(np.float32)
    return batch


def total(objective: Any, model: Any, batch: dict) -> jax.Array:
    return objective.total_loss(objective.losses(model, batch, None), objective.normalizers(batch))


def gradients(config: Any, params: dict, batch: dict, model: BertConfig = MODEL) -> tuple[float, dict]:
    """(total loss, its gradients)."""
    objective = objectives.build(config)
    of = lambda params: total(objective, build_model(model, (), params), batch)  # noqa: E731
    loss, grads = jax.jit(jax.value_and_grad(of))(params)
    return float(loss), jax.device_get(grads)


# ---- the losses -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reference(tmp_path_factory) -> Any:
    """transformers' BertModel with random weights, and the folder that it is saved to."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    sizes = MODEL.model_dump(exclude={"family", "config_from", "position_init"})
    torch.manual_seed(3)
    model = transformers.BertModel(transformers.BertConfig(**sizes), add_pooling_layer=False).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn_like(weight) * (0.1 if weight.ndim == 1 else 0.4)
            weight.copy_(noise + (1.0 if name.endswith("LayerNorm.weight") else 0.0))
    return model, tmp_path_factory.mktemp("torch")


def torch_loss(model: Any, batch: dict, config: SentenceEmbeddingObjective) -> Any:
    """The formulas of sentence-transformers' modules and losses, as torch says them."""
    import torch
    import torch.nn.functional as F  # noqa: N812

    vectors = []
    for number in range(3):
        own = slice(number * S, (number + 1) * S)
        ids = torch.tensor(batch["input_ids"][:, own], dtype=torch.long)
        mask = torch.tensor(batch["segment_ids"][:, own] > 0).long()
        hidden = model(input_ids=ids, attention_mask=mask).last_hidden_state
        wide = mask[:, :, None].float()
        pooled = hidden[:, 0] if config.pooling == "cls" else (hidden * wide).sum(1) / wide.sum(1).clamp(min=1e-9)
        vectors.append(F.normalize(pooled, dim=1) if config.normalize else pooled)
    a, p, n = vectors
    if config.loss == "cosine_similarity":
        return F.mse_loss(F.cosine_similarity(a, p), torch.tensor(batch["scores"][:, 0]))
    if config.loss == "triplet":
        cosine = config.distance == "cosine"
        distance = lambda x, y: 1 - F.cosine_similarity(x, y) if cosine else (x - y).pow(2).sum(1).sqrt()  # noqa: E731
        return F.relu(distance(a, p) - distance(a, n) + config.triplet_margin).mean()
    cosines = lambda x, y: F.normalize(x, dim=1) @ F.normalize(y, dim=1).T * config.scale  # noqa: E731
    targets = torch.arange(len(a))
    loss = F.cross_entropy(cosines(a, torch.cat([p, n])), targets)
    return (loss + F.cross_entropy(cosines(p, a), targets)) / 2 if config.symmetric else loss


@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradients_are_those_of_torch(reference, name):
    import torch

    (model, folder), config = reference, SentenceEmbeddingObjective(**LOSSES[name])
    batch = pair_rows(seed=1)
    model.zero_grad()
    expected = torch_loss(model, batch, config)
    expected.backward()
    model.save_pretrained(folder / "weights")
    params = hf_folder.load_params(folder / "weights", MODEL)
    kept = {key: x.detach().clone() for key, x in model.named_parameters()}
    with torch.no_grad():  # a folder of gradients is read as one of weights
        for weight in model.parameters():
            weight.copy_(torch.zeros_like(weight) if weight.grad is None else weight.grad)
        model.save_pretrained(folder / "gradients")
        for key, weight in model.named_parameters():
            weight.copy_(kept[key])
    theirs = hf_folder.load_params(folder / "gradients", MODEL)
    loss, grads = gradients(config, params, batch)
    assert loss == pytest.approx(expected.item(), abs=1e-5) and loss > 0.01
    largest = max(np.abs(x).max() for x in theirs.values())
    assert grads.keys() == theirs.keys() and largest > 3e-3
    for path, x in theirs.items():
        np.testing.assert_allclose(grads[path], x, rtol=0, atol=min(1e-4, 2e-4 * largest), err_msg=path)


def test_rows_after_the_data_are_no_negatives():
    objective = objectives.build(SentenceEmbeddingObjective(symmetric=True))
    params = init_params(MODEL, (), 2, jax.random.key(0))
    batch = pair_rows()
    padded = {name: np.concatenate([x, np.zeros_like(x[:2])]) for name, x in batch.items()}
    term = jax.jit(lambda batch: objective.losses(build_model(MODEL, (), params), batch, None)["pair"])
    own, more = term(batch), term(padded)
    assert float(more.loss) == pytest.approx(float(own.loss), rel=1e-5) and np.isfinite(float(own.loss))
    assert (float(more.weight), float(more.correct)) == (B, float(own.correct))


def test_equal_texts_of_other_rows_stay_negatives():
    """As in sentence-transformers, whose sampler and not the loss avoids them: two equal rows share the probability."""
    batch = {name: np.repeat(x[:1], 2, axis=0) for name, x in pair_rows(texts=2).items()}
    params = init_params(MODEL, (), 2, jax.random.key(0))
    loss, _ = gradients(SentenceEmbeddingObjective(), params, batch)
    assert loss == pytest.approx(np.log(2), abs=1e-5)


@pytest.mark.parametrize(
    "family", [name if name in ("bert", "albert") else pytest.param(name, marks=pytest.mark.slow) for name in FAMILIES]
)
def test_every_encoder_family_trains(family):
    sizes = MODEL.model_dump(exclude={"family"}) | {"max_position_embeddings": S + 2}
    section = FAMILIES[family]
    if family not in SentenceEmbeddingObjective.families:
        with pytest.raises(UserError, match=f"not for a {family} model"):
            build({"model": {"family": family}, "tokenizer": {"kind": section.tokenizer}, "stages": [STAGE]})
        return
    own = {name: value for name, value in sizes.items() if name in section.model_fields}
    own |= {"type_vocab_size": 0} if family == "distilbert" else {}
    model = section(**own)
    params = init_params(model, (), 2, jax.random.key(0))
    loss, grads = gradients(SentenceEmbeddingObjective(pooling="cls"), params, pair_rows(texts=2), model)
    assert 0 < loss < 10 and all(np.isfinite(x).all() for x in grads.values())
    unused = {path for path, x in grads.items() if not x.any()}
    assert not {path for path in unused if not path.endswith("bias")}, unused


# ---- meshes and micro-batches ---------------------------------------------------------------------------------------

MESHES = {
    "data8": {"data": 8},
    "fsdp4_tensor2": {"fsdp": 4, "tensor": 2},
    "dcn2_fsdp2_tensor2": {"dcn": 2, "fsdp": 2, "tensor": 2},
    "data2_fsdp4": {"data": 2, "fsdp": 4},
}
STEPS = 3


def train(program: Any, batches: list[dict]) -> tuple[list[float], dict[str, np.ndarray]]:
    groups = freezing.param_groups(program.abstract_params())
    state = program.init_state(program.initialize(jax.random.key(1)), groups, jax.random.key(2))
    run, losses = step.jit_train_step(program, state), []
    for batch in batches:
        state, metrics = run(state, jax.device_put(batch, program.batch_sharding()))
        losses.append(float(metrics["loss"]))
    return losses, jax.device_get(state.params)


@pytest.fixture(scope="module")
def batches() -> list[dict]:
    return [pair_rows(16, length=16, vocabulary=64, seed=seed) for seed in range(STEPS)]


@pytest.fixture(scope="module")
def single(make_program, batches) -> tuple:
    return train(make_program(SentenceEmbeddingObjective(symmetric=True)), batches)


@pytest.mark.parametrize(
    "mesh",
    [
        "data8",
        "dcn2_fsdp2_tensor2",
        *(pytest.param(mesh, marks=pytest.mark.slow) for mesh in ("fsdp4_tensor2", "data2_fsdp4")),
    ],
)
def test_negatives_are_those_of_the_global_batch_on_any_mesh(make_program, single, batches, mesh):
    """Also where the step gathers by hand (`manual_axes`), and with dropout, whose bits have global coordinates."""
    program = make_program(SentenceEmbeddingObjective(symmetric=True), **MESHES[mesh])
    assert bool(program.manual_axes) == (mesh not in ("data8", "fsdp4_tensor2"))
    losses, params = train(program, batches)
    np.testing.assert_allclose(losses, single[0], rtol=0, atol=1e-5)
    for path, value in single[1].items():
        np.testing.assert_allclose(params[path], value, rtol=0, atol=2e-5, err_msg=path)
    assert len(set(losses)) == STEPS


def test_negatives_are_those_of_the_micro_batch(make_program, batches):
    """Micro-batch i has the rows i, i + N, ...; the loss is the mean of theirs."""
    config = SentenceEmbeddingObjective()
    losses, _ = train(make_program(config, grad_accum=2, dropout=0.0), batches[:1])
    program = make_program(config, dropout=0.0)
    params = program.initialize(jax.random.key(1))
    of = jax.jit(lambda batch: total(program.objective, program.build_model(params), batch))
    expected = np.mean([float(of({name: x[i::2] for name, x in batches[0].items()})) for i in range(2)])
    assert losses[0] == pytest.approx(expected, abs=1e-5)
    assert abs(expected - float(of(batches[0]))) > 0.1  # fewer negatives


@pytest.mark.slow
def test_micro_batches_are_the_same_on_a_mesh(make_program, batches):
    config = SentenceEmbeddingObjective()
    alone, _ = train(make_program(config, grad_accum=2), batches[:1])
    meshed, _ = train(make_program(config, grad_accum=2, data=4), batches[:1])
    assert meshed == pytest.approx(alone, abs=1e-5)


def test_flops_are_those_of_each_text_alone(make_program):
    program = make_program(SentenceEmbeddingObjective())
    fields = {name: (x.shape[1:], x.dtype) for name, x in pair_rows(2, 3, length=16).items()}
    alone = {"input_ids": ((16,), np.dtype(np.int32)), "text_starts": ((1,), np.dtype(np.int32))}
    groups = freezing.param_groups(program.abstract_params())
    assert program.row_flops(fields, groups) == 3 * program.row_flops(alone, groups)


# ---- runs -----------------------------------------------------------------------------------------------------------

WORDS = [a + b for a in "bdfgklmn" for b in "aeiou"]
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
PAIRS = {"kind": "text_pairs", "sequence_length": 10, "text_a": "question", "text_b": "answer"}
STAGE: dict[str, Any] = {
    "name": "pairs", "steps": 60, "batch_size": 16, "objective": {"kind": "sentence_embedding"},
    "optimizer": {"kind": "adamw", "learning_rate": 5e-3},
    "data": {"source": {"kind": "jsonl", "files": ["train.jsonl"]}, "preprocess": PAIRS},
}  # fmt: skip


def records(count: int, seed: int) -> str:
    """Questions whose answer has the same consonants with other vowels; the score is a random number."""
    rng, lines = np.random.default_rng(seed), []
    for _ in range(count):
        letters = rng.choice(list("bdfgklmn"), size=3, replace=False)
        question, answer = (" ".join(one + rng.choice(list("aeiou")) for one in letters) for _ in range(2))
        lines.append(json.dumps({"question": question, "answer": answer, "score": float(rng.integers(0, 6))}))
    return "\n".join(lines) + "\n"


def tiny(home: Path, name: str, stage: dict[str, Any]) -> Any:
    return build({
        "model": {**MODEL.model_dump(exclude={"family"}), "vocab_size": len(PIECES)},
        "tokenizer": {"path": str(home / "vocab.txt")},
        "run": {"name": name, "root": str(home / "runs"), "compute_dtype": "float32", "tensorboard": False,
                "compilation_cache_dir": None, "prepare_workers": 1},
        "stages": [stage],
    })  # fmt: skip


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("home")
    (home / "vocab.txt").write_text("\n".join(PIECES) + "\n")
    (home / "train.jsonl").write_text(records(400, 0))
    (home / "dev.jsonl").write_text(records(40, 1))
    return home


@pytest.fixture(scope="module")
def run(home, once) -> Path:
    dev = {"source": {"kind": "jsonl", "files": ["dev.jsonl"]}, "preprocess": PAIRS}
    scored = dev | {"preprocess": PAIRS | {"score": "score", "score_range": [0, 5]}}
    evaluate = [
        {"kind": "retrieval", "name": "dev", "data": dev, "batch_size": 16},
        {"kind": "sts", "name": "sts", "data": scored},
        {"kind": "loss", "name": "loss", "data": dev, "batch_size": 16},
    ]
    config = tiny(home, "r", STAGE | {"evaluate": evaluate})
    with once():
        loop.train(config, home, build_evaluators)
    return config.run_dir


def test_a_small_model_learns_to_find_answers(run, home):
    scipy = pytest.importorskip("scipy.stats")
    found = json.loads((run / "evaluations/00-pairs/dev.json").read_text())
    assert found["scores"]["accuracy@1"] > 60 and found["queries"] > 35  # 1 of 40 by chance
    dev = [json.loads(line) for line in (home / "dev.jsonl").read_text().splitlines()]
    model = bertjax.open(run, device="cpu")
    a, b = (model.embed([one[name] for one in dev]) for name in ("question", "answer"))
    nearest = [dev[n]["answer"] for n in (a @ b.T).argmax(1)]
    share = np.mean([one["answer"] == answer for one, answer in zip(dev, nearest, strict=True)])
    assert found["scores"]["accuracy@1"] == pytest.approx(100 * share, abs=1e-4)
    sts = json.loads((run / "evaluations/00-pairs/sts.json").read_text())
    cosines, scores = (a * b).sum(1), [one["score"] for one in dev]
    assert sts["scores"]["spearman"] == pytest.approx(100 * scipy.spearmanr(cosines, scores)[0], abs=1e-2)
    assert sts["scores"]["pearson"] == pytest.approx(100 * scipy.pearsonr(cosines, scores)[0], abs=1e-2)
    loss = json.loads((run / "evaluations/00-pairs/loss.json").read_text())
    assert loss["scores"].keys() == {"pair_loss", "pair_accuracy"}
    page = write_report(run).read_text()
    assert "accuracy@10" in page and "spearman" in page


def test_scores_that_are_all_equal_are_refused(run, tmp_path, capsys):
    record = {"question": "ba de", "answer": "be da", "score": 3}
    (tmp_path / "equal.jsonl").write_text(f"{json.dumps(record)}\n" * 4)
    data = {"source": {"kind": "jsonl", "files": [str(tmp_path / "equal.jsonl")]},
            "preprocess": PAIRS | {"score": "score", "score_range": [0, 5]}}  # fmt: skip
    evaluate = json.dumps([{"kind": "sts", "name": "equal", "data": data}])
    assert main(["evaluate", str(run), "--name", "equal", f"stages.pairs.evaluate={evaluate}"]) == 2
    assert "evaluation 'equal': all 4 scores are equal" in capsys.readouterr().err


def test_export_and_back(run, tmp_path, capsys):
    """Vectors of the run, of its folder, and of transformers with the mean written by hand."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    out = tmp_path / "out"
    assert main(["export", str(run), str(out)]) == 0
    listed = json.loads((out / "modules.json").read_text())
    assert [one["type"].rpartition(".")[2] for one in listed] == ["Transformer", "Pooling", "Normalize"]
    assert all((out / one["path"]).is_dir() for one in listed)
    pooling = json.loads((out / "1_Pooling/config.json").read_text())
    assert pooling["pooling_mode_mean_tokens"] and not pooling["pooling_mode_cls_token"]
    assert pooling["word_embedding_dimension"] == MODEL.hidden_size
    assert sentence_folder.read_modules(out) == sentence_folder.SentenceModules("mean", True, 10)
    assert "SentenceTransformer" in (out / "README.md").read_text()
    texts = ["ba de fi", "ma", " ".join(WORDS[:20])]  # the last one is cut as in training, to 10 with [CLS] and [SEP]
    own, again = (bertjax.open(place, device="cpu").embed(texts) for place in (run, out))
    np.testing.assert_allclose(again, own, atol=1e-6)
    tokenizer = transformers.AutoTokenizer.from_pretrained(out)
    batch = tokenizer(texts, padding=True, truncation=True, max_length=10, return_tensors="pt")
    with torch.no_grad():
        hidden = transformers.AutoModel.from_pretrained(out).eval()(**batch).last_hidden_state
    mask = batch["attention_mask"][:, :, None].float()
    theirs = torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=1)
    np.testing.assert_allclose(own, theirs.numpy(), atol=1e-5)
    said = capsys.readouterr().err
    assert "1 of 3 texts cut to 8 tokens, the length that the model was trained with" in said


def test_sentence_transformers_loads_the_export(run, tmp_path):
    library = pytest.importorskip("sentence_transformers")
    assert main(["export", str(run), str(tmp_path / "out")]) == 0
    texts = ["ba de fi", "ma", " ".join(WORDS[:20])]
    theirs = library.SentenceTransformer(str(tmp_path / "out"), device="cpu").encode(texts)
    np.testing.assert_allclose(bertjax.open(run, device="cpu").embed(texts), theirs, atol=1e-5)


@pytest.mark.parametrize(
    "trainable",
    [
        "lora",
        pytest.param("gradual", marks=pytest.mark.slow),
        pytest.param("adapters", marks=pytest.mark.slow),
    ],
)
def test_parts_of_the_model_train_from_a_run(run, home, once, trainable):
    """CLS vectors without normalization; predictions take both from the run."""
    objective = {"kind": "sentence_embedding", "pooling": "cls", "normalize": False}
    stage = STAGE | {"steps": 4, "init_from": str(run), "trainable": trainable, "objective": objective}
    config = tiny(home, trainable, stage)
    with once():
        loop.train(config, home, build_evaluators)
    model = bertjax.open(config.run_dir, device="cpu")
    found, texts = model.embed(["ba de"]), ["ba de"]
    np.testing.assert_allclose(found, model.embed(texts, pooling="cls", normalize=False), atol=1e-6)
    assert abs(np.linalg.norm(found) - 1) > 1e-2
    assert np.abs(found - bertjax.open(run, device="cpu").embed(texts, pooling="cls", normalize=False)).max() > 1e-5


# ---- what does not fit ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"objective": {"loss": "triplet"}}, "needs preprocess.negative"),
        ({"objective": {"loss": "cosine_similarity"}}, "needs preprocess.score"),
        ({"batch_size": 1}, "needs batch_size / grad_accum of 2 or more"),
        ({"objective": {"margin": 1}}, "margin is for loss: triplet"),
        ({"objective": {"loss": "triplet", "scale": 10}}, "scale is for loss: multiple_negatives"),
        ({"trainable": "head"}, "has no head to train"),
        ({"evaluate": [{"kind": "sts", "data": STAGE["data"]}]}, "needs data.preprocess.score"),
    ],
)
def test_options_that_do_not_fit_are_refused(change, said):
    change = {**change, "objective": {"kind": "sentence_embedding", **change.get("objective", {})}}
    with pytest.raises(UserError, match=said):
        build({"model": {}, "stages": [STAGE | change]})


def test_the_default_margin_is_one_that_distances_can_reach():
    triplet = lambda **options: SentenceEmbeddingObjective(loss="triplet", **options).triplet_margin  # noqa: E731
    assert (triplet(), triplet(normalize=False), triplet(margin=3)) == (0.5, 5, 3)


@pytest.mark.parametrize(
    ("config", "pooling", "notes"),
    [
        ({"pooling_mode": "cls", "embedding_dimension": 8}, "cls", 0),
        ({"pooling_mode_cls_token": False, "pooling_mode_mean_tokens": True}, "mean", 0),
        ({"pooling_mode": "max"}, "mean", 1),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": True}, "mean", 1),
    ],
)
def test_pooling_of_either_format_is_read(tmp_path, config, pooling, notes):
    (tmp_path / "1_Pooling").mkdir()
    (tmp_path / "1_Pooling/config.json").write_text(json.dumps(config))
    kinds = [("", "a.b.Transformer"), ("1_Pooling", "a.b.Pooling")]
    listed = [{"idx": n, "name": str(n), "path": path, "type": kind} for n, (path, kind) in enumerate(kinds)]
    (tmp_path / "modules.json").write_text(json.dumps(listed))
    found = sentence_folder.read_modules(tmp_path)
    assert found is not None and (found.pooling, found.normalize, len(found.notes)) == (pooling, False, notes)


def test_vectors_of_equal_texts_have_finite_gradients():
    batch = pair_rows()
    batch["input_ids"][:], batch["segment_ids"][:], batch["positions"][:] = 5, 1, np.tile(np.arange(S), 3)
    params = init_params(MODEL, (), 2, jax.random.key(0))
    loss, grads = gradients(SentenceEmbeddingObjective(loss="triplet", margin=1.0), params, batch)
    assert loss == pytest.approx(1.0) and all(np.isfinite(x).all() for x in grads.values())
