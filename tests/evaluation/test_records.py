"""Whose scores an evaluation keeps: the run's own record, or files of their own that say what they were made from."""

import json
from typing import Any

import pytest

from bertjax.config.loading.load import build
from bertjax.errors import UserError
from bertjax.evaluation import records
from bertjax.report.record import read_run

HELD = {"source": {"kind": "jsonl", "files": ["held.jsonl"]}, "preprocess": {"sequence_length": 64}}
CONFIG = {
    "stages": [
        {"name": "first", "data": {"source": {"files": ["a.txt"]}}, "steps": 20, "batch_size": 8,
         "evaluate": [{"kind": "mlm", "data": HELD}, {"kind": "mlm", "name": "short", "data": HELD, "batches": 1}]}
    ]
}  # fmt: skip
MLM = "stages.first.evaluate.mlm"


def differing(*overrides: str, kept: dict[str, Any] | None = None, **made: Any) -> dict[str, Any]:
    """What `evaluate` with these overrides finds different; made: what is not as the run's record has it."""
    old, new = build(CONFIG), build(CONFIG, overrides)
    about = {"evaluation": new.stages[0].evaluate[0].model_dump(mode="json"), "data": "d", "computed": "cpu float32"}
    return records.diff_from_run(old, new, 0, new.stages[0].evaluate[0], kept or {}, about | made)


@pytest.mark.parametrize(
    ("override", "here", "run"),
    [
        (f"{MLM}.data.source.files=[x]", "x", "held.jsonl"),
        (f"{MLM}.data.limit=5", 5, None),
        (f"{MLM}.data.preprocess.masked_lm_prob=0.3", 0.3, 0.15),
        (f"{MLM}.batches=2", 2, None),
        (f"{MLM}.batch_size=4", 4, 32),
        ("run.seed=1", 1, 0),
        ("run.compute_dtype=bfloat16", "bfloat16", "auto"),
        ("stages.first.objective.nsp_weight=0.0", 0.0, 1.0),
        ("model.layer_norm_eps=1e-6", 1e-6, 1e-12),
    ],
)
def test_whatever_a_score_depends_on_makes_another_evaluation(override, here, run):
    (found,) = differing(override).values()
    assert found == {"here": here, "run": run}


@pytest.mark.parametrize(
    "override",
    ["run.log_every=7", "run.prefetch=9", "mesh.fsdp=2", f"{MLM}.every=5", "stages.first.evaluate.short.batches=2",
     "stages.first.optimizer.learning_rate=0.5", "stages.first.steps=9", "run.prepared_dir=elsewhere"],
)  # fmt: skip
def test_what_no_score_depends_on_does_not(override):
    assert differing(override) == {}


def test_the_runs_record_is_compared_where_it_says_what_it_was_made_from():
    kept = {"evaluation": build(CONFIG, [f"{MLM}.batch_size=4"]).stages[0].evaluate[0].model_dump(mode="json")}
    assert differing(f"{MLM}.batch_size=4", kept=kept) == {}
    assert differing(kept=kept) == {f"{MLM}.batch_size": {"here": 32, "run": 4}}
    whole = {"evaluation": build(CONFIG).stages[0].evaluate[0].model_dump(mode="json"), "data": "d"}
    assert differing(kept=whole | {"computed": "gpu bfloat16"}) == {
        "arithmetic": {"here": "cpu float32", "run": "gpu bfloat16"}
    }
    assert differing(kept=whole, data="changed") == {"data as they are read": {"here": "changed", "run": "d"}}


def test_a_record_of_an_earlier_version_is_not_replaced(tmp_path):
    """Its rules may have been others, as those of `squad` were: the scores of this version go beside it."""
    (tmp_path / "mlm.json").write_text('{"step": 20, "scores": {}}')
    step, kept = records.last_recorded(tmp_path, tmp_path, "first", "mlm")
    assert step == 20
    assert differing(kept=kept) == {"made by": {"here": "this version", "run": "an earlier version"}}


def test_an_evaluation_the_run_does_not_have():
    new = f"stages.first.evaluate=[{{kind: mlm, name: new, data: {json.dumps(HELD)}}}]"
    found = differing(new)
    assert records.describe_provenance(20, found) == (
        "from step 20 with stages.first.evaluate.new, which is not in the run's configuration"
    )


def test_the_runs_last_step_is_that_of_its_record(tmp_path):
    folder = tmp_path / "evaluations" / "00-first"
    assert records.last_recorded(tmp_path, folder, "first", "mlm") == (None, {})
    folder.mkdir(parents=True)
    (folder / "mlm.json").write_text(json.dumps({"step": 20, "scores": {}, "made_from": {"data": "d"}}))
    assert records.last_recorded(tmp_path, folder, "first", "mlm") == (20, {"data": "d"})
    line = {"kind": "eval", "stage": "first", "step": 30, "name": "mlm", "scores": {}}
    others = [line | {"stage": "second", "step": 90}, line | {"name": "short", "step": 80}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in [line | {"step": 10}, line, *others]))
    assert records.last_recorded(tmp_path, folder, "first", "mlm") == (30, {})  # the file is of another step
    (folder / "mlm.json").write_text("[")
    assert records.last_recorded(tmp_path, folder, "first", "mlm") == (30, {})


def test_names_are_the_same_for_the_same_evaluation_alone():
    batch, files = differing(f"{MLM}.batch_size=4"), differing(f"{MLM}.data.source.files=[x]")
    stems = [records.variant_stem("mlm", 20, found) for found in (batch, files, differing(f"{MLM}.batch_size=8"))]
    assert len({*stems, records.variant_stem("mlm", 10, batch)}) == 4
    assert stems[0] == records.variant_stem("mlm", 20, differing(f"{MLM}.batch_size=4")) and "mlm-step20-" in stems[0]


def test_where_output_puts_the_files(tmp_path):
    assert records.output_paths(tmp_path / "new", ["a", "b"]) == {n: (tmp_path / "new", n) for n in "ab"}
    assert records.output_paths(tmp_path / "x.json", ["a"]) == {"a": (tmp_path, "x")}
    with pytest.raises(
        UserError, match="a file is for one evaluation, but there are a, b; give --name, or name a fold"
    ):
        records.output_paths(tmp_path / "x.json", ["a", "b"])
    record = records.EvaluationRecord(tmp_path, "a", "x", {})
    assert record.path.name == "x.json" and record.file_path("a.predictions").name == "x.predictions.json"
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written \\(Not a directory\\); name a folder with --output"):
        records.check_writable(tmp_path / "file" / "evaluations")
    assert records.is_writable(tmp_path / "new" / "deeper")


def test_the_report_shows_other_evaluations_apart(tmp_path):
    from bertjax.report import write_report

    run = tmp_path / "run"
    folder = run / "evaluations" / "00-first"
    (folder / "other").mkdir(parents=True)
    (run / "config.yaml").write_text("stages: [{name: first, steps: 20}]\n")
    lines = [{"kind": "eval", "stage": "first", "step": 20, "name": "mlm", "scores": {"mlm_loss": 5.25}},
             {"kind": "event", "stage": "first", "step": 20, "event": "stage_end"}]  # fmt: skip
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "mlm.json").write_text(json.dumps({"step": 20, "scores": {"mlm_loss": 5.25}}))
    differs = {"step": {"here": 10, "run": 20}, f"{MLM}.data.source.0.files.0": {"here": "<b>x</b>", "run": "held"}}
    other = {"step": 10, "scores": {"mlm_loss": 6.75}, "made_from": {"evaluation": {"name": "mlm"}}, "differs": differs}
    (folder / "other" / "mlm-step10-0a1b2c3d.json").write_text(json.dumps(other))
    (folder / "other" / "mlm-step10-0a1b2c3d.predictions.json").write_text(json.dumps({"id": "text"}))
    (folder / "other" / "broken.json").write_text("{")
    (stage,) = read_run(run).stages
    assert [(e.name, e.scores) for e in stage.evaluations] == [("mlm", {"mlm_loss": 5.25})]
    page = write_report(run).read_text(encoding="utf-8")
    summary, _, rest = page.partition('id="stage-1"')
    assert "5.25" in summary and "6.75" not in summary
    assert "Other evaluations" in rest and "6.75" in rest and "Results of bertjax evaluate with other data" in rest
    assert (
        "from step 10 (the run&#x27;s own score is from step 20) with stages.first.evaluate.mlm.data.source.0.files.0 "
        in rest
    )
    assert "&lt;b&gt;x&lt;/b&gt;" in rest and "<b>x</b>" not in rest
