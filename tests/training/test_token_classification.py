"""Training on labelled words: the loss of transformers, scores, class names, files in and out."""

import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import bertjax
from bertjax.cli.main import main
from bertjax.config.loading.load import build
from bertjax.config.schema.model import BertConfig
from bertjax.config.schema.training import TokenClassificationObjective
from bertjax.evaluation.evaluators.build import build_evaluators
from bertjax.evaluation.metrics.entities import entity_scores
from bertjax.models import registry
from bertjax.objectives import registry as objectives
from bertjax.report.page import write_report
from bertjax.training import loop
from bertjax.training.checkpoint.reader import CheckpointReader
from bertjax.training.preflight import find_score_problems

NAMES, CITIES = "anna bob clara dan eve".split(), "paris london rome oslo".split()
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *NAMES, *CITIES, "met", "in", "new", ".", "smi", "##th"]
SIZES = {
    "vocab_size": 32, "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
    "max_position_embeddings": 16, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
}  # fmt: skip


def sentences(count: int, seed: int) -> str:
    rng, found = np.random.default_rng(seed), []
    for _ in range(count):
        one, other, city = rng.choice(NAMES), rng.choice(NAMES), rng.choice(CITIES)
        found.append(f"{one} B-PER\nsmith I-PER\nmet O\n{other} B-PER\nin O\nnew B-LOC\n{city} I-LOC\n. O\n")
    return "\n".join(found)


def stage(name: str, kind: str, data: dict, **options) -> dict:
    optimizer = {"kind": "adamw", "learning_rate": 1e-2}
    return {"name": name, "data": data, "objective": {"kind": kind} | options.pop("objective", {}), "steps": 40,
            "batch_size": 16, "optimizer": optimizer, **options}  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A classification, then entities, whose classifier is another."""
    home = tmp_path_factory.mktemp("run")
    (home / "vocab.txt").write_text("\n".join(PIECES) + "\n")
    (home / "train.conll").write_text(sentences(60, 0))
    (home / "dev.conll").write_text(sentences(12, 1))
    texts = [{"text": f"{name} met {name}", "label": "ab"[i % 2]} for i, name in enumerate(NAMES * 4)]
    (home / "texts.jsonl").write_text("".join(json.dumps(one) + "\n" for one in texts))
    words = {"kind": "token_labels", "sequence_length": 12}
    train = {"source": {"kind": "conll", "files": ["train.conll"]}, "preprocess": words | {"pack": True}}
    dev = {"source": {"kind": "conll", "files": ["dev.conll"]}, "preprocess": words}
    classes = {"source": {"kind": "jsonl", "files": ["texts.jsonl"]}, "preprocess": {"kind": "classify"}}
    classes["preprocess"]["sequence_length"] = 8
    config = build({
        "model": SIZES, "tokenizer": {"path": str(home / "vocab.txt")},
        "run": {"name": "r", "root": str(home / "runs"), "compute_dtype": "float32", "tensorboard": False,
                "compilation_cache_dir": None, "prepare_workers": 1},
        "stages": [
            stage("classes", "classification", classes, steps=1),
            stage("words", "token_classification", train, objective={"num_labels": 5},
                  evaluate=[{"kind": "token_classification", "name": "dev", "data": dev}]),
        ],
    })  # fmt: skip
    loop.train(config, home, build_evaluators)
    return config.run_dir


def test_a_small_model_learns_the_entities(run):
    folder = run / "evaluations/01-words"
    found = json.loads((folder / "dev.json").read_text())
    assert found["scores"]["f1"] > 90 and found["scores"]["accuracy"] > 90
    lines = (folder / "dev.predictions.conll").read_text().rstrip("\n").split("\n\n")
    columns = [[line.split("\t") for line in sentence.split("\n")] for sentence in lines]
    given = [one.split("\n") for one in (run.parents[1] / "dev.conll").read_text().rstrip("\n").split("\n\n")]
    assert [[f"{word} {tag}" for word, tag, _ in one] for one in columns] == given  # in order, no word is lost
    scores, details = entity_scores(
        [[t for _, t, _ in one] for one in columns], [[p for *_, p in one] for one in columns]
    )
    assert found["scores"] == pytest.approx(scores) and found["classes"] == details["classes"]
    assert found["classes"]["support"] == [12, 24] and found["words"]["names"] == ["O", "LOC", "PER"]
    assert "Words by type: dev" in write_report(run).read_text()


def test_class_names_belong_to_the_head_of_the_stage(run):
    meta = CheckpointReader(run / "checkpoints/01-words").meta()
    assert (meta["labels"], meta["num_labels"]) == (["B-LOC", "B-PER", "I-LOC", "I-PER", "O"], 5)
    assert (meta["heads"], meta["carried"]) == (["token_classifier"], [])  # not the classifier of texts
    first = CheckpointReader(run / "checkpoints/00-classes").meta()
    assert (first["labels"], first["heads"]) == (["a", "b"], ["classifier"])


def test_predictions_of_words_texts_and_files(run, tmp_path, capsys):
    model = bertjax.open(run, device="cpu")
    (found,) = model.tag(["Anna Smith met Bob in New Oslo."])
    assert [(one["label"], one["text"]) for one in found["entities"]] == [
        ("PER", "Anna Smith"), ("PER", "Bob"), ("LOC", "New Oslo"),
    ]  # fmt: skip
    (words,) = model.tag_words([["anna", "smith", "met", "bob"]])
    assert words["labels"] == ["B-PER", "I-PER", "O", "B-PER"] and min(words["scores"]) > 0.3
    source = run.parents[1] / "dev.conll"
    assert main(["predict", "tag", str(run), "--file", str(source), "--output", str(tmp_path / "out.conll")]) == 0
    lines = [line.split("\t") for line in (tmp_path / "out.conll").read_text().split("\n") if line]
    assert [f"{word} {tag}" for word, tag, _ in lines] == [line for line in source.read_text().split("\n") if line]


def test_folders_of_transformers_in_and_out(run, tmp_path):
    transformers, torch = pytest.importorskip("transformers"), pytest.importorskip("torch")
    assert main(["export", str(run), str(tmp_path / "hf")]) == 0
    config = json.loads((tmp_path / "hf/config.json").read_text())
    assert config["architectures"] == ["BertForTokenClassification"] and config["id2label"]["1"] == "B-PER"
    theirs, info = transformers.AutoModelForTokenClassification.from_pretrained(
        tmp_path / "hf", output_loading_info=True
    )  # fmt: skip
    assert not info["missing_keys"] and not info["unexpected_keys"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "hf")
    words = ["anna", "smith", "met", "bob", "in", "new"]  # one row, for both
    batch = tokenizer(words, is_split_into_words=True, return_tensors="pt")
    with torch.no_grad():
        expected = theirs.eval()(**batch).logits.softmax(-1).amax(-1)[0]
    first = [i for i, word in enumerate(batch.word_ids()) if word is not None and word not in batch.word_ids()[:i]]
    for path in (run, tmp_path / "hf"):  # the folder has no stage: the same words, one window
        (found,) = bertjax.open(path, device="cpu").tag_words([words])
        np.testing.assert_allclose(found["scores"], expected[first].numpy(), atol=1e-4)


@pytest.mark.parametrize(("architectures", "pooler", "head"), [
    (["BertForTokenClassification"], True, "token_classifier"), (None, False, "token_classifier"),
    (["BertForSequenceClassification"], True, "classifier"), (None, True, "classifier"),
])  # fmt: skip
def test_one_tensor_name_two_heads(tmp_path, architectures, pooler, head):
    """`architectures` decides, else the pooler, which transformers' class for tokens has not."""
    from hf_folders import bert_folder
    from safetensors.numpy import load_file, save_file

    from bertjax.interop import hf_folder

    folder = bert_folder(tmp_path / "f", ("classifier",), labels=["O", "B-X", "I-X"])
    tensors = load_file(folder / "model.safetensors")
    kept = {name: x for name, x in tensors.items() if pooler or "pooler" not in name}
    save_file(kept, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    config.pop("architectures")
    config |= {"architectures": architectures} if architectures else {}
    (folder / "config.json").write_text(json.dumps(config))
    found = hf_folder.read_classifier(folder)
    assert (found.head, found.outputs, found.names) == (head, 3, ("O", "B-X", "I-X"))


def test_the_loss_is_that_of_torch():
    torch = pytest.importorskip("torch")
    model = BertConfig(**SIZES)
    params = registry.init_params(model, ("token_classifier",), 5, jax.random.key(0))
    objective = objectives.build(TokenClassificationObjective(num_labels=5))
    rng = np.random.default_rng(0)
    labels = rng.integers(-1, 5, (3, 8))
    labels[labels < 0] = -100
    real = np.arange(8) < np.array([8, 5, 0])[:, None]  # the last row is after the end of the data: labels of 0
    labels[~real] = [-100 if row < 2 else 0 for row, _ in zip(*np.nonzero(~real), strict=True)]
    batch = {
        "input_ids": rng.integers(5, 20, (3, 8)), "token_type_ids": np.zeros((3, 8)), "segment_ids": real,
        "positions": np.broadcast_to(np.arange(8), (3, 8)), "token_labels": labels, "cls_positions": np.zeros((3, 1)),
    }  # fmt: skip
    batch = {name: jnp.asarray(x, jnp.int32) for name, x in batch.items()}
    module = registry.build_model(model, ("token_classifier",), params, num_labels=5)
    terms, divisors = objective.losses(module, batch, None), objective.normalizers(batch)
    fields = (batch[name] for name in ("input_ids", "token_type_ids", "segment_ids", "positions"))
    logits = torch.tensor(np.asarray(module.token_logits(module.encode(*fields)))[:2])
    expected = torch.nn.functional.cross_entropy(logits.reshape(-1, 5), torch.tensor(labels[:2]).reshape(-1))
    assert float(objective.total_loss(terms, divisors)) == pytest.approx(float(expected), rel=1e-5)
    assert float(terms["tag"].weight) == (labels[:2] >= 0).sum() == float(divisors["tag"])


@pytest.mark.parametrize(
    ("labels", "problems"),
    [
        (
            ["DET", "NOUN"],
            ["run.checkpoint.keep_best: evaluation 'dev' gives no score 'f1'; its scores are dev/accuracy"],
        ),
        (["O", "B-PER"], []),
        (None, []),
    ],
)
def test_parts_of_speech_have_no_f1_to_keep_the_best_of(labels, problems):
    words = {"kind": "token_labels", "sequence_length": 12} | ({"labels": labels} if labels else {})
    data = {"source": {"kind": "conll", "files": ["dev.conll"]}, "preprocess": words}
    evaluation = {"kind": "token_classification", "name": "dev", "data": data}
    config = build({
        "model": SIZES, "run": {"name": "r", "checkpoint": {"keep_best": "dev/f1"}},
        "stages": [stage("words", "token_classification", data, objective={"num_labels": 2}, evaluate=[evaluation])],
    })  # fmt: skip
    assert list(find_score_problems(config)) == problems
