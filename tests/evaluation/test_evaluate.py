"""Evaluators inside training and from a restored checkpoint, labels by name, probes, and their commands."""

import csv
import json
import lzma
import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tokenizers as rust

import bertjax
from bertjax import demo
from bertjax.cli.main import main
from bertjax.config.loading.load import build, load
from bertjax.data.tokenizers.files import SpecialTokens
from bertjax.data.tokenizers.load import Tokenizer
from bertjax.data.tokenizers.row_layout import RowLayout
from bertjax.errors import UserError
from bertjax.evaluation.evaluators import span_qa
from bertjax.evaluation.evaluators.build import build_evaluators
from bertjax.evaluation.evaluators.label_samples import LabelSamples
from bertjax.evaluation.predictors import answers, masks
from bertjax.evaluation.restore import restore
from bertjax.parallel import mesh
from bertjax.tools.evaluate import evaluate_command
from bertjax.training import loop

LABELS = ["calm", "loud", "odd"]
CLASSIFY = "preprocess: {kind: classify, sequence_length: 16, text_a: sentence, label: mood}"
UNREAD = f"data: {{source: {{kind: jsonl, files: [none]}}, {CLASSIFY}}}"
STAGE = f"""
  - {{name: moods, data: {{source: {{kind: jsonl, files: [moods.jsonl]}}, {CLASSIFY}}},
    objective: {{kind: classification, num_labels: 3}}, steps: 40, batch_size: 32, optimizer: {{learning_rate: 5e-3}},
    evaluate: [{{kind: classification, name: moods, batch_size: 5,
      data: {{source: {{kind: jsonl, files: [unseen.jsonl]}}, {CLASSIFY}}}}}]}}
"""


def records(seed: int, count: int, labels: list[str]) -> str:
    """The label hangs on one word of the sentence."""
    rng = random.Random(seed)
    words = dict(zip(LABELS, ("owl", "dog", "eel"), strict=True))
    made = []
    for _ in range(count):
        mood = rng.choice(labels)
        sentence = f"The {words[mood]} sleeps near the {rng.choice(['barn', 'pond'])}."
        made.append({"id": len(made), "sentence": sentence, "mood": mood})
    return "".join(json.dumps(record) + "\n" for record in made)


@pytest.fixture(scope="module")
def project(tiny_project, tmp_path_factory) -> Path:
    """tiny_project with a third stage. What it is scored on lacks the first label: its ids must be the training's."""
    home = tmp_path_factory.mktemp("moods")
    shutil.copytree(tiny_project, home, dirs_exist_ok=True)
    (home / "moods.jsonl").write_text(records(0, 96, LABELS))
    (home / "unseen.jsonl").write_text(records(1, 23, LABELS[1:]))
    config = (home / "tiny.yaml").read_text().rstrip("\n").replace("steps: 5,", "steps: 30,") + STAGE
    (home / "tiny.yaml").write_text(config)
    return home


@pytest.fixture(scope="module")
def run(project) -> Path:
    """Trained on one device; not to be changed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mesh, "all_devices", lambda: jax.devices()[:1])
        config = load(project / "tiny.yaml", [f"run.root={project}/runs", "run.log_every=10"])
        loop.train(config, project, build_evaluators)
    return config.run_dir


@pytest.fixture
def here(project, monkeypatch) -> Iterator[Path]:
    """In the project's folder, on one device."""
    monkeypatch.chdir(project)
    monkeypatch.setattr(mesh, "all_devices", lambda: jax.devices()[:1])
    return project


def scores_of(run: Path) -> dict[str, dict[str, float]]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["name"]: line["scores"] for line in lines if line["kind"] == "eval"}


def mask_pairs(evaluation: dict) -> list[tuple[str, str]]:
    """(token, what the model reads in its place) of the sampled masks."""
    parts = [part for row in evaluation.get("masked", []) for part in row]
    return [(part["gold"], part["shown"]) for part in parts if isinstance(part, dict)]


# ---- scores ---------------------------------------------------------------------------------------------------------

ELSEWHERE = """
import json, sys
import jax
from bertjax.tools.evaluate import evaluate_command
assert len(jax.devices()) == 2
print(json.dumps([evaluate_command(sys.argv[1], None, stage, None, []) for stage in ("pretrain", "qa", "moods")]))
"""


def test_another_process_with_other_devices_gives_the_same_scores(run, project):
    kept = {p.name: p.read_bytes() for p in (run / "evaluations" / "01-qa").iterdir()}
    samples = {
        name: json.loads((run / "evaluations" / name).read_text())
        for name in ("00-pretrain/mlm.json", "02-moods/moods.json")
    }
    flags = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=2"}
    paths = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", ELSEWHERE, str(run)], cwd=project, env=os.environ | flags | {"PYTHONPATH": paths},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout)
    assert [(one["stage"], one["step"]) for one in found] == [("pretrain", 30), ("qa", 6), ("moods", 40)]
    trained = scores_of(run)
    for one in found:
        ((name, scores),) = one["scores"].items()
        assert scores == pytest.approx(trained[name], rel=1e-5), name
    for name, before in samples.items():
        after = json.loads((run / "evaluations" / name).read_text())
        assert after.get("classes") == before.get("classes") and mask_pairs(after) == mask_pairs(before), name
    predictions = "squad.predictions.json"
    assert (run / "evaluations" / "01-qa" / predictions).read_bytes() == kept[predictions]


def test_the_commands(run, here, capsys):
    """Through the command line, in this process."""
    assert main(["evaluate", str(run), "--device", "cpu"]) == 0  # the last stage
    found = json.loads(capsys.readouterr().out)
    assert found["stage"] == "moods" and found["scores"] == {"moods": pytest.approx(scores_of(run)["moods"])}
    assert main(["evaluate", str(run), "--stage", "qa", "--step", "4", "--name", "squad"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["stage"], found["step"]) == ("qa", 4) and found["scores"]["squad"]["total"] == 24
    pretrain, qa = (str(run / "checkpoints" / stage) for stage in ("00-pretrain", "01-qa"))
    assert main(["evaluate", f"{pretrain}/28", "stages.pretrain.evaluate.0.batches=1"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["step"] == 28 and found["scores"]["mlm"]["mlm_perplexity"] > 1
    assert main(["predict", "fill-mask", pretrain, "The [MASK] runs.", "--top-k", "2"]) == 0
    (filled,) = json.loads(capsys.readouterr().out)
    assert filled["text"] == "The [MASK] runs." and len(filled["masks"][0]) == 2
    (here / "context.txt").write_text("The dog sleeps in the barn.")
    words = ["--question", "Where is the dog?", "--context-file", "context.txt", "--n-best", "2"]
    assert main(["predict", "answer", qa, *words]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["candidates"]) == 2 and found["answer"] in "The dog sleeps in the barn."
    assert main(["predict", "answer", qa, *words, "--null-threshold", "-1000.5", "--min-probability", "0.5"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["answer"] is None and found["no_answer"]["threshold"] == -1000.5


@pytest.mark.parametrize(
    ("stage", "name", "overrides", "message"),
    [
        ("qa", "moods", [], "stage 'qa' has no evaluation 'moods'; its evaluations: squad"),
        ("qa", None, ["stages.qa.evaluate=[]"], "stage 'qa' has no evaluations; name another --stage, or give it some"),
        ("questions", None, [], "stage 'questions' has no checkpoint; there are: pretrain, qa, moods"),
        ("qa", None, ["stages.qa.evaluate.0.data.source.0.files=[none.json]"], "none.json"),
        (
            "qa",
            None,
            ["stages.qa.evaluate.0.data.preprocess={kind: classify, sequence_length: 16}"],
            "preprocess.kind must be span_qa",
        ),
        (
            "moods",
            None,
            ["stages.moods.evaluate.0.data.preprocess.label=colour"],
            "unseen.jsonl: line 1: 'colour' is missing",
        ),
        (
            "moods",
            None,
            [f"stages.moods.evaluate=[{{kind: text_to_text, {UNREAD}}}]"],
            "objective classification of stage 'moods' cannot be scored by evaluation 'text_to_text'",
        ),
        (
            "pretrain",
            None,
            [f"stages.pretrain.evaluate=[{{kind: classification, {UNREAD}}}]"],
            "needs the head 'classifier', the checkpoint of stage 'pretrain' has heads mlm, nsp",
        ),
    ],
)
def test_what_cannot_be_evaluated(run, here, stage, name, overrides, message):
    with pytest.raises(UserError, match=message) as caught:
        evaluate_command(run, None, stage, name, overrides)
    assert len(str(caught.value)) <= 300 and "\n" not in str(caught.value)


# ---- the run's record, and other evaluations -------------------------------------------------------------------------


def test_an_evaluation_of_something_else_leaves_the_runs_record_alone(run, here, capsys):
    """Other data, another step, another option: files of their own, which say what they were made from."""
    folder = run / "evaluations" / "01-qa"
    own = {path: path.read_bytes() for path in (run / "evaluations").rglob("*.json") if path.parent.name != "other"}
    (here / "longer.json").write_text((here / "train.json").read_text())
    other = "stages.qa.evaluate.squad.data.source.files=[longer.json]"
    found = evaluate_command(run, None, "qa", None, [other, "stages.qa.evaluate.squad.data.limit=12"])
    told = capsys.readouterr().err
    kept = Path(found["kept"]["squad"])
    assert kept.parent == folder / "other" and kept.name.startswith("squad-step6-")
    content = json.loads(kept.read_text())
    assert content["scores"] == found["scores"]["squad"] and content["scores"]["total"] == 12
    assert (
        content["differs"]
        == found["differs"]["squad"]
        == {
            "stages.qa.evaluate.squad.data.source.0.files.0": {"here": "longer.json", "run": "heldout.json"},
            "stages.qa.evaluate.squad.data.limit": {"here": 12, "run": None},
        }
    )
    assert len(json.loads(kept.with_name(f"{kept.stem}.predictions.json").read_text())) == 12
    assert 'files.0 = "longer.json" (the run: "heldout.json")' in told and told.rstrip().endswith(
        "not the run's own score"
    )
    assert {path: path.read_bytes() for path in own} == own
    same = evaluate_command(run, None, "qa", None, [])
    assert same["differs"] == {} and Path(same["kept"]["squad"]) == folder / "squad.json"
    assert {path: path.read_bytes() for path in own} == own and len(list((folder / "other").glob("squad-step6-*"))) == 3


def test_the_same_data_under_another_name_scores_the_same(run, here, tmp_path):
    """An override of the files alone keeps the kind and the layout; the scores go where --output says."""
    lines = [line for line in (here / "more.txt").read_text().splitlines() if line]
    for name in ("held.jsonl.xz", "again.jsonl.xz"):
        with lzma.open(here / name, "wt") as out:
            out.writelines(json.dumps({"body": " ".join(lines[n : n + 8])}) + "\n" for n in range(0, 48, 8))
    mlm = "stages.pretrain.evaluate.mlm"
    source = "[{kind: jsonl, text_field: body, files: [held.jsonl.xz]}]"
    first = [f"{mlm}.data.source={source}", f"{mlm}.batches=2"]
    found = [evaluate_command(run, None, "pretrain", None, first, None, tmp_path / "scores")]
    opened = restore(run, stage="pretrain", overrides=first).saved_config
    assert opened is not None and opened.stages[0].evaluate[0].data.source[0].kind == "text"
    stored = restore(run, stage="pretrain", overrides=first).ctx.config.model_dump(mode="json")
    renamed = build(stored, [f"{mlm}.data.source.files=[again.jsonl.xz]"]).stages[0].evaluate[0].data.source[0]
    again = [f"{mlm}.data.source=[{json.dumps(renamed.model_dump(mode='json'))}]", f"{mlm}.batches=2"]
    found.append(evaluate_command(run, None, "pretrain", None, again, None, tmp_path / "again.json"))
    assert found[0]["scores"] == found[1]["scores"]
    assert [Path(one["kept"]["mlm"]) for one in found] == [tmp_path / "scores" / "mlm.json", tmp_path / "again.json"]


# ---- labels ---------------------------------------------------------------------------------------------------------


def test_labels_are_those_of_the_training_data(run, here):
    """The score by hand, labels by name. By their own order the two here would be 0 and 1."""
    opened = restore(run)
    assert opened.labels == LABELS and restore(run, stage="qa").labels is None
    unseen = [json.loads(line) for line in (here / "unseen.jsonl").read_text().splitlines()]
    assert {record["mood"] for record in unseen} == {"loud", "odd"}
    tokenizer, model = opened.ctx.tokenizer, opened.program.build_model(opened.params)
    ids = np.zeros((len(unseen), 16), np.int32)
    for row, record in zip(ids, unseen, strict=True):
        tokens = [tokenizer.cls_id, *tokenizer.encode_batch([record["sentence"]])[0], tokenizer.sep_id]
        row[: len(tokens)] = tokens
    real = jnp.asarray(ids > 0, jnp.int32)
    with jax.set_mesh(opened.ctx.mesh):
        hidden = model.encode(jnp.asarray(ids), 0 * real, real, real * jnp.arange(16))
        logits = model.class_logits(hidden, jnp.zeros((len(unseen), 1), jnp.int32))
    guesses = np.asarray(logits).reshape(-1, 3).argmax(1)
    truths = [record["mood"] for record in unseen]
    accuracy = lambda labels: 100 * np.mean([labels[g] == t for g, t in zip(guesses, truths, strict=True)])  # noqa: E731
    assert scores_of(run)["moods"]["accuracy"] == pytest.approx(accuracy(LABELS))
    assert accuracy(LABELS) != accuracy(["loud", "odd", ""])


def test_a_label_the_training_data_lacked_is_refused(run, here):
    (here / "more.jsonl").write_text(records(2, 4, LABELS[:1]) + '{"sentence": "A cat.", "mood": "proud"}\n')
    with pytest.raises(UserError, match="label 'proud' is not one of those: calm, loud, odd"):
        evaluate_command(run, None, "moods", None, ["stages.moods.evaluate.0.data.source.0.files=[more.jsonl]"])


@pytest.mark.parametrize(
    ("content", "overrides", "message"),
    [
        (
            records(0, 30, LABELS),
            ["stages.moods.objective.num_labels=2"],
            "but the data have 3 labels (calm, loud, odd)",
        ),
        (records(0, 30, LABELS), ["stages.moods.objective.num_labels=4"], "set objective.num_labels=3"),
        (records(0, 30, LABELS), ["stages.moods.objective.num_labels=1"], "(regression) but the labels are texts"),
        ('{"sentence": "a", "mood": 3}\n', [], "line 1: 'mood' is 3, but ids go from 0 to 2"),
        ('{"sentence": "a", "mood": 0.5}\n', [], "set objective.num_labels=1 for regression"),
        ('{"sentence": "a", "mood": 1}\n', [], "its labels are texts, the training data's were numbers"),
    ],
)
def test_labels_that_do_not_fit_the_stage(here, capsys, content, overrides, message):
    (here / "other.jsonl").write_text(content)
    data = "stages.moods.data.source.files=[other.jsonl]"
    before = {p.name for p in (here / "runs").iterdir()}
    assert main(["train", "tiny.yaml", "run.name=misfit", data, *overrides]) == 2
    err = capsys.readouterr().err
    assert message in err and err.count("\n") == 1 and len(err) <= 301
    assert {p.name for p in (here / "runs").iterdir()} == before


def test_counts_and_errors_of_a_classification_are_kept(run, project):
    kept = json.loads((run / "evaluations" / "02-moods" / "moods.json").read_text())
    said = [json.loads(line) for line in (project / "unseen.jsonl").read_text().splitlines()]
    classes = kept["classes"]
    assert classes["names"] == LABELS
    assert classes["support"] == [sum(one["mood"] == name for one in said) for name in LABELS]
    assert sum(classes["correct"]) / len(said) * 100 == pytest.approx(kept["scores"]["accuracy"])
    assert [sum(column) for column in zip(*classes["confusion"], strict=True)] == classes["predicted"]
    assert len(kept["samples"]) == min(12, len(said) - sum(classes["correct"]))


def test_errors_are_the_most_certain_ones(tiny_tokenizer_rows):
    tokenizer, rows, logits, labels = tiny_tokenizer_rows
    found = LabelSamples(tokenizer, ["no", "yes"])
    fetched = []
    for part in (slice(0, 10), slice(10, 40)):
        fields = lambda part=part: fetched.append(part) or {name: x[part] for name, x in rows.items()}  # noqa: E731
        found.add(logits[part][:, None], labels[part][:, None], np.ones((len(labels[part]), 1)), fields)
    wrong = np.flatnonzero(logits.argmax(1) != labels)
    margin = np.abs(logits[:, 1] - logits[:, 0])
    expected = sorted(wrong, key=lambda i: (-margin[i], i))[:12]
    samples = found.samples()
    assert [one["text"] for one in samples] == [f"word{i}" for i in expected]
    assert [one["text_b"] for one in samples] == ["second"] * 12 and len(fetched) == 2
    assert samples[0]["probability"] == pytest.approx(1 / (1 + np.exp(-margin[expected[0]])), abs=1e-4)
    assert {(one["label"], one["predicted"]) for one in samples} == {("no", "yes"), ("yes", "no")}


@pytest.fixture
def tiny_tokenizer_rows():
    """40 pairs of texts with their logits and labels, half of them wrong."""

    class Words:
        layout = RowLayout(998, 998)
        decode = staticmethod(lambda ids: " ".join("second" if i == 999 else f"word{i}" for i in ids if i != 998))

    rng = np.random.default_rng(0)
    ids = np.stack([np.array([998, i, 998, 999, 998, 0]) for i in range(40)])
    types, segments = np.tile([0, 0, 0, 1, 1, 0], (40, 1)), np.tile([1, 1, 1, 1, 1, 0], (40, 1))
    logits = rng.normal(size=(40, 2)).astype(np.float32)
    labels = np.where(np.arange(40) % 2, logits.argmax(1), logits.argmin(1))
    return Words(), {"input_ids": ids, "token_type_ids": types, "segment_ids": segments}, logits, labels


def test_sampled_tokens_add_up_to_the_scores(here):
    """Of one batch of eight rows all tokens are kept, so their accuracy is that of the evaluation."""
    few = ["stages.pretrain.evaluate.mlm.batches=1", "stages.pretrain.evaluate.mlm.batch_size=8"]
    scores = evaluate_command(here / "runs" / "tiny", None, "pretrain", None, few, output=here / "few.json")["scores"][
        "mlm"
    ]
    rows = json.loads((here / "few.json").read_text())["masked"]
    parts = [part for row in rows for part in row if isinstance(part, dict)]
    assert len(rows) == 8 and all(len(mask["guesses"]) == 4 for mask in parts)
    right = [mask["guesses"][0]["token"] == mask["gold"] for mask in parts]
    assert sum(right) / len(right) == pytest.approx(scores["mlm_accuracy"])
    shown = [mask["shown"] for mask in parts]
    assert 0.5 < shown.count("[MASK]") / len(shown) <= 1


def test_regression(here):
    """STS-B's form: two sentences and a number."""
    rng = random.Random(0)
    pairs = [(rng.choice("dog cat owl".split()), rng.choice("dog cat owl".split())) for _ in range(64)]
    lines = [json.dumps({"a": f"The {x}.", "b": f"The {y}.", "score": 4.5 if x == y else 0.5}) for x, y in pairs]
    (here / "pairs.jsonl").write_text("\n".join(lines))
    fields = {"kind": "classify", "sequence_length": 16, "text_a": "a", "text_b": "b", "label": "score"}
    task = {"source": {"kind": "jsonl", "files": ["pairs.jsonl"]}, "preprocess": fields}
    stage = {"name": "similar", "data": task, "objective": {"kind": "classification", "num_labels": 1}, "steps": 2}
    stage |= {"batch_size": 8, "evaluate": [{"kind": "classification", "data": task}]}
    tokenizer = "tokenizer.path=runs/tiny/tokenizer"
    config = load("tiny.yaml", [f"stages={json.dumps([stage])}", "run.name=similar", "run.root=runs", tokenizer])
    loop.train(config, here, build_evaluators)
    scores = scores_of(config.run_dir)["classification"]
    assert scores.keys() == {"pearson", "spearman", "r2", "mse"}
    assert all(-100 <= scores[name] <= 100 for name in ("pearson", "spearman"))
    assert scores["mse"] > 0 and scores["r2"] <= 100
    kept = json.loads((config.run_dir / "evaluations" / "00-similar" / "classification.json").read_text())
    assert kept["regression"]["of"] == len(kept["regression"]["points"]) == 64 and "classes" not in kept
    errors = [abs(one["label"] - one["predicted"]) for one in kept["samples"]]
    assert len(errors) == 12 and errors == sorted(errors, reverse=True)
    assert errors[0] == pytest.approx(max(abs(x - y) for x, y in kept["regression"]["points"]), abs=1e-3)


# ---- probes ---------------------------------------------------------------------------------------------------------


def test_filled_text_holds_words_and_not_bytes_or_marks():
    """Byte-level pieces are bytes written as letters, suffix pieces have a mark; masks may be spelled in two ways."""
    special = SpecialTokens({"pad": "<pad>", "unk": "<unk>", "cls": "<s>", "sep": "</s>", "mask": "<mask>"})
    names = list(special.roles.values())
    by_bytes = rust.Tokenizer(rust.models.BPE())
    by_bytes.pre_tokenizer = rust.pre_tokenizers.ByteLevel(add_prefix_space=False)
    by_bytes.decoder = rust.decoders.ByteLevel()
    trainer = rust.trainers.BpeTrainer(vocab_size=300, special_tokens=names, show_progress=False)
    by_bytes.train_from_iterator(["x café"] * 9, trainer)
    by_suffix = rust.Tokenizer(rust.models.BPE(unk_token="<unk>", end_of_word_suffix="</w>"))
    by_suffix.decoder = rust.decoders.BPEDecoder(suffix="</w>")
    trainer = rust.trainers.BpeTrainer(
        vocab_size=90, special_tokens=names, end_of_word_suffix="</w>", show_progress=False
    )
    by_suffix.train_from_iterator(["café"] * 9, trainer)
    for backend, token in ((by_bytes, "\u0120caf\u00c3\u00a9"), (by_suffix, "café</w>")):
        tokenizer = Tokenizer(backend, "test", special)
        text = masks.to_tokenizer_mask(tokenizer, "a [MASK] b <mask>.")
        found = masks.fill_result(tokenizer, text, 1, tokenizer.pieces.index(token), 0.5)
        assert found == {"token": token, "probability": 0.5, "text": "a <mask> b café."}


def test_fill_mask_gives_the_softmax_over_the_vocabulary(run, here):
    """Against the model itself on a padded batch of rows."""
    opened = restore(run, stage="pretrain")
    texts = ["The [MASK] sleeps near the barn.", "The dog [MASK] near the [MASK]."]
    found = masks.fill_mask(opened, texts, top_k=128)
    assert [row["text"] for row in found] == texts and [len(row["masks"]) for row in found] == [1, 2]
    tokenizer = opened.ctx.tokenizer
    size = tokenizer.vocab_size
    for row in found:
        for number, guesses in enumerate(row["masks"]):
            probabilities = [guess["probability"] for guess in guesses]
            assert probabilities == sorted(probabilities, reverse=True) and len(guesses) == min(size, 128)
            assert sum(probabilities) == pytest.approx(1, abs=0.02)
            parts = row["text"].split("[MASK]")
            plain = next(g for g in guesses if not g["token"].startswith("##"))
            before, after = "[MASK]".join(parts[: number + 1]), "[MASK]".join(parts[number + 1 :])
            assert plain["text"] == before + plain["token"] + after
    words = [tokenizer.backend.token_to_id(w) for w in "the dog sleeps near the barn .".split()]
    ids = np.zeros((3, 24), np.int32)
    ids[1, :9] = [tokenizer.cls_id, words[0], tokenizer.mask_id, *words[2:], tokenizer.sep_id]
    segments = (ids > 0).astype(np.int32)
    segments[1, :9] = 1
    positions = np.where(segments > 0, np.arange(24), 0).astype(np.int32)
    model = opened.program.build_model(opened.params)
    with jax.set_mesh(opened.ctx.mesh):
        fields = (jnp.asarray(x) for x in (ids, np.zeros_like(ids), segments, positions))
        hidden = model.encode(*fields)
        logits = model.mlm_logits(hidden, jnp.full((3, 1), 2, jnp.int32))
    expected = np.asarray(jax.nn.softmax(logits[1, 0]))
    for guess in found[0]["masks"][0]:
        assert guess["probability"] == pytest.approx(expected[tokenizer.pieces.index(guess["token"])], abs=1e-4)


def test_answers_are_spans_of_the_context(run, here):
    opened = restore(run, stage="qa")
    context = "The dog sleeps in the barn. " * 12 + "The cat sleeps in the tree."  # several windows
    found = answers.answer(opened, "Where is the cat?", context, n_best=5)
    candidates = found["candidates"]
    assert found["answer"] == candidates[0]["text"] and "no_answer" not in found
    assert len(candidates) == 5 and all(each["text"] in context for each in candidates)
    probabilities = [each["probability"] for each in candidates]
    assert probabilities == sorted(probabilities, reverse=True) and 0 < sum(probabilities) <= 1.001
    assert len(answers.answer(opened, "Where is the cat?", context, n_best=1)["candidates"]) == 1


@pytest.mark.parametrize("context", ["owl", "It rained.", "a\u00a0dog", "The dog.", "barn barn", "x?", "42"])
def test_a_short_context_is_answered_out_of_itself(run, here, context):
    """Padding is 30 and more of the 48 positions, so its logits used to fill the n best."""
    found = answers.answer(restore(run, stage="qa"), "Where is the dog?", context, n_best=99)
    assert found["answer"] and all(each["text"] in context for each in found["candidates"])
    assert sum(each["probability"] for each in found["candidates"]) == pytest.approx(1, abs=0.01)


def test_no_answer_is_given_by_the_rules_the_checkpoint_was_trained_for(run, here, monkeypatch):
    opened, asked = restore(run, stage="qa"), ("Where is the dog?", "The dog sleeps in the barn.")
    assert opened.unanswerable == 0 and restore(run, stage="pretrain").unanswerable is None
    plain = answers.answer(opened, *asked)
    version_2 = replace(opened, unanswerable=3)  # as after training on SQuAD 2.0
    found = answers.answer(version_2, *asked, n_best=99)
    null = found["no_answer"]
    assert null["threshold"] == 0 and (found["answer"] is None) == (null["null_odds"] > 0)
    total = null["probability"] + sum(each["probability"] for each in found["candidates"])
    assert total == pytest.approx(1, abs=0.01)
    # the odds are strictly above the threshold or not, on any checkpoint
    for checkpoint in (opened, version_2):
        above = answers.answer(checkpoint, *asked, null_threshold=null["null_odds"] - 0.01)
        assert above["answer"] is None and "above the threshold" in above["reason"] and "probability" not in above
        below = answers.answer(checkpoint, *asked, null_threshold=null["null_odds"] + 0.01)
        assert below["answer"] == plain["answer"] and "reason" not in below
    evaluation, windows = span_qa.stage_settings(opened.ctx.config, opened.ctx.config.stages[opened.stage])
    for threshold in (1e9, -1e9):
        settings = evaluation.model_copy(update={"null_score_diff_threshold": threshold})
        monkeypatch.setattr(span_qa, "stage_settings", lambda *_, settings=settings: (settings, windows))
        assert (answers.answer(version_2, *asked)["answer"] is not None) == (threshold > 0)
        settings = settings.model_copy(update={"version_2": False})
        monkeypatch.setattr(span_qa, "stage_settings", lambda *_, settings=settings: (settings, windows))
        assert answers.answer(version_2, *asked) == plain


def test_an_answer_that_is_not_probable_enough_is_none(run, here):
    opened, asked = restore(run, stage="qa"), ("Where is the dog?", "The dog sleeps in the barn.")
    probability = answers.answer(opened, *asked)["probability"]
    assert answers.answer(opened, *asked, min_probability=probability - 0.001)["answer"]
    found = answers.answer(opened, *asked, min_probability=probability + 0.001)
    assert found["answer"] is None and "is below" in found["reason"] and found["candidates"]


def test_a_head_that_a_stage_only_carries_is_used_and_said(run, here, capsys):
    assert masks.fill_mask(run / "checkpoints" / "01-qa", ["[MASK]"])[0]["masks"]
    assert "note: stage 'qa' trained the encoder without the 'mlm' head" in capsys.readouterr().err
    assert masks.fill_mask(run / "checkpoints" / "00-pretrain", ["[MASK]"])[0]["masks"]
    assert capsys.readouterr().err == ""


def test_an_opened_run_labels_as_its_evaluation_does(run, here, capsys):
    model = bertjax.open(run, stage="moods")
    unseen = [json.loads(line) for line in (here / "unseen.jsonl").read_text().splitlines()]
    found = model.classify([one["sentence"] for one in unseen])
    right = [one["label"] == truth["mood"] for one, truth in zip(found, unseen, strict=True)]
    assert 100 * np.mean(right) == pytest.approx(scores_of(run)["moods"]["accuracy"], abs=1e-3)
    assert model.labels == LABELS and model.step == 40 and model.config.run.name == "tiny"
    batch = next(model.batches())
    assert batch["input_ids"].shape == (32, 16) and set(batch["labels"].ravel().tolist()) <= {0, 1, 2}
    assert next(model.batches("pretrain"))["masked_positions"].shape[0] == 8
    assert sum(len(each["labels"]) for each in model.batches(evaluation="moods")) >= 23
    with pytest.raises(UserError, match="has no stage 'none'|stage 'none' has no checkpoint"):
        bertjax.open(run, stage="none")
    capsys.readouterr()


def test_a_file_of_texts_is_labelled(run, here, tmp_path, capsys):
    where = ["predict", "classify", str(run / "checkpoints" / "02-moods"), "--device", "cpu"]
    assert main([*where, "The owl sleeps.", "The dog\nsleeps."]) == 0
    lines = [line.split("\t") for line in capsys.readouterr().out.splitlines()]
    assert [line[2] for line in lines] == ["The owl sleeps.", "The dog sleeps."] and {x[0] for x in lines} <= set(
        LABELS
    )
    (tmp_path / "in.csv").write_text('id,sentence\n7,"The owl, and more"\n8,The eel sleeps.\n')
    out = tmp_path / "out.csv"
    assert main([*where, "--file", str(tmp_path / "in.csv"), "--output", str(out)]) == 0
    rows = list(csv.DictReader(out.read_text().splitlines()))
    assert [(row["id"], row["sentence"]) for row in rows] == [("7", "The owl, and more"), ("8", "The eel sleeps.")]
    assert all(row["predicted_label"] in LABELS and 0 < float(row["probability"]) <= 1 for row in rows)
    assert main([*where, "--file", "unseen.jsonl", "--output", str(tmp_path / "out.jsonl")]) == 0
    made = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert len(made) == 23 and made[0].keys() == {"id", "sentence", "mood", "predicted_label", "probability",
                                                 "probabilities"}  # fmt: skip
    capsys.readouterr()
    (tmp_path / "bad.csv").write_text("id,text\n7,The owl\n")
    assert main([*where, "--file", str(tmp_path / "bad.csv"), "--output", str(tmp_path / "none.csv")]) == 2
    said = capsys.readouterr().err
    assert said == f"{tmp_path}/bad.csv: line 2: no field 'sentence'; the fields are: id, text; name it with --column\n"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bad.csv", "in.csv", "out.csv", "out.jsonl"]


def test_vectors_and_answers_go_to_files(run, here, tmp_path, capsys):
    (tmp_path / "in.txt").write_text("The owl sleeps.\n\nThe eel.\n")
    arguments = ["predict", "embed", str(run), "--file", str(tmp_path / "in.txt"), "--output", str(tmp_path / "v.npy")]
    assert main(arguments) == 0 and main(["predict", "embed", str(run), "The eel."]) == 0
    vectors = np.load(tmp_path / "v.npy")
    (alone,) = json.loads(capsys.readouterr().out)
    assert vectors.shape == (3, 16) and vectors.dtype == np.float32
    np.testing.assert_allclose(alone["embedding"], vectors[2], atol=1e-5)
    asked = [{"id": i, "question": "Where is the dog?", "context": "The dog sleeps in the barn. " * i} for i in (1, 5)]
    (tmp_path / "q.jsonl").write_text("".join(json.dumps(one) + "\n" for one in asked))
    where = ["predict", "answer", str(run / "checkpoints" / "01-qa"), "--file", str(tmp_path / "q.jsonl")]
    assert main(where) == 0
    found = json.loads(capsys.readouterr().out)
    assert [one["id"] for one in found] == [1, 5]
    alone = answers.answer(run / "checkpoints" / "01-qa", asked[1]["question"], asked[1]["context"])
    assert found[1]["answer"] == alone["answer"]
    assert found[1]["probability"] == pytest.approx(alone["probability"], abs=1e-3)


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda run: masks.fill_mask(run / "checkpoints" / "00-pretrain", ["no gap"]), "contains no \\[MASK\\]"),
        (lambda run: masks.fill_mask(run / "checkpoints" / "00-pretrain", ["[MASK] dog" * 60]), "shorten it"),
        (
            lambda run: answers.answer(run / "checkpoints" / "00-pretrain", "q", "c"),
            "has no 'qa' head \\(it has: mlm, nsp\\)",
        ),
        (lambda run: answers.answer(run / "checkpoints" / "01-qa", "q", " \n"), "context"),
        (lambda run: answers.answer(run / "checkpoints" / "01-qa", " ", "The dog."), "question"),
        (
            lambda run: answers.answer(run / "checkpoints" / "01-qa", "q", "a \ud800"),
            "context contains half of a surrogate",
        ),
        (
            lambda run: answers.answer(run / "checkpoints" / "01-qa", "\udcff", "a"),
            "question contains half of a surrogate",
        ),
        (lambda run: answers.answer(run / "checkpoints" / "01-qa", "q", "\x01\x02"), "no token in the context"),
    ],
)
def test_questions_that_cannot_be_answered(run, here, ask: Callable[[Path], Any], message):
    with pytest.raises(UserError, match=message) as caught:
        ask(run)
    assert len(str(caught.value)) <= 300


def test_the_demo_shows_what_predict_answers(run, tmp_path, monkeypatch, capsys):
    sample = {"question": "Where is the dog?", "context": "The dog sleeps in the barn.", "answers": ["barn"]}
    kept = tmp_path / "evaluations" / "01-qa"
    kept.mkdir(parents=True)
    (kept / "unseen_modules.json").write_text(json.dumps({"samples": [sample | {"prediction": "barn"}] * 5}))
    answer = lambda *words, capture: json.dumps(answers.answer(run, words[4], words[6]))  # noqa: E731
    monkeypatch.setattr(demo, "run_bertjax", answer)
    demo.show_answers(tmp_path)
    *_, last = capsys.readouterr().out.strip().split("\n")
    assert re.fullmatch(r" +-> .*[a-z.]+  \d+%", last)
