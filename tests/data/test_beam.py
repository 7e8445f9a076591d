"""Apache Beam makes the same bytes as this machine's own processes. Skipped where Beam is not installed."""

import os
import shlex
import sys
from pathlib import Path
from typing import Any

import fakegcs
import pytest
from preparing import TASKS, contents, prepared, small_jobs, task_of, write_texts

from bertjax.cli.main import COMMANDS, _parse, _split_command, main
from bertjax.config.loading.load import load
from bertjax.config.schema.sources import JsonLines
from bertjax.data.jobs import shards
from bertjax.data.jobs.jobs import JobOutput
from bertjax.data.jobs.shuffle import PositionShuffle
from bertjax.data.pipeline.prepare import prepare
from bertjax.data.store.reader import Store
from bertjax.errors import StorageError, UserError
from bertjax.tools.prepare import make_runner

try:
    import apache_beam  # noqa: F401

    INSTALLED = True
except ImportError:
    INSTALLED = False
needs_beam = pytest.mark.skipif(not INSTALLED, reason="apache-beam is not installed (extra `beam`)")


@pytest.fixture
def base(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    write_texts(tmp_path)
    small_jobs(monkeypatch)
    return tmp_path


def objects(bucket: Path, store: Store) -> dict[str, bytes]:
    folder = bucket.parent / str(store.folder).removeprefix("gs://")
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_beam_that_is_missing_is_one_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "apache_beam", None)
    with pytest.raises(UserError, match=r"Apache Beam is missing; .*pip install 'bertjax\[beam,gcs\]'"):
        make_runner("beam", [])


@needs_beam
@pytest.mark.parametrize("kind", TASKS)
def test_the_bytes_are_those_of_the_local_runner(base: Path, kind: str):
    here = prepared(kind, base, "here")
    beam = prepared(kind, base, "beam", runner=make_runner("beam"))
    assert len(here.shards) > 3 and contents(beam) == contents(here)
    assert [path.name for path in (base / "beam").iterdir()] == [beam.folder.name]


@needs_beam
@pytest.mark.slow
@pytest.mark.parametrize(("kind", "workers"), [("pairs packed, static", 1), ("chunks", 1), ("chunks", 2)])
def test_processes_and_object_stores_change_no_byte(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, workers: int
):
    bucket = fakegcs.install(tmp_path, monkeypatch) / "bucket"
    (bucket / "in").mkdir(parents=True)
    write_texts(bucket / "in")
    kit = str(Path(__file__).parents[1] / "kit")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([os.environ["PYTHONPATH"], kit, str(Path(__file__).parents[2])]))
    here = prepared(kind, base, "here", "gs://bucket/in")
    far = prepared(kind, base, "gs://bucket/cache", "gs://bucket/in", runner=make_runner("beam", [], workers))
    assert objects(bucket, far) == contents(here)
    assert [path.name for path in (bucket / "cache").iterdir() if any(path.glob("**/*.*"))] == [far.folder.name]


@needs_beam
@pytest.mark.parametrize("kind", ["pairs", "chunks"])
def test_a_limit_takes_the_same_sample_here_and_there(base: Path, kind: str):
    here = prepared(kind, base, "here", limit=80)
    beam = prepared(kind, base, "beam", limit=80, runner=make_runner("beam"))
    assert here.meta["documents"] == 80 and contents(beam) == contents(here)


MADE: list[int] = []
make_shard = shards.make_shard


def fails_after_four(work: shards.ShardContext, argument: object, index: int, folder: Path) -> JobOutput:
    """At the top of the module, so that it can be pickled."""
    if len(MADE) == 4:
        raise RuntimeError("a machine was lost")
    MADE.append(index)
    return make_shard(work, argument, index, folder)


@needs_beam
@pytest.mark.parametrize("kind", ["pairs", "chunks"])
def test_a_pipeline_that_broke_off_goes_on(base: Path, monkeypatch: pytest.MonkeyPatch, kind: str):
    expected = contents(prepared(kind, base, "here"))
    MADE.clear()
    with monkeypatch.context() as patched:
        patched.setattr(shards, "make_shard", fails_after_four)
        with pytest.raises(StorageError, match="the pipeline failed .*a machine was lost.*run the same command again"):
            prepared(kind, base, runner=make_runner("beam"))
    (work,) = (base / "cache").iterdir()
    assert len(list(work.glob("examples-done/*.json"))) == 4
    damaged = sorted((work / "rows").iterdir())[1]
    damaged.write_bytes(damaged.read_bytes()[:-3])

    asked: set[int] = set()
    brought = PositionShuffle.shared_for_job

    def shared(self: PositionShuffle, work: Any, job: int, found: Any) -> Any:
        asked.add(job)
        return brought(self, work, job, found)

    monkeypatch.setattr(PositionShuffle, "shared_for_job", shared)
    lines: list[str] = []
    store = prepared(kind, base, runner=make_runner("beam"), report=lines.append)
    assert contents(store) == expected
    assert "of" in lines[-1] and "were finished before" in lines[-1]
    if kind == "chunks":  # documents went to those jobs alone that had to be done
        assert asked == set(range(len(store.shards))) - set(MADE) | {int(damaged.name[5:10])}


@needs_beam
def test_faults_of_the_data_are_one_line_with_their_code(base: Path):
    (base / "part-3.jsonl").write_text('{"text": "ban"}\n{"text": 3}\n')
    with pytest.raises(UserError, match=r"part-3.jsonl: line 2: field 'text' holds a int, not text") as caught:
        prepared("chunks", base, runner=make_runner("beam"))
    assert "\n" not in str(caught.value)
    assert not (base / "cache").exists()
    (base / "blank.jsonl").write_text('{"text": " "}\n')
    task, tokenizer = task_of("pairs")
    blank = task.model_copy(update={"source": [JsonLines(files=["blank.jsonl"])]})
    with pytest.raises(UserError, match="blank.jsonl: holds no text at all"):
        prepare(blank, "t", tokenizer, seed=1, base=base, cache=base / "cache", workers=1, runner=make_runner("beam"))


@needs_beam
def test_an_option_that_beam_does_not_know_is_refused(base: Path):
    with pytest.raises(UserError, match="Beam has no option --projct"):
        make_runner("beam", ["--runner=DataflowRunner", "--projct=p"])


@needs_beam
def test_the_command_hands_options_to_beam(tmp_path: Path, capsys: pytest.CaptureFixture):
    config = tmp_path / "c.yaml"
    config.write_text(
        "model: {vocab_size: 300, hidden_size: 16, num_hidden_layers: 1, num_attention_heads: 2}\n"
        f"run: {{root: {tmp_path}/runs}}\n"
        "stages: [{name: s, data: {source: {kind: text, files: ['*.txt']}}, steps: 1, batch_size: 2}]\n"
    )
    (tmp_path / "a.txt").write_text("One sentence here. And another one there.\n\n" * 30)
    files = f"stages.s.data.source.files=[{tmp_path}/*.txt]"
    command = ["prepare", str(config), "--runner", "beam", "--workers", "1", files]
    assert main([*command, "--", "--no_such_option=1"]) == 2
    assert "Beam has no option --no_such_option" in capsys.readouterr().err
    assert main([*command, "--beam-args=--runner=FnApiRunner --job_name=a", "--", "--region=b"]) == 0
    assert " rows/s, " in capsys.readouterr().out


@needs_beam
def test_the_command_of_the_page_is_one_that_beam_takes():
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
    words = shlex.split(page.split("```bash\n")[1].split("```")[0].replace("\\\n", " "))
    assert words[:2] == ["bertjax", "prepare"]
    name, rest = _split_command(words[1:])
    arguments = _parse(name, COMMANDS[name], rest)
    assert arguments and arguments.runner == "beam"
    assert "run.prepared_dir=gs://BUCKET/prepared" in arguments.overrides
    assert make_runner("beam", arguments.rest).is_distributed
    config = load(arguments.config, arguments.overrides)
    assert config.tasks["c4"].source[0].files == ["gs://BUCKET/c4/en/c4-train.*.json.gz"]
