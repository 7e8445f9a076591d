"""Null thresholds and calibrated confidences: how they are fitted, kept with a checkpoint, and used."""

import json
import math
import random
import shutil
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bertjax
from bertjax import report
from bertjax.cli.main import main
from bertjax.config.loading.load import load
from bertjax.config.schema.evaluation import SquadEvaluation
from bertjax.data.sources.squad import Example
from bertjax.errors import UserError
from bertjax.evaluation import fitted
from bertjax.evaluation.evaluators.build import build_evaluators
from bertjax.evaluation.inference import answer_fit
from bertjax.evaluation.metrics import calibration, squad
from bertjax.evaluation.restore import restore
from bertjax.parallel import mesh
from bertjax.tools.evaluate import evaluate_command
from bertjax.training import loop
from bertjax.training.checkpoint import fits

# ---- the threshold --------------------------------------------------------------------------------------------------


def questions(seed: int, count: int) -> tuple[list[Example], dict[str, str], dict[str, float]]:
    """Examples, answers (right, partly right, wrong or none) and null odds, some of them equal."""
    rng = random.Random(seed)
    examples, answers, odds = [], {}, {}
    for n in range(count):
        gold = rng.choice(["", "red fox", "the owl", "a hen and a cow"])
        found = [(gold, 0)] if gold else []
        examples.append(Example(str(n), "q?", "c", found, not gold))
        answers[str(n)] = rng.choice([gold, "red", "the owl sat", "nothing like it", ""])
        odds[str(n)] = rng.choice([rng.gauss(0, 3), 1.0, -2.0])
    return examples, answers, odds


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 25))
def test_the_kept_threshold_is_the_best_one(seed, count):
    """With it predictions score what it says, and no other threshold scores more; official where no odds are equal."""
    examples, answers, odds = questions(seed, count)
    threshold, f1 = squad.find_null_threshold(examples, answers, odds)

    def with_threshold(x: float) -> float:
        return squad.score(examples, answers, odds, x, version_2=True)["f1"]

    assert with_threshold(threshold) == pytest.approx(f1)
    assert f1 == pytest.approx(max(map(with_threshold, [*odds.values(), min(odds.values()) - 1])))
    if len(set(odds.values())) == count:
        official = squad.score(examples, answers, odds, version_2=True)
        assert official["best_f1"] == pytest.approx(f1)
        if official["best_f1_thresh"] != 0.0:
            assert official["best_f1_thresh"] == threshold


# ---- the calibration ------------------------------------------------------------------------------------------------


def simulated(temperature: float, bias: float, count: int, null: bool = True, seed: int = 0):
    """Scores of 6 spans and of "no answer", and outcomes drawn with probabilities of another temperature and bias."""
    rng = np.random.default_rng(seed)
    spans = -np.sort(-rng.normal(size=(count, 6)) * 4, axis=1)
    scores = rng.normal(size=count) * 4 if null else np.full(count, -np.inf)
    logits = np.column_stack([scores + bias, spans]) / temperature
    weights = np.exp(logits - logits.max(1, keepdims=True))
    drawn = np.array([rng.choice(7, p=w / w.sum()) for w in weights])
    return calibration.Candidates(spans, scores), drawn == 1, drawn == 0


def log_likelihood(found, best, none, temperature: float, bias: float) -> float:
    """The mean negative log-likelihood of the three outcomes, written out question by question."""
    total = 0.0
    for spans, null, is_best, is_none in zip(found.spans, found.null, best, none, strict=True):
        values = np.exp(np.array([null + bias, *spans]) / temperature)
        p_none, p_best = values[0] / values.sum(), values[1] / values.sum()
        total -= np.log(p_best if is_best else p_none if is_none else values[2:].sum() / values.sum())
    return total / len(best)


@pytest.mark.parametrize(("temperature", "bias"), [(2.5, -1.5), (0.7, 2.0)])
def test_the_calibration_is_the_minimum_of_a_grid(temperature, bias):
    data = simulated(temperature, bias, 1500)
    fitted = calibration.fit(*data)
    assert fitted is not None
    assert fitted.temperature == pytest.approx(temperature, rel=0.15) and fitted.null_bias == pytest.approx(
        bias, abs=0.6
    )
    least = log_likelihood(*data, *fitted)
    for t in np.linspace(0.9, 1.1, 5):
        for b in np.linspace(-0.2, 0.2, 5):
            assert least <= log_likelihood(*data, fitted.temperature * t, fitted.null_bias + b) + 1e-12
    confidence, _ = calibration.probabilities(data[0], fitted)
    before, _ = calibration.probabilities(data[0])
    error = calibration.expected_calibration_error
    assert error(confidence, data[1]) < 4 < error(before, data[1])


def test_the_calibration_without_no_answer_has_no_bias():
    found, best, _ = simulated(2.0, 0.0, 1500, null=False)
    fitted = calibration.fit(found, best, np.zeros_like(best))
    assert fitted is not None and fitted.null_bias == 0.0 and fitted.temperature == pytest.approx(2.0, rel=0.15)


def test_too_few_questions_have_no_calibration():
    found, best, none = simulated(2.0, 0.0, 400)
    first = lambda n: calibration.fit(calibration.Candidates(found.spans[:n], found.null[:n]), best[:n], none[:n])  # noqa: E731
    assert first(calibration.MIN_QUESTIONS) is not None and first(calibration.MIN_QUESTIONS - 1) is None
    assert calibration.fit(found, np.zeros_like(best), none) is None  # nothing is right


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=80))
def test_the_calibration_error_is_that_of_the_paper(pairs):
    """Equation 3 of Guo et al., bin by bin; 15 bins (i / 15, (i + 1) / 15]."""
    expected = 0.0
    for i in range(15):
        inside = [(c, r) for c, r in pairs if i / 15 < c <= (i + 1) / 15 or (i == 0 and c == 0)]
        if inside:
            gap = abs(np.mean([r for _, r in inside]) - np.mean([c for c, _ in inside]))
            expected += len(inside) / len(pairs) * gap
    confidence, right = (np.array(column, float) for column in zip(*pairs, strict=True))
    on_edge = np.isclose(confidence * 15, np.round(confidence * 15), atol=1e-9, rtol=0) & (confidence > 0)
    if not on_edge.any():
        assert calibration.expected_calibration_error(confidence, right) == pytest.approx(100 * expected)


def test_confidences_use_as_many_candidates_as_the_fit():
    entry = lambda text, score: {"text": text, "probability": 0.0, "start_logit": score, "end_logit": 0.0}  # noqa: E731
    entries = [entry("a", 3.0), entry("", 2.0), entry("b", 1.0), entry("c", 0.5)]
    values = {"temperature": 2.0, "null_bias": 0.5, "n_best": 3, "with_null": True}
    span, null = answer_fit.calibrated([entries], values)
    weights = np.exp([3.0 / 2, 2.5 / 2, 1.0 / 2])  # "c" is the fourth
    np.testing.assert_allclose([span[0], null[0]], weights[:2] / weights.sum())
    span, null = answer_fit.calibrated([entries], values | {"with_null": False})  # fitted without "no answer"
    weights = np.exp([3.0 / 2, 1.0 / 2, 0.5 / 2])
    np.testing.assert_allclose([span[0], null[0]], [weights[0] / weights.sum(), 0])


# ---- the file -------------------------------------------------------------------------------------------------------


def test_the_file_of_another_step_and_a_damaged_one_are_refused(tmp_path):
    assert fits.read_fits(tmp_path, 3) == {}
    fits.write_fits(tmp_path, {"a": {"kind": "squad", "step": 3}})
    fits.write_fits(tmp_path, {"b": {"kind": "squad", "step": 3}})
    assert fits.read_fits(tmp_path, 3).keys() == {"a", "b"}
    with pytest.raises(UserError, match="is of step 3, not of step 4; delete it"):
        fits.read_fits(tmp_path, 4)
    (tmp_path / "fitted.json").write_text('{"a": ')
    with pytest.raises(UserError, match="fitted.json: damaged; copy it again, or delete it"):
        fits.read_fits(tmp_path)


def test_what_json_cannot_hold_is_damaged_and_not_written(tmp_path):
    """An infinite threshold, of logits that overflow."""
    (tmp_path / "fitted.json").write_text('{"a": {"kind": "squad", "step": 3, "null_threshold": -Infinity}}')
    with pytest.raises(UserError, match="fitted.json: damaged"):
        fits.read_fits(tmp_path, 3)
    examples = [Example("a", "q?", "c", [], True), Example("b", "q?", "c", [("c", 0)])]
    entries = {
        "a": [{"text": "c", "start_logit": 1.0, "end_logit": 0.0}],
        "b": [{"text": "c", "start_logit": 1.0, "end_logit": 0.0}],
    }
    made = answer_fit.fit_answers(examples, {"a": "c", "b": "c"}, entries, {"a": -math.inf, "b": -math.inf}, 20)
    assert made["null_threshold"] is None and made["best_f1"] is None


FIT = {"kind": "squad", "step": 0, "data": "d", "null_threshold": 1.5, "calibration": None}
CALIBRATION = {"temperature": 2.0, "null_bias": 0.5, "n_best": 20, "with_null": True}


@pytest.mark.parametrize(
    "wrong",
    [
        {"null_threshold": "1.5"}, {"null_threshold": True}, {"calibration": []}, {"calibration": {"temperature": 2.0}},
        {"calibration": CALIBRATION | {"temperature": 0}}, {"calibration": CALIBRATION | {"temperature": "2"}},
        {"calibration": CALIBRATION | {"null_bias": None}}, {"calibration": CALIBRATION | {"n_best": 2.5}},
        {"calibration": CALIBRATION | {"with_null": 1}},
    ],
)  # fmt: skip
def test_values_that_no_evaluation_writes_are_refused(wrong):
    def picked(fit):
        restored = SimpleNamespace(fitted={"dev": fit}, where="runs/x", folder=None)
        return fitted.pick_fit(restored, settings_of(name="dev"))

    assert picked(FIT | {"calibration": CALIBRATION}) is not None
    with pytest.raises(UserError, match="^runs/x: the values of 'dev' are damaged; copy the file again, or delete it"):
        picked(FIT | wrong)


def settings_of(**options) -> SquadEvaluation:
    return SquadEvaluation(data={"source": [{"kind": "stdlib_qa"}], "preprocess": {"kind": "span_qa"}}, **options)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"name": "v1"}, "v2"),  # v1 could not sweep a threshold
        ({"name": "v2"}, "v2"),
        ({"name": "squad"}, "v2"),
        ({"name": "v1", "version_2": False}, "v1"),
        ({"name": "v2", "threshold_from": "v1"}, "v1"),
    ],
)
def test_the_threshold_of_several_evaluations_is_that_of_one_with_unanswerable_questions(options, name):
    kept = {"v1": FIT | {"null_threshold": None}, "v2": FIT}
    found = fitted.pick_fit(SimpleNamespace(fitted=kept, where="", folder=None), settings_of(**options))
    assert found == (name, kept[name])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"null_threshold": "swept", "threshold_from": "b"}, "use either null_threshold or threshold_from"),
        ({"null_threshold": 1.0, "null_score_diff_threshold": 2.0}, "give null_threshold alone"),
        ({"null_threshold": "swept", "version_2": False}, "needs questions without an answer"),
        ({"null_threshold": "best"}, "Input should be 'swept'"),
    ],
)
def test_options_that_contradict_each_other(options, message):
    data = {"source": [{"kind": "stdlib_qa"}], "preprocess": {"kind": "span_qa"}}
    with pytest.raises(ValueError, match=message):
        SquadEvaluation(data=data, **options)


# ---- a run ----------------------------------------------------------------------------------------------------------

ANIMALS = "dog cat fox hen cow owl bee ant eel elk".split()
PLACES = "barn river forest garden field cave tree house pond hill".split()


def squad_v2(seed: int, articles: int) -> str:
    """Questions about three animals of each context, and about one that is not there."""
    rng = random.Random(seed)
    data = []
    for number in range(articles):
        animals, places = rng.sample(ANIMALS, 4), rng.sample(PLACES, 3)
        context = " ".join(f"The {a} sleeps in the {p}." for a, p in zip(animals[:3], places, strict=True))
        qas = []
        for animal, place in zip(animals, [*places, None], strict=True):
            found = [{"text": place, "answer_start": context.index(f"the {place}.") + 4}] if place else []
            asked = {"id": f"{seed}-{number}-{animal}", "question": f"Where is the {animal}?"}
            qas.append(asked | {"answers": found, "is_impossible": not found})
        data.append({"title": f"t{number}", "paragraphs": [{"context": context, "qas": qas}]})
    return json.dumps({"version": "v2.0", "data": data})


EVALUATION = """{{kind: squad, name: {name}, {options}data: {{source: {{kind: squad, files: [{file}]}},
      preprocess: {{kind: span_qa, sequence_length: 48, doc_stride: 16, max_query_length: 12}}}}}}"""
CONFIG = """\
model: {{vocab_size: 128, hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2, intermediate_size: 32,
  max_position_embeddings: 48}}
run: {{name: v2, log_every: 50, compute_dtype: float32, tensorboard: false, compilation_cache_dir: null,
  prepare_workers: 1, checkpoint: {{save_every: 20}}}}
stages:
  - {{name: qa, data: {{source: {{kind: squad, files: [train.json]}}, preprocess: {{kind: span_qa, sequence_length: 48,
    doc_stride: 16, max_query_length: 12}}}}, objective: {{kind: span_qa}}, steps: 40, batch_size: 16,
    optimizer: {{kind: adamw, learning_rate: 1e-2, warmup_steps: 5}},
    evaluate: [{evaluations}]}}
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory) -> Path:
    home = tmp_path_factory.mktemp("v2")
    for name, seed, articles in (("train", 0, 60), ("dev", 1, 40), ("other", 2, 30)):
        (home / f"{name}.json").write_text(squad_v2(seed, articles))
    own = [EVALUATION.format(name="dev", options="", file="dev.json")]
    own.append(EVALUATION.format(name="honest", options="threshold_from: dev, every: end, ", file="other.json"))
    (home / "v2.yaml").write_text(CONFIG.format(evaluations=", ".join(own)))
    return home


@pytest.fixture(scope="module")
def run(project) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(mesh, "all_devices", lambda: jax.devices()[:1])
        config = load(project / "v2.yaml", [f"run.root={project}/runs"])
        loop.train(config, project, build_evaluators)
    return config.run_dir


@pytest.fixture
def here(project, monkeypatch) -> Path:
    monkeypatch.chdir(project)
    monkeypatch.setattr(mesh, "all_devices", lambda: jax.devices()[:1])
    return project


ASKED = ("Where is the dog?", "The dog sleeps in the barn. The cat sleeps in the tree.")


def step_folder(run: Path) -> Path:
    return run / "checkpoints" / "00-qa" / "40"


def test_a_run_keeps_what_its_evaluation_sweeps_and_predictions_use_it(run, here, tmp_path):
    ((name, fit),) = fits.read_fits(step_folder(run), 40).items()  # not of `honest`, which has another's
    assert name == "dev" and fit["kind"] == "squad" and (fit["questions"], fit["unanswerable"]) == (160, 40)
    folder = run / "evaluations" / "00-qa"
    content = json.loads((folder / "dev.json").read_text())
    assert content["fitted"] == fit and content["null_threshold"] == 0.0
    # the fit, from the files: the n-best lists and the odds of all questions
    examples = [
        e for source in restore(run).ctx.config.stages[0].evaluate[0].data.source for e in squad_examples(here, source)
    ]
    nbest = json.loads((folder / "dev.nbest.json").read_text())
    odds = json.loads((folder / "dev.null_odds.json").read_text())
    best = {key: next(e["text"] for e in entries if e["text"]) for key, entries in nbest.items()}
    assert squad.find_null_threshold(examples, best, odds) == (fit["null_threshold"], fit["best_f1"])
    honest = json.loads((folder / "honest.json").read_text())
    assert honest["null_threshold"] == fit["null_threshold"] and honest["fitted_by"] == fit
    page = report.write_report(run, tmp_path / "page.html").read_text()
    assert f"The best null threshold on these data is {fit['null_threshold']:.4g}" in page
    assert f"Null threshold {fit['null_threshold']:.4g}, swept on other data (160 questions)." in page
    model = bertjax.open(run)
    found = model.answer(*ASKED)
    assert found["no_answer"]["threshold"] == fit["null_threshold"]
    assert (found["answer"] is None) == (found["no_answer"]["null_odds"] > fit["null_threshold"])
    assert model.answer(*ASKED, null_threshold=5.0)["no_answer"]["threshold"] == 5.0
    own = restore(run, overrides=["stages.qa.evaluate.dev.null_threshold=-3.5"])
    assert bertjax.Model(own).answer(*ASKED)["no_answer"]["threshold"] == -3.5
    own = restore(run, overrides=["stages.qa.evaluate.dev.null_score_diff_threshold=0.5"])
    assert bertjax.Model(own).answer(*ASKED)["no_answer"]["threshold"] == 0.5


def squad_examples(base: Path, source) -> list[Example]:
    from bertjax.data.sources.squad import read_squad

    return read_squad(source, base)


def test_confidences_are_those_of_the_calibration(run, here):
    fit = fits.read_fits(step_folder(run))["dev"]
    scores = json.loads((run / "evaluations" / "00-qa" / "dev.json").read_text())["scores"]
    assert fit["calibration"] is not None and scores.keys() >= {"ece", "calibrated_ece"}
    model = bertjax.open(run)
    found = model.answer(*ASKED, n_best=40, null_threshold=1e9)
    values = fit["calibration"]
    probabilities = [c["probability"] for c in found["candidates"]][: values["n_best"] - 1]
    # the softmax's probabilities are scores up to a constant
    logits = np.log([found["no_answer"]["probability"], *probabilities]) + np.array(
        [values["null_bias"]] + [0] * len(probabilities)
    )
    weights = np.exp(logits / values["temperature"])
    assert found["confidence"] == pytest.approx(weights[1] / weights.sum(), rel=1e-4)
    assert found["no_answer"]["confidence"] == pytest.approx(weights[0] / weights.sum(), rel=1e-4)
    none = model.answer(*ASKED, null_threshold=-1e9)
    assert none["answer"] is None and none["confidence"] == pytest.approx(found["no_answer"]["confidence"], rel=1e-4)
    low = model.answer(*ASKED, null_threshold=1e9, min_confidence=min(1.0, found["confidence"] + 0.01))
    assert low["answer"] is None and "confidence" in low["reason"] and "confidence" not in low
    assert model.answer(*ASKED, null_threshold=1e9, min_confidence=found["confidence"] - 0.01)["answer"]


def test_the_threshold_travels_with_copies_exports_and_imports(run, here, tmp_path, capsys):
    fit = fits.read_fits(step_folder(run))["dev"]
    expected = bertjax.open(run).answer(*ASKED)
    shutil.copytree(step_folder(run), tmp_path / "copied")
    assert bertjax.open(tmp_path / "copied").answer(*ASKED) == expected
    assert main(["export", str(run), str(tmp_path / "hf")]) == 0
    assert "bertjax_fitted.json: null threshold and calibration of dev" in capsys.readouterr().err
    assert main(["export", str(tmp_path / "hf"), str(tmp_path / "again")]) == 0
    assert main(["import", str(tmp_path / "again"), str(tmp_path / "run")]) == 0
    for place in ("hf", "again", "run"):
        found = bertjax.open(tmp_path / place).answer(*ASKED)
        assert found["no_answer"]["threshold"] == fit["null_threshold"], place
        assert found["answer"] == expected["answer"]
        assert found["confidence"] == pytest.approx(expected["confidence"], abs=1e-4)
    assert fits.read_fits(tmp_path / "run" / "checkpoints" / "00-import" / "0", 0)["dev"]["step"] == 0


def test_evaluations_on_other_data_use_the_kept_threshold(run, here, tmp_path, capsys):
    fit = fits.read_fits(step_folder(run))["dev"]
    before = (step_folder(run) / "fitted.json").read_bytes()
    same = evaluate_command(run, None, "qa", None, [])
    assert same["differs"] == {} and (step_folder(run) / "fitted.json").read_bytes() == before
    assert "the best null threshold on these data is" in capsys.readouterr().err
    other = "stages.qa.evaluate.dev.data.source.files=[other.json]"
    found = evaluate_command(run, None, "qa", "dev", [other], predictions_dir=tmp_path / "official")
    content = json.loads(Path(found["kept"]["dev"]).read_text())
    assert content["null_threshold"] == fit["null_threshold"] and content["fitted_by"] == fit
    assert found["differs"]["dev"]["stages.qa.evaluate.dev.threshold_from"] == {"here": "dev", "run": None}
    assert found["scores"]["dev"] == json.loads((run / "evaluations" / "00-qa" / "honest.json").read_text())["scores"]
    assert "swept on other data (160 questions)" in capsys.readouterr().err
    # the official files, and the official scores of them
    files = {path.name: json.loads(path.read_text()) for path in (tmp_path / "official").iterdir()}
    assert files.keys() == {"predictions.json", "nbest_predictions.json", "null_odds.json"}
    key = next(iter(files["predictions.json"]))
    assert list(files["nbest_predictions.json"][key][0]) == ["text", "probability", "start_logit", "end_logit"]
    written, odds, scores = (tmp_path / name for name in ("official/predictions.json", "official/null_odds.json", "s"))
    assert written.read_text() == json.dumps(files["predictions.json"], indent=4) + "\n"
    command = ["score", "squad", "other.json", str(written), "--null-odds", str(odds), "--out-file", str(scores)]
    assert main(command) == 0
    scored = json.loads(scores.read_text())
    assert scored == {name: pytest.approx(found["scores"]["dev"][name]) for name in scored}
    for key, value in files["predictions.json"].items():
        assert (value == "") == (files["null_odds.json"][key] > fit["null_threshold"])


def test_what_is_fitted_elsewhere_is_kept_on_request(run, here, tmp_path, capsys):
    shutil.copytree(step_folder(run), tmp_path / "copied")
    (tmp_path / "copied" / "fitted.json").unlink()
    other = "stages.qa.evaluate.dev.data.source.files=[other.json]"
    command = ["evaluate", str(tmp_path / "copied"), "--name", "dev", other, "--output", str(tmp_path / "scores")]
    assert main(command) == 0
    assert not (tmp_path / "copied" / "fitted.json").exists()
    with pytest.raises(UserError, match="min_confidence: .*copied keeps no calibration"):
        bertjax.open(tmp_path / "copied").answer(*ASKED, min_confidence=0.5)
    assert "confidence" not in bertjax.open(tmp_path / "copied").answer(*ASKED)
    assert main([*command, "--keep-threshold"]) == 0
    assert "null threshold and calibration kept in" in capsys.readouterr().err
    kept = fits.read_fits(tmp_path / "copied", 40)["dev"]
    assert (
        kept["questions"] == 120 and kept["null_threshold"] != fits.read_fits(step_folder(run))["dev"]["null_threshold"]
    )
    assert bertjax.open(tmp_path / "copied").answer(*ASKED)["no_answer"]["threshold"] == kept["null_threshold"]


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("none", "threshold_from: 'none' is not another evaluation of this stage that sweeps a threshold; use dev"),
        ("honest", "threshold_from: 'honest' is not another evaluation"),
    ],
)
def test_a_threshold_from_nowhere_is_refused_before_the_run(here, source, message):
    config = load(here / "v2.yaml", [f"run.root={here}/none", f"stages.qa.evaluate.honest.threshold_from={source}"])
    with pytest.raises(UserError, match=message):
        loop.train(config, here, build_evaluators)
    assert not (here / "none").exists()


def test_scores_with_the_swept_threshold_and_of_one_evaluation_alone(run, here, tmp_path):
    fit = fits.read_fits(step_folder(run))["dev"]
    found = evaluate_command(run, None, "qa", "dev", ["stages.qa.evaluate.dev.null_threshold=swept"])
    assert found["scores"]["dev"]["f1"] == pytest.approx(fit["best_f1"])
    assert json.loads(Path(found["kept"]["dev"]).read_text())["null_threshold"] == fit["null_threshold"]
    recorded = (run / "evaluations" / "00-qa" / "honest.json").read_bytes()
    alone = evaluate_command(run, None, "qa", "honest", [])
    assert alone["differs"] == {} and (run / "evaluations" / "00-qa" / "honest.json").read_bytes() == recorded
    # a copy without the file: the other evaluation is run for its threshold
    shutil.copytree(step_folder(run), tmp_path / "copied")
    (tmp_path / "copied" / "fitted.json").unlink()
    again = evaluate_command(tmp_path / "copied", None, None, "honest", [], output=tmp_path / "scores")
    assert again["scores"] == alone["scores"] and not (tmp_path / "scores" / "dev.json").exists()


def test_what_cannot_be_scored_or_kept_is_refused(run, here, tmp_path):
    with pytest.raises(UserError, match="threshold_from: 'none' is not another evaluation of this stage"):
        evaluate_command(run, None, "qa", "honest", ["stages.qa.evaluate.honest.threshold_from=none"])
    data = json.loads((here / "other.json").read_text())
    for paragraph in (paragraph for article in data["data"] for paragraph in article["paragraphs"]):
        paragraph["qas"] = [asked for asked in paragraph["qas"] if asked["answers"]]
    (here / "answerable.json").write_text(json.dumps(data))
    files = "stages.qa.evaluate.dev.data.source.files=[answerable.json]"
    with pytest.raises(UserError, match="null_threshold: its data have no question without an answer"):
        evaluate_command(run, None, "qa", "dev", [files, "stages.qa.evaluate.dev.null_threshold=swept"])
    with pytest.raises(UserError, match="so --keep-threshold has nothing to keep"):
        evaluate_command(run, None, "qa", "honest", [], keep_threshold=True)
    with pytest.raises(UserError, match="is for one evaluation, but there are dev, honest; give --name"):
        evaluate_command(run, None, "qa", None, [], predictions_dir=tmp_path / "p")
