"""Mistakes that the configuration and the first records show are found before anything is prepared, all at once."""

import json

import pytest

from bertjax.config.loading.load import load
from bertjax.errors import UserError
from bertjax.training import inputs, preflight, validate
from bertjax.training.checkpoint.stage_files import run_stages

CONFIG = """
model: {family: bert, vocab_size: 200, hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2,
  intermediate_size: 32, max_position_embeddings: 64}
tasks:
  docs: {source: {files: [text.txt], layout: paragraphs}, preprocess: {kind: bert_pairs, sequence_length: 32}}
  labels: {source: {kind: jsonl, files: [ab.jsonl]}, preprocess: {kind: classify, sequence_length: 32}}
stages:
  - {name: pre, data: docs, steps: 1, batch_size: 8}
  - name: cls
    data: labels
    steps: 1
    batch_size: 8
    objective: {kind: classification, num_labels: 2}
    evaluate:
      - kind: classification
        name: dev
        data: {source: {kind: jsonl, files: [ab.jsonl]}, preprocess: {kind: classify, sequence_length: 32}}
      - kind: loss
        name: held
        data: {source: {kind: jsonl, files: [ab.jsonl]}, preprocess: {kind: classify, sequence_length: 32}}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    home = tmp_path_factory.mktemp("preflight")
    (home / "run.yaml").write_text(CONFIG)
    (home / "text.txt").write_text("One. Two.\n\nThree. Four.\n")
    for name, labels in {"ab": "abab", "abc": "abc", "ax": "ax", "a": "aaa", "no": ""}.items():
        rows = [{"text": f"t{n}", "label": label} for n, label in enumerate(labels)] or [{"body": "x"}]
        (home / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (home / "many.jsonl").write_text("".join(json.dumps({"text": "t", "label": f"l{n % 7}"}) + "\n" for n in range(50)))
    return home


def problems(folder, *overrides: str) -> list[str]:
    config = load(folder / "run.yaml", [f"run.root={folder}/runs", *overrides])
    try:
        inputs.check_run(run_stages(config, folder))
    except UserError as error:
        assert not (folder / "runs").exists()
        return str(error).splitlines()
    return []


DEV = "stages.cls.evaluate.dev.data"


def test_a_right_configuration_passes(folder):
    assert problems(folder) == []


def test_all_mistakes_are_reported_at_once(folder):
    found = problems(
        folder,
        "tokenizer.train_on={kind: jsonl, files: [no.jsonl]}",
        "tasks.labels.source.0.files=[no.jsonl]",
        f"{DEV}.source.0.files=[no.jsonl]",
        "stages.cls.evaluate.held.data.preprocess.text_b=second",
        "run.checkpoint.keep_best=[dev/f2, held/dev]",
        "stages.cls.batch_size=3",
    )
    heads = [
        "stages.cls.batch_size: 3 rows do not divide over 8 parts",
        f"tokenizer.train_on.0: {folder}/no.jsonl: line 1: no field 'text'",
        f"tasks.labels.source.0: {folder}/no.jsonl: line 1: 'text' is missing; it has: body",
        f"{DEV}.source.0: {folder}/no.jsonl: line 1: 'text' is missing",
        f"stages.cls.evaluate.held.data.source.0: {folder}/ab.jsonl: line 1: 'second' is missing",
        "run.checkpoint.keep_best: evaluation 'dev' gives no score 'f2'; its scores are dev/accuracy, dev/f1",
        "run.checkpoint.keep_best: evaluation 'held' gives no score 'dev'",
    ]
    assert len(found) == len(heads)
    assert all(line.startswith(head) for line, head in zip(found, heads, strict=True)), found


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (["tasks.labels.source.0.files=[abc.jsonl]"], "tasks.labels: objective.num_labels is 2 but the data have 3"),
        (
            ["tasks.labels.source.0.files=[a.jsonl]"],
            "tasks.labels: objective.num_labels is 2 but the data have one",
        ),
        (["tasks.labels.preprocess.labels=[x, b]"], "tasks.labels: {0}/ab.jsonl: line 1: label 'a' is not one of"),
        ([f"{DEV}.source.0.files=[ax.jsonl]"], DEV + ": {0}/ax.jsonl: line 2: label 'x' is not one of those: a, b"),
        ([f"{DEV}.source.0.split='[9:]'"], DEV + ".source.0: ab.jsonl: holds 4 records, and split '[9:]' takes none"),
        (
            [
                "tasks.more={source: {files: [text.txt]}, preprocess: {kind: bert_pairs, sequence_length: 64}}",
                "stages.pre.data={mixture: [docs, more]}",
            ],
            "stages.pre.data: tasks 'docs' and 'more' cannot be mixed: input_ids is int32[32] in the first",
        ),
        (["run.prepared_dir={0}/text.txt"], "run.prepared_dir: {0}/text.txt: is a file"),
        (["tokenizer.path={0}/text.txt"], "tokenizer.path: {0}/text.txt: the vocabulary has no [PAD]"),
    ],
)
def test_one_mistake(folder, overrides, says):
    (line,) = problems(folder, *(text.replace("{0}", str(folder)) for text in overrides))
    assert line.startswith(says.replace("{0}", str(folder))), line


def test_questions(folder):
    rows = [{"id": name, "question": "Who?", "context": "Ada.", "answers": []} for name in ("a", "b", "a")]
    (folder / "qa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    qa = "source: {kind: jsonl, files: [qa.jsonl]}, preprocess: {kind: span_qa, sequence_length: 32, doc_stride: 8, \
        max_query_length: 8}"
    asked = f"stages.cls.evaluate=[{{kind: squad, name: dev, data: {{{qa}}}}}]"
    (line,) = problems(folder, f"stages.cls.data={{{qa}}}", "stages.cls.objective={kind: span_qa}", asked)
    assert line.startswith("stages.cls.evaluate.dev: qa.jsonl: question 'a' is there twice")
    answers = [{"text": "Bob", "answer_start": 0}]
    (folder / "off.jsonl").write_text(json.dumps(rows[0] | {"answers": answers}) + "\n")
    training = [f"stages.cls.data={{{qa.replace('qa.', 'off.')}}}", "stages.cls.objective={kind: span_qa}"]
    (line,) = problems(folder, *training, "stages.cls.evaluate=[]")
    assert line.startswith("stages.cls.data.source.0: off.jsonl: no answer is in its place (question 'a': 'Bob' at")


def test_later_tasks_of_a_mixture_may_lack_labels(folder):
    """They have the labels of the first task, as when the rows are made."""
    few = "tasks.few={source: {kind: jsonl, files: [a.jsonl]}, preprocess: {kind: classify, sequence_length: 32}}"
    assert problems(folder, few, "stages.cls.data={mixture: [labels, few]}") == []
    (line,) = problems(folder, few.replace("a.jsonl", "ax.jsonl"), "stages.cls.data={mixture: [labels, few]}")
    assert line.startswith(f"tasks.few: {folder}/ax.jsonl: line 2: label 'x' is not one of those: a, b")


def test_labels_beyond_the_first_records_are_not_judged(folder, monkeypatch):
    """The first records may lack labels that come later; more labels than classes are wrong in any case."""
    monkeypatch.setattr("bertjax.data.preprocess.classify.LABELED_RECORDS", 5)
    many = ["tasks.labels.source.0.files=[many.jsonl]", f"{DEV}.source.0.files=[many.jsonl]"]
    assert problems(folder, *many, "stages.cls.objective.num_labels=7") == []
    assert "the data have 5 labels" in problems(folder, *many)[0]


def test_a_stage_that_starts_from_another_classifier_does_not_know_its_labels_yet(folder):
    config = load(folder / "run.yaml", ["stages.cls.init_from=previous"])
    stages = run_stages(config, folder)
    _, classes = preflight.find_data_problems(stages, set())
    assert classes["cls"].names == ("a", "b")
    assert preflight.maybe_fresh(stages[1].stage, classes) == ("classifier", "token_classifier")


def test_shapes_of_initial_weights(folder, whole):
    """A stage's `init_from` of another size is refused without its tokenizer or data."""
    config = load(folder / "run.yaml", [f"stages.cls.init_from={whole}", f"run.root={folder}/runs"])
    with pytest.raises(UserError, match="stage 'cls': init_from: .*has shape .*the model here needs"):
        validate.check_init_shapes(run_stages(config, folder), {})
