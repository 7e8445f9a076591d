"""The first losses of distilled runs against transformers, by objective and by what the teacher is."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hf_folders import BERT, T5_MODELS, bert_folder, t5_folder

import bertjax
from bertjax.cli.main import main
from bertjax.config.loading.load import build
from bertjax.config.schema.model import GptConfig
from bertjax.data.tokenizers import sentencepiece as spm
from bertjax.errors import UserError
from bertjax.evaluation.evaluators.build import build_evaluators
from bertjax.parallel import mesh
from bertjax.training import loop

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

TEXTS = ["a b", "word word c !", "d e f g h", "a", "b word", "c d a !", "h g", "e e e f"]
LABELS = ["no", "perhaps", "yes"]
T = 3.0
DISTILLATION = {"temperature": T, "kd_weight": 0.5, "cosine_weight": 0.25}
# weights of size 0.5, so that the models differ in what they predict
STUDENT = BERT.model_copy(
    update={
        "num_hidden_layers": 1,
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "initializer_range": 0.5,
    }
)
TEACHER = STUDENT.model_copy(update={"num_hidden_layers": 2})
T5 = T5_MODELS["1.0"].model_copy(update={"dropout_rate": 0.0})


@pytest.fixture(autouse=True)
def one_cpu(monkeypatch):
    monkeypatch.setattr(mesh, "all_devices", lambda: jax.devices()[:1])


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Path:
    """Texts with labels, words with labels, and folders of a student and of a teacher of another depth."""
    folder = tmp_path_factory.mktemp("teachers")
    records = [{"text": text, "label": LABELS[n % 3]} for n, text in enumerate(TEXTS)]
    (folder / "texts.jsonl").write_text("".join(f"{json.dumps(one)}\n" for one in records))
    words = ["".join(f"{word} {'O' if word == '!' else 'B-X'}\n" for word in text.split()) for text in TEXTS]
    (folder / "words.conll").write_text("\n".join(words))
    bert_folder(folder / "two_classes", ("classifier",), TEACHER, ["no", "yes"])
    for name, model in (("student", STUDENT), ("teacher", TEACHER)):
        bert_folder(folder / f"classifier_{name}", ("classifier",), model, LABELS)
        bert_folder(folder / f"token_classifier_{name}", ("token_classifier",), model, ["B-X", "O"])
    other = shutil.copytree(folder / "classifier_teacher", folder / "other_order") / "config.json"
    order = {"id2label": dict(enumerate(LABELS[::-1])), "label2id": {name: 2 - n for n, name in enumerate(LABELS)}}
    other.write_text(json.dumps(json.loads(other.read_text()) | order))
    return folder


CLASSIFY = {
    "data": {"source": {"kind": "jsonl", "files": ["texts.jsonl"]},
             "preprocess": {"kind": "classify", "sequence_length": 12, "labels": LABELS}},
    "objective": {"kind": "classification", "num_labels": 3},
}  # fmt: skip
TAG = {
    "data": {"source": {"kind": "conll", "files": ["words.conll"]},
             "preprocess": {"kind": "token_labels", "sequence_length": 12, "labels": ["B-X", "O"]}},
    "objective": {"kind": "token_classification", "num_labels": 2},
}  # fmt: skip
GENERATE = {
    "data": {"source": {"kind": "jsonl", "files": ["texts.jsonl"]},
             "preprocess": {"kind": "text_to_text", "sequence_length": 12, "target_length": 12, "inputs": "{text}",
                            "targets": "{label}"}},
    "objective": {"kind": "text_to_text"},
}  # fmt: skip


def train(home: Path, root: Path, name: str, model: Any, start: Path, **stage: Any) -> Path:
    """A run of one stage on all the data at once, in float32; -> its folder."""
    kind = "sentencepiece" if model.family == "t5" else "wordpiece"
    config = build({
        "model": model.model_dump(mode="json"), "tokenizer": {"kind": kind, "path": str(start)},
        "run": {"name": name, "root": str(root), "compute_dtype": "float32", "tensorboard": False, "log_every": 1,
                "compilation_cache_dir": None, "prepare_workers": 1},
        "stages": [{"name": "tune", "init_from": str(start), "steps": 1, "batch_size": len(TEXTS), **stage}],
    })  # fmt: skip
    loop.train(config, home, build_evaluators)
    return config.run_dir


def first_losses(run: Path) -> dict[str, float]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    (line,) = [line for line in lines if "kd_loss" in line]
    return {name: line[name] for name in line if name == "loss" or name.endswith("_loss")}


def soft_loss(mine: Any, theirs: Any) -> Any:
    """As transformers' distiller.py: logits [N, V] of the compared places."""
    divergence = torch.nn.functional.kl_div(
        torch.log_softmax(mine / T, -1), torch.softmax(theirs / T, -1), reduction="batchmean"
    )
    return divergence * T**2


def cosine_loss(mine: Any, theirs: Any, real: Any) -> Any:
    given = mine[real], theirs[real], torch.ones(int(real.sum()))
    return torch.nn.functional.cosine_embedding_loss(*given)


def torch_outputs(kind: str, folder: Path) -> tuple[Any, Any]:
    """(outputs of the model in a folder for the texts, which of their positions are tokens)."""
    inputs = transformers.AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="pt")
    model = getattr(transformers, f"AutoModelFor{kind}").from_pretrained(folder).eval()
    with torch.no_grad():
        return model(**inputs, output_hidden_states=True), inputs["attention_mask"] > 0


def assert_losses(found: dict[str, float], own: str, expected: dict[str, Any]) -> None:
    """`own` names the loss of the labels; the total has the weights of `DISTILLATION`."""
    assert expected["kd"] > 0.01 and expected["cosine"] > 0.01, "the models agree too much to tell"
    for name, value in expected.items():
        assert found[f"{name}_loss"] == pytest.approx(float(value), rel=1e-4), name
    total = expected[own] + DISTILLATION["kd_weight"] * expected["kd"]
    total += DISTILLATION["cosine_weight"] * expected["cosine"]
    assert found["loss"] == pytest.approx(float(total), rel=1e-3 if own == "target" else 1e-4)  # T5 has z-loss


@pytest.fixture(scope="module")
def classes() -> Any:
    return torch.tensor([n % 3 for n in range(len(TEXTS))])


def class_losses(home: Path, logits: Any, hidden: Any, classes: Any) -> dict[str, Any]:
    """The losses of the student in a folder, with these logits [N, 3] and last states of the teacher."""
    mine, real = torch_outputs("SequenceClassification", home / "classifier_student")
    return {
        "label": torch.nn.functional.cross_entropy(mine.logits, classes),
        "kd": soft_loss(mine.logits, logits),
        "cosine": cosine_loss(mine.hidden_states[-1], hidden, real),
    }


def test_a_folder_teaches_classes(home, tmp_path, classes):
    teacher = home / "classifier_teacher"
    distillation = DISTILLATION | {"teacher": str(teacher)}
    run = train(home, tmp_path, "r", STUDENT, home / "classifier_student", distillation=distillation, **CLASSIFY)
    theirs, _ = torch_outputs("SequenceClassification", teacher)
    expected = class_losses(home, theirs.logits, theirs.hidden_states[-1], classes)
    assert_losses(first_losses(run), "label", expected)


@pytest.mark.slow
@pytest.mark.parametrize(
    "trainable",
    [
        {"kind": "lora", "lora_rank": 2, "lora_alpha": 32},
        {"kind": "adapters", "adapter_size": 4},
        {"kind": "features", "feature_layers": "weighted"},
    ],
    ids=lambda trainable: trainable["kind"],
)
def test_a_run_of_few_trained_weights_teaches_classes(home, tmp_path, classes, trainable):
    """Its checkpoints hold these alone; LoRA also against its export, which has them merged."""
    start = home / "classifier_teacher"
    optimizer = {"kind": "adamw", "learning_rate": 0.3, "warmup_steps": 0, "schedule": "constant"}
    taught = train(home, tmp_path, "t", TEACHER, start, trainable=trainable, optimizer=optimizer, **CLASSIFY)
    distillation = DISTILLATION | {"teacher": str(taught)}
    run = train(home, tmp_path, "s", STUDENT, home / "classifier_student", distillation=distillation, **CLASSIFY)

    inputs = transformers.AutoTokenizer.from_pretrained(start)(TEXTS, padding=True, return_tensors="np")
    outputs = bertjax.open(taught, device="cpu").module(
        *map(jnp.asarray, (inputs["input_ids"], inputs["attention_mask"]))
    )
    logits, hidden = (torch.tensor(np.asarray(outputs[name], np.float32)) for name in ("classifier", "hidden"))
    before, _ = torch_outputs("SequenceClassification", start)
    assert (logits - before.logits).abs().max() > 0.1, "the training of the teacher has changed what it predicts"
    assert_losses(first_losses(run), "label", class_losses(home, logits, hidden, classes))
    if trainable["kind"] == "lora":
        assert main(["export", str(taught), str(tmp_path / "merged")]) == 0
        merged, _ = torch_outputs("SequenceClassification", tmp_path / "merged")
        expected = class_losses(home, merged.logits, merged.hidden_states[-1], classes)
        assert_losses(first_losses(run), "label", expected)


def test_a_folder_teaches_labels_of_words(home, tmp_path):
    teacher = home / "token_classifier_teacher"
    distillation = DISTILLATION | {"teacher": str(teacher)}
    run = train(home, tmp_path, "r", STUDENT, home / "token_classifier_student", distillation=distillation, **TAG)
    (mine, real), (theirs, _) = (
        torch_outputs("TokenClassification", home / f"token_classifier_{name}") for name in ("student", "teacher")
    )
    labels = torch.full(real.shape, -100)
    for row, text in zip(labels, TEXTS, strict=True):  # every word is one piece
        row[1 : 1 + len(text.split())] = torch.tensor([int(word == "!") for word in text.split()])
    expected = {
        "tag": torch.nn.functional.cross_entropy(mine.logits.flatten(0, 1), labels.flatten()),
        "kd": soft_loss(mine.logits[labels >= 0], theirs.logits[labels >= 0]),
        "cosine": cosine_loss(mine.hidden_states[-1], theirs.hidden_states[-1], real),
    }
    assert_losses(first_losses(run), "tag", expected)


def test_a_folder_teaches_texts(home, tmp_path):
    """The soft targets are those of the target tokens, end token included."""
    sample = [*TEXTS, *LABELS] * 20
    tokenizer = spm.train(lambda: iter([sample]), vocab_size=60, extra_ids=4, character_coverage=1.0)
    model = T5.model_copy(update={"vocab_size": 64, "num_layers": 1})
    deeper = model.model_copy(update={"num_layers": 2})
    start, teacher = (
        t5_folder(tmp_path / "student", model, tokenizer),
        t5_folder(tmp_path / "teacher", deeper, tokenizer),
    )
    run = train(home, tmp_path, "r", model, start, distillation=DISTILLATION | {"teacher": str(teacher)},
                optimizer={"kind": "adafactor"}, **GENERATE)  # fmt: skip

    tokens = transformers.AutoTokenizer.from_pretrained(start)
    inputs = tokens(TEXTS, padding=True, return_tensors="pt")
    targets = tokens([LABELS[n % 3] for n in range(len(TEXTS))], padding=True, return_tensors="pt")
    real = targets["attention_mask"] > 0
    labels = targets["input_ids"].masked_fill(~real, -100)
    outputs = []
    for folder in (start, teacher):
        made = transformers.T5ForConditionalGeneration.from_pretrained(folder).eval()
        with torch.no_grad():
            outputs.append(made(**inputs, labels=labels, output_hidden_states=True))
    mine, theirs = outputs
    expected = {
        "target": mine.loss,
        "kd": soft_loss(mine.logits[real], theirs.logits[real]),
        "cosine": cosine_loss(mine.decoder_hidden_states[-1], theirs.decoder_hidden_states[-1], real),
    }
    assert_losses(first_losses(run), "target", expected)


@pytest.mark.parametrize(
    ("stage", "teacher", "reason"),
    [
        (CLASSIFY, "token_classifier_teacher", "needs a teacher with the head 'classifier'"),
        (CLASSIFY, "two_classes", "its classifier has 2 outputs, that of this stage 3"),
        (CLASSIFY, "other_order", "its classes are yes, perhaps, no, those of this stage no, perhaps, yes; set"),
        (TAG, "classifier_teacher", "needs a teacher with the head 'token_classifier'"),
        (GENERATE, "classifier_teacher", "objective 'text_to_text' is not for a bert model"),
    ],
)  # fmt: skip
def test_a_teacher_that_does_not_fit_is_refused_in_one_line(home, tmp_path, stage, teacher, reason):
    distillation = DISTILLATION | {"teacher": str(home / teacher)}
    with pytest.raises(UserError, match=reason) as error:
        train(home, tmp_path, "r", STUDENT, home / "classifier_student", distillation=distillation, **stage)
    assert len(str(error.value).strip().splitlines()) == 1 and not (tmp_path / "r").exists()


def test_a_language_model_has_no_teacher(home, tmp_path):
    gpt = GptConfig(vocab_size=40, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
                    max_position_embeddings=64)  # fmt: skip
    stage = {
        "data": {"source": {"kind": "jsonl", "files": ["texts.jsonl"]},
                 "preprocess": {"kind": "text_rows", "sequence_length": 12}},
        "objective": {"kind": "causal_lm"},
        "init_from": "scratch",
        "distillation": DISTILLATION | {"teacher": str(home / "classifier_teacher")},
    }  # fmt: skip
    with pytest.raises(UserError, match="distillation: the objective 'causal_lm' cannot learn from a teacher"):
        train(home, tmp_path, "r", gpt, home / "classifier_student", **stage)
    assert not (tmp_path / "r").exists()
