"""`bertjax compare`: which runs it makes of a configuration, and the table of what they learnt and cost."""

import json
from contextlib import chdir
from pathlib import Path

import jax
import pytest
import yaml
from report_page import Page
from t5_project import CONFIG, write_project

from bertjax.cli.main import main
from bertjax.config.loading.load import build, load
from bertjax.errors import UserError
from bertjax.models import param_paths, registry
from bertjax.models.peft_options import PeftOptions
from bertjax.report.pages.variants import variants_page
from bertjax.tools.compare import build_runs, format_markdown, table_cells, table_scores
from bertjax.training import freezing

WAYS = [
    {"name": "full", "trainable": "all"},
    {"name": "head", "trainable": "head", "optimizer": {"kind": "adamw", "learning_rate": 0.01}},
    {"name": "gradual", "trainable": "gradual"},
    {"name": "d4", "trainable": {"kind": "adapters", "adapter_size": 4}},
]


def config(**changes: object):
    return build(yaml.safe_load(CONFIG) | {"compare": WAYS} | changes)


def test_the_stages_before_the_last_are_where_all_start():
    start, runs = build_runs(config())
    assert [stage.name for stage in start.stages] == ["pretrain"] and start.run.name == "tiny-base"
    assert [run.run.name for run in runs] == ["tiny-full", "tiny-head", "tiny-gradual", "tiny-d4"]
    for run, way in zip(runs, config().compare, strict=True):
        (stage,) = run.stages
        assert stage.init_from == "runs/tiny-base" and run.tokenizer.path == "runs/tiny-base/tokenizer"
        assert stage.trainable == way.trainable
        assert stage.optimizer.kind == ("adamw" if way.name == "head" else "adafactor")
        assert stage.data == config().stages[-1].data and stage.evaluate == config().stages[-1].evaluate


def test_a_checkpoint_named_is_where_all_start():
    stage = yaml.safe_load(CONFIG)["stages"][-1] | {"init_from": "t5-base"}
    start, runs = build_runs(config(stages=[stage]))
    assert start is None and {run.stages[0].init_from for run in runs} == {"t5-base"}
    assert {run.tokenizer for run in runs} == {config().tokenizer}


def test_random_weights_are_a_start_when_they_are_named():
    stage = yaml.safe_load(CONFIG)["stages"][-1] | {"init_from": "scratch"}
    start, runs = build_runs(config(stages=[stage]))
    assert start is None and {run.stages[0].init_from for run in runs} == {"scratch"}


def test_without_a_start_there_is_nothing_to_compare():
    stage = yaml.safe_load(CONFIG)["stages"][-1] | {"init_from": None}
    with pytest.raises(UserError, match="stages.tune.init_from: all variants start from one checkpoint"):
        build_runs(config(stages=[stage]))
    with pytest.raises(UserError, match="^compare: names no ways to fine-tune"):
        build_runs(config(compare=[]))


@pytest.mark.parametrize("names", [["a", "a"], ["base", "a"]])
def test_ways_have_names_of_their_own(names):
    with pytest.raises(UserError, match="compare need different names"):
        config(compare=[{"name": name, "trainable": "all"} for name in names])


def test_a_variant_overrides_its_stage_and_its_run():
    changes = {"init_from": "scratch", "tasks.places.source.split": "[:10]", "steps": 3, "run.seed": 7}
    start, (full, small) = build_runs(config(compare=[WAYS[0], {**WAYS[0], "name": "small", "overrides": changes}]))
    assert start is not None and full.stages[0].init_from == "runs/tiny-base" and full.run.seed != 7
    (stage,) = small.stages
    assert (stage.init_from, stage.steps, small.run.seed) == ("scratch", 3, 7)
    assert [run.tasks["places"].source[0].split for run in (full, small)] == [None, "[:10]"]


def test_variants_that_all_name_their_start_need_no_other():
    stage = yaml.safe_load(CONFIG)["stages"][-1] | {"init_from": None}
    ways = [
        {**way, "overrides": {"init_from": place}} for way, place in zip(WAYS, ("scratch", "t5-base"), strict=False)
    ]
    start, runs = build_runs(config(stages=[stage], compare=ways))
    assert start is None and [run.stages[0].init_from for run in runs] == ["scratch", "t5-base"]


def test_an_unknown_override_is_named():
    with pytest.raises(UserError, match=r"compare.full.overrides: stages.tune.stepz: unknown key .*did you mean"):
        build_runs(config(compare=[{**WAYS[0], "overrides": {"stepz": 3}}]))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"stages.before.steps": 3}, "stages.before.steps: variants are of the last stage, 'tune', only"),
        ({"stages.0.steps": 3}, "stages.0.steps: variants are of the last stage"),
        ({"stages.tune.steps": 3, "steps": 4}, "steps: stages.tune.steps is given too"),
        ({"data.source.split": "[:3]", "stages.tune.data": "places"}, "stages.tune.data: .* is given too"),
        ({"trainable.kind": "head"}, "trainable.kind: give trainable of the variant itself"),
        ({"run.name": "tiny-base"}, "run.name: a run is named after its variant"),
        ({"run": {"name": "other"}}, "run: a run is named after its variant"),
        ({"pretrained": "t5-base"}, "pretrained: is not read here"),
        ({"compare": []}, "compare: is not read here"),
        ({"init_from": "previous"}, "init_from: leave it out"),
    ],
)
def test_overrides_that_would_not_do_what_they_say_are_refused(overrides, message):
    with pytest.raises(UserError, match=rf"compare\.full\.overrides: {message}"):
        build_runs(config(compare=[{**WAYS[0], "overrides": overrides}]))


def test_an_override_may_name_the_last_stage():
    stage = yaml.safe_load(CONFIG)["stages"][-1] | {"init_from": None}
    changes = {"stages.tune.init_from": "scratch", "stages.0.steps": 3}
    start, (run,) = build_runs(config(stages=[stage], compare=[{**WAYS[0], "overrides": changes}]))
    assert start is None and (run.stages[0].init_from, run.stages[0].steps) == ("scratch", 3)


def test_curves_are_drawn_by_examples():
    row = {
        "method": "a", "trained": 10, "share": 1.0, "episodes": 1, "step_seconds": None, "step_bytes": None,
        "optimizer_bytes": 0,
    }  # fmt: skip
    rows = [
        row | {"curve": curve, "examples": n, "scores": {"dev/f1": f1}}
        for curve, n, f1 in (("scratch", 1000, 20.0), ("scratch", 10, 5.0), ("pre-trained", 10, 40.5))
    ] + [row | {"examples": 500, "scores": {}}]
    head, cells = table_cells(rows, ["dev/f1"])
    assert head[:2] == ["method", "examples"] and [line[1] for line in cells] == ["1,000", "10", "10", "500"]
    (chart,) = Page(variants_page("trial", head, cells, rows, ["dev/f1"])).data
    assert chart["logX"] and [(s["label"], s["x"], s["y"]) for s in chart["series"]] == [
        ("scratch", [10, 1000], [5, 20]), ("pre-trained", [10], [40.5]),
    ]  # fmt: skip
    assert not Page(variants_page("trial", head, cells, rows[-1:], ["dev/f1"])).data


def test_the_table():
    row = {
        "method": "gradual", "trained": 1000, "trained_mean": 500.0, "share": 0.5, "share_mean": 0.25, "episodes": 2,
        "scores": {"dev/f1": 88.5, "dev/exact": 80.25, "dev/more": 1.0}, "step_seconds": 0.25, "step_bytes": 3 * 2**30,
        "optimizer_bytes": 2048,
    }  # fmt: skip
    other = row | {"method": "all", "episodes": 1, "scores": {}, "diverged": "...", "step_seconds": None}
    text = format_markdown([row, other], ["dev/f1"]).splitlines()
    assert text[0] == "| method | trained parameters | share | dev/f1 | step time | step memory | optimizer state |"
    assert text[2] == "| gradual | 1,000 (mean 500) | 50.00% (mean 25.00%) | 88.5 | 250 ms | 3.0 GiB | 2 KiB |"
    assert text[3] == "| all | 1,000 | 50.00% | diverged | - | 3.0 GiB | 2 KiB |"


def test_scores_that_keep_best_names_are_shown():
    rows = [{"scores": {"loss/a": 1.0, "loss/b": 1.0, "loss/c": 1.0}}]
    assert table_scores(config(), rows) == ["loss/a", "loss/b"]
    best = config(run={"checkpoint": {"keep_best": "loss/c"}})
    assert table_scores(best, rows) == ["loss/c"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["bert", "t5"])
def test_ways_are_trained_once_and_tabulated(kind, tiny_project, tmp_path, capsys):
    """Counts follow from the model's shapes: Adam keeps two numbers for each parameter that trains."""
    home = tiny_project
    ways = WAYS[:3] if kind == "bert" else [WAYS[0], WAYS[3]]
    if kind == "t5":
        write_project(tmp_path)
        home = tmp_path
    command = ["compare", "tiny.yaml", f"compare={json.dumps(ways)}", f"run.root={tmp_path / 'runs'}"]
    with chdir(home):
        assert main([*command, "--json"]) == 0
        found = json.loads(capsys.readouterr().out)
        lines = {p: p.read_bytes() for p in (tmp_path / "runs").glob("*/metrics.jsonl")}
        assert main(command) == 0
        table = capsys.readouterr().out
    assert len(lines) == len(ways) + 1 and {p: p.read_bytes() for p in lines} == lines, "trained again"
    assert (tmp_path / "runs" / "tiny-comparison.md").read_text() == table
    assert json.loads((tmp_path / "runs" / "tiny-comparison.json").read_text()) == found
    model = load(home / "tiny.yaml").model
    heads = ("qa",) if kind == "bert" else ("lm",)
    rows = {row["method"]: row for row in found["methods"]}
    assert list(rows) == [way["name"] for way in ways]
    for name, row in rows.items():
        size = 4 if name == "d4" else 0
        sizes = freezing.group_sizes(
            param_paths.flatten(
                registry.abstract_model(model, heads, peft=PeftOptions(adapter_size=size))[1], _is_variable
            )
        )
        whole = sum(sizes.values())
        expected = {"head": sizes.get("heads"), "d4": 2 * 2 * (32 * 4 * 2 + 32) + 32 * (2 * 2 + 2 * 3 + 2)}
        assert row["trained"] == expected.get(name, whole) and row["parameters"] == whole
        assert row["scores"] and row["step_bytes"] > 0 and row["step_seconds"] > 0
        if kind == "bert":
            assert row["optimizer_bytes"] >= 8 * row["trained"]
    if kind == "bert":
        assert rows["gradual"]["trained_mean"] < rows["gradual"]["trained"] == rows["full"]["trained"]
        assert rows["head"]["step_bytes"] < rows["full"]["step_bytes"]


def _is_variable(leaf: object) -> bool:
    return hasattr(leaf, "get_metadata") and not isinstance(leaf, jax.Array)


def test_the_recipe_is_a_comparison(tmp_path: Path):
    recipe = Path(__file__).resolve().parents[2] / "configs" / "recipes" / "compare_finetuning.yaml"
    (tmp_path / "google-t5" / "t5-base").mkdir(parents=True)
    (tmp_path / "google-t5" / "t5-base" / "config.json").write_text(json.dumps({"model_type": "t5", "num_layers": 12}))
    with chdir(tmp_path):
        start, runs = build_runs(load(recipe))
    assert start is None and len(runs) == 8
