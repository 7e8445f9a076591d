"""The evaluator of generated text: which examples it asks, what it scores and keeps, and the averages of a suite."""

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from bertjax.config.schema.data import Task
from bertjax.config.schema.evaluation import TextToTextEvaluation
from bertjax.errors import UserError
from bertjax.evaluation.evaluators import text_to_text as evaluators_text_to_text
from bertjax.evaluation.records import EvaluationRecord
from bertjax.training.loop import Evaluator

RECORDS = {
    "glue_mrpc": [
        {"idx": 4, "sentence1": "a", "sentence2": "b", "label": 1},
        {"idx": 7, "sentence1": "c", "sentence2": "d", "label": 0},
        {"idx": 8, "sentence1": "e", "sentence2": "f", "label": -1},
    ],
    "glue_rte": [{"idx": n, "sentence1": "a", "sentence2": "b", "label": n} for n in (0, 1)],
    "super_glue_record": [
        {"idx": {"passage": 0, "query": n}, "passage": "p", "query": "@placeholder", "entities": ["Ann", "Bo"],
         "answers": ["Ann", "Bo"]} for n in (0, 1)
    ],
    "super_glue_multirc": [
        {"idx": {"paragraph": 0, "question": n // 2, "answer": n}, "paragraph": "p", "question": f"q{n // 2}",
         "answer": str(n), "label": n % 2} for n in range(4)
    ],
}  # fmt: skip
SQUAD = {
    "version": "1.1",
    "data": [
        {
            "title": "t",
            "paragraphs": [
                {
                    "context": "The dog sleeps in the U.S. The cat runs.",
                    "qas": [
                        {"id": "q1", "question": "Where is it?", "answers": [{"text": "U.S.", "answer_start": 22}]},
                        {"id": "q2", "question": "Who runs?", "answers": [{"text": "cat", "answer_start": 31}]},
                    ],
                }
            ],
        }
    ],
}


KEYS = ("inputs", "targets", "labels", "sequence_length", "target_length")


class Generator:
    """Says what the test put down for a text, and remembers what it was asked."""

    said: dict[str, str] = {}
    otherwise = "?"
    asked: list[str] = []
    made: dict = {}

    def __init__(self, program, tokenizer, decoding, **options):
        Generator.made = options | {"decoding": decoding}

    def __call__(self, params, texts):
        Generator.asked = list(texts)
        return [self.said.get(text, self.otherwise) for text in texts]


@pytest.fixture
def build(tmp_path, monkeypatch):
    """build(prompt, ...) -> run, over the records above in jsonl files."""
    monkeypatch.setattr(evaluators_text_to_text, "Generator", Generator)
    tokenizer = SimpleNamespace(unk_id=2, encode_batch=lambda texts: [[2 if c == "~" else 5 for c in t] for t in texts])
    ctx = SimpleNamespace(base=tmp_path, tokenizer=tokenizer, config=SimpleNamespace(run=SimpleNamespace(seed=3)))

    def make(prompt: str | None, records: list | None = None, said: dict | None = None, **options):
        Generator.said, source = said or {}, {"kind": "jsonl", "files": ["records.jsonl"]}
        if prompt in ("squad", "squad_closed_book"):
            source = {"kind": "squad", "files": ["squad.json"]}
            (tmp_path / "squad.json").write_text(json.dumps(SQUAD))
        else:
            lines = records or RECORDS[prompt]
            (tmp_path / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        fields = {key: options.pop(key) for key in KEYS if key in options}
        task = Task(source=source, preprocess={"kind": "text_to_text", "prompt": prompt} | fields)
        config = TextToTextEvaluation(name="held", data=task, **options)
        return evaluators_text_to_text.text_to_text_evaluator(
            ctx, None, config, EvaluationRecord(tmp_path / "kept", "held", "held", {})
        )

    return make


def kept(folder: Path) -> tuple[dict, dict]:
    return tuple(json.loads((folder / "kept" / name).read_text()) for name in ("held.json", "held.predictions.json"))


def test_scores_samples_and_predictions(build, tmp_path):
    right, wrong = "mrpc sentence1: a sentence2: b", "mrpc sentence1: c sentence2: d"
    run = build("glue_mrpc", said={right: "equivalent", wrong: "equivalent"}, batch_size=5)
    scores = run(None, 17)
    assert scores == {"f1": pytest.approx(200 / 3), "accuracy": 50, "examples": 2}  # the third has no label
    found, predictions = kept(tmp_path)
    assert found["step"] == 17 and found["scores"] == scores
    assert predictions == {"4": "equivalent", "7": "equivalent", "8": "?"}
    assert found["samples"][0] == {
        "id": "4", "question": right, "context": "", "answers": ["equivalent"], "prediction": "equivalent"
    }  # fmt: skip
    about = Generator.made
    assert (about["sequence_length"], about["target_length"], about["batch_size"], about["seed"]) == (512, 114, 5, 3)


def test_what_is_cut_or_unknown_is_said_and_kept(build, tmp_path, capsys):
    """A token for each character: inputs of 6 and 9 (7 fit beside the end), references of 3 and 1 (2 fit)."""
    records = [{"id": 1, "a": "abcdef", "b": "xyz"}, {"id": 2, "a": "abcdefgh~", "b": "x"}]
    lengths = {"sequence_length": 8, "target_length": 2}
    run = build(None, records, inputs="{a}", targets="{b}", metrics=["exact_match"], **lengths)
    assert capsys.readouterr().err.splitlines() == [
        "evaluation 'held': 1 of 2 inputs cut (13.3% of their tokens lost); raise sequence_length (now 8) to keep them",
        "evaluation 'held': unknown pieces in the inputs: 1 (6.7%); the tokenizer has none for their characters, take "
        "one that was trained on such text",
        "evaluation 'held': 1 of 2 targets cut (25.0% of their tokens lost); raise target_length (now 2) to keep them",
    ]
    run(None, 1)
    assert kept(tmp_path)[0]["text_counts"] == {
        "inputs": {"texts": 2, "cut": 1, "tokens": 15, "tokens_cut": 2, "unknown": 1},
        "targets": {"texts": 2, "cut": 1, "tokens": 4, "tokens_cut": 1, "unknown": 0},
    }


def test_squad_is_scored_both_ways_and_its_files_are_the_official_ones(build, tmp_path):
    from bertjax.evaluation.metrics.squad import score_command

    context = "The dog sleeps in the U . S . The cat runs . "
    said = {
        f"question: Where is it ? context: {context}": "U . S .",
        f"question: Who runs ? context: {context}": "a cat",
    }
    scores = build("squad", said=said)(None, 1)
    assert (scores["squad_em"], scores["exact"], scores["total"], scores["examples"]) == (100, 50, 2, 2)
    found, predictions = kept(tmp_path)
    assert predictions == {"q1": "U . S .", "q2": "a cat"}
    official = score_command(tmp_path / "squad.json", tmp_path / "kept" / "held.predictions.json")
    assert {key: scores[key] for key in official} == official
    assert (found["samples"][1]["question"], found["samples"][1]["context"]) == ("Who runs ?", context)


def test_grouped_prompts(build, tmp_path):
    scores = build("super_glue_record")(None, 1)
    assert scores == {"em": 0, "f1": 0, "examples": 2}
    assert len(Generator.asked) == 1  # two queries that read the same
    assert set(kept(tmp_path)[1]) == {"0-0", "0-1"}
    questions = [f"multirc question: q{n // 2} answer: {n} paragraph: p" for n in range(4)]
    said = dict(zip(questions, ["False", "True", "True", "True"], strict=True))
    scores = build("super_glue_multirc", said=said)(None, 1)
    assert scores == {"f1": pytest.approx(80), "exact_match": 50, "examples": 4}
    assert list(kept(tmp_path)[1]) == ["0-0-0", "0-0-1", "0-1-2", "0-1-3"]


def test_templates_have_exact_match_unless_metrics_are_named(build, tmp_path):
    records = [{"text": "one", "label": 0}, {"text": "two", "label": 1}]
    template = {"inputs": "mood: {text}", "targets": "{label}", "labels": ["calm", "loud"]}
    said = {"mood: one": "calm", "mood: two": "LOUD"}
    assert build(None, records, said, **template)(None, 1) == {"exact_match": 50, "examples": 2}
    found = build(None, records, said, **template, metrics=["f1", "matthews"])(None, 1)
    assert found.keys() == {"f1", "matthews", "examples"} and found["f1"] == 0
    assert kept(tmp_path)[1] == {"0": "calm", "1": "LOUD"}  # no ids: numbers
    records = [{"q": "x", "a": ["u", "v"]}, {"q": "y", "a": ["w"]}]
    template = {"inputs": "{q}", "targets": "{a}"}
    assert build(None, records, {"x": "v", "y": "v"}, **template)(None, 1) == {"exact_match": 50, "examples": 2}


@pytest.mark.parametrize(
    ("prompt", "options", "message"),
    [
        (None, {"inputs": "{text}", "targets": "{label}", "metrics": ["f1"]}, "'held': metric 'f1' needs the classes"),
        ("glue_mrpc", {"metrics": ["record"]}, "'held': metric 'record' needs the prompt of its data set"),
        ("glue_mrpc", {"metrics": ["mean_3class_f1"]}, "is for 3 classes, the task has 2"),
    ],
)
def test_metrics_that_do_not_fit_are_refused_before_training(build, prompt, options, message):
    records = None if prompt else [{"text": "one", "label": 0}]
    with pytest.raises(UserError, match=message):
        build(prompt, records, **options)


def test_other_data_is_refused(tmp_path):
    task = Task(source={"kind": "text", "files": ["a.txt"]}, preprocess={"kind": "span_corruption"})
    with pytest.raises(UserError, match="kind must be text_to_text; kind: loss takes others"):
        evaluators_text_to_text.text_to_text_evaluator(
            None, None, TextToTextEvaluation(name="held", data=task), tmp_path
        )


# ---- averages -------------------------------------------------------------------------------------------------------


def fixed(name: str, prompt: str, scores: dict, every: int | None = None) -> Evaluator:
    task = Task(source={"kind": "jsonl", "files": ["a.jsonl"]}, preprocess={"kind": "text_to_text", "prompt": prompt})
    return Evaluator(TextToTextEvaluation(name=name, data=task, every=every), lambda params, step: scores)


def test_an_average_follows_the_evaluations_of_a_suite():
    made = [
        fixed("matched", "glue_mnli", {"accuracy": 80.0, "examples": 3}, 10),
        fixed("mismatched", "glue_mnli", {"accuracy": 60.0}, 10),
        fixed("rte", "glue_rte", {"accuracy": 50.0}, 10),
        fixed("wnli", "glue_wnli", {"accuracy": 0.0}, 5),
        fixed("cb", "super_glue_cb", {"mean_3class_f1": 10.0, "accuracy": 30.0}),
    ]
    watched = evaluators_text_to_text.with_suite_averages(made)
    assert [e.config.name for e in watched] == ["matched", "mismatched", "rte", "wnli", "cb", "glue_average"]
    assert watched[-1].config.every == 10  # one task of SuperGLUE alone has no average
    assert watched[-1].run({}, 10) == {}
    found = [e.run({}, 10) for e in watched]
    assert found[0] == {"accuracy": 80.0, "examples": 3} and found[-1] == {"average": 60.0, "tasks": 2}
    assert watched[-1].run({}, 20) == {}  # nothing was scored at that step


def test_an_average_of_tasks_scored_at_different_steps_waits_for_the_end():
    made = [fixed("rte", "super_glue_rte", {"accuracy": 50.0}, 10), fixed("wic", "super_glue_wic", {"accuracy": 70.0})]
    watched = evaluators_text_to_text.with_suite_averages(made)
    assert watched[-1].config.name == "super_glue_average" and watched[-1].config.every is None
    assert [e.run({}, 3) for e in watched][-1] == {"average": 60.0, "tasks": 2}


def test_a_label_that_no_pieces_can_write_is_named(build, caplog):
    """A vocabulary without an underscore never answers GLUE's not_equivalent, and the score does not say why."""
    records = [{"idx": n, "x": "a", "label": n} for n in (0, 1)]
    build(None, records, inputs="x: {x}", targets="{label}", labels=["un~likely", "likely"])
    assert [r.getMessage() for r in caplog.records] == [
        "evaluation 'held': the tokenizer has no piece for a character of the label 'un~likely', so it can never be "
        "predicted"
    ]
