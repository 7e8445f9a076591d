"""A run looks up once what it reads: configurations, meta data of checkpoints, fingerprints of sources."""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from bertjax.cli.main import main
from bertjax.config.loading import load
from bertjax.data.sources import registry
from bertjax.errors import StoppedSafely
from bertjax.training.checkpoint import reader
from bertjax.training.stage.runner import StageRunner

FINE = """\
extends: tiny.yaml
tokenizer: {path: %(run)s/tokenizer}
stages:
  - {name: qa, data: questions, objective: {kind: span_qa}, steps: 2, batch_size: 8, init_from: %(start)s,
    evaluate: [{kind: squad, data: {source: {kind: squad, files: [heldout.json]}, preprocess: {kind: span_qa,
      sequence_length: 48, doc_stride: 16, max_query_length: 12}}}]}
"""
watched: list[Counter[str]] = []


def count_open(event: str, arguments: tuple) -> None:
    if watched and event == "open" and isinstance(arguments[0], str) and "r" in str(arguments[1] or "r"):
        watched[-1][str(Path(arguments[0]).absolute())] += 1


sys.addaudithook(count_open)  # cannot be removed; it does nothing while `watched` is empty


@contextmanager
def opened_files() -> Iterator[Counter[str]]:
    watched.append(Counter())
    try:
        yield watched[-1]
    finally:
        watched.pop()


@pytest.fixture
def calls(monkeypatch) -> Counter[str]:
    """Calls of the functions that resolve, by function and argument."""
    found: Counter[str] = Counter()

    def counted(owner: object, name: str, real: Callable) -> None:
        def call(first: object, *rest: object, **options: object) -> object:
            found[f"{name} {options.get('where', first)!r:.200}"] += 1
            return real(first, *rest, **options)

        monkeypatch.setattr(owner, name, call)

    counted(registry, "fingerprint", registry.fingerprint)
    counted(reader, "build_saved", load.build_saved)
    return found


def small(opened: Counter[str], *folders: Path) -> dict[str, int]:
    """How often each configuration, meta data, digest and tokenizer file in these folders was opened."""
    kinds = ("/meta/metadata", "/digest/metadata", "config.yaml", ".json")
    names = [n for n in opened if any(n.startswith(f"{folder}/") for folder in folders) and n.endswith(kinds)]
    return {name: opened[name] for name in names if "/state/" not in name}


@pytest.mark.parametrize("step", ["", "checkpoints/01-qa/6"], ids=["a run", "a step"])
def test_a_run_resolves_every_file_once(step, whole, train, tiny_project, one_device, monkeypatch, calls):
    monkeypatch.chdir(tiny_project)
    config = tiny_project / f"fine{len(step)}.yaml"
    config.write_text(FINE % {"run": whole, "start": whole / step}, encoding="utf-8")
    with opened_files() as opened:
        assert main(["train", config.name, f"run.root={train.root}", f"run.name=once{len(step)}"]) == 0
    start = small(opened, whole)
    assert {Path(name).parent.name for name in start} == {"meta", "digest", "tokenizer"}
    assert set(start.values()) == {1}, start
    assert opened[str(config)] == opened[str(tiny_project / "tiny.yaml")] == 1
    assert max(calls.values()) == 1, calls

    calls.clear()
    with opened_files() as opened:  # the finished run
        assert main(["train", config.name, f"run.root={train.root}", f"run.name=once{len(step)}"]) == 0
    assert set(small(opened, train.root).values()) == {1} and not calls


def test_a_resumed_run_resolves_every_file_once(train, calls):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StageRunner, "should_stop", lambda self, step: step == 3)
        with pytest.raises(StoppedSafely):
            train("again")
    calls.clear()
    with opened_files() as opened:
        train("again")
    before = {n: k for n, k in small(opened, train.root / "again").items() if "/3/" in n or "tokenizer" in n}
    assert len(before) >= 3 and set(before.values()) == {1}, before  # the step that it resumes from
    read = [count for name, count in calls.items() if name.startswith("fingerprint")]
    assert max(read) == 1 and len(calls) == len(read) + 1, calls
