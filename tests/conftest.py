"""Eight CPU devices for every test, a compilation cache kept between runs, and the real data when a machine has it."""

import os

# Both are read when jax starts, so they are set before anything here can import it.
_DEVICES = "--xla_force_host_platform_device_count=8"
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_DEVICES}".strip()
os.environ["JAX_PLATFORMS"] = os.environ.get("BERTJAX_TEST_PLATFORM", "cpu")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ["HF_HUB_OFFLINE"] = "1"  # tests of the Hub have their own (kit/fakehub.py)

import json  # noqa: E402
import random  # noqa: E402
from collections.abc import Iterator  # noqa: E402
from pathlib import Path  # noqa: E402
from typing import Any  # noqa: E402

import hypothesis  # noqa: E402
import pytest  # noqa: E402
from refusals import refused, small_project  # noqa: E402, F401

# an example may take long on a busy machine
hypothesis.settings.register_profile("any_speed", deadline=None)
hypothesis.settings.load_profile("any_speed")


def _compile_cache() -> Path:
    """A folder of this user alone: the cache holds native code, so it must never be shared."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = home / "bertjax" / "tests-xla"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    return folder


os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_compile_cache()))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")


SLOW = (Path(__file__).parent / "slow.txt").read_text(encoding="utf-8").split("\n")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the cases in slow.txt: of parametrized tests those that took longest, where others stay fast."""
    for item in items:
        if item.nodeid in SLOW:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data sets (vocabularies, SQuAD, text): $BERTJAX_TEST_DATA, else ../shared/data beside the repository."""
    named = os.environ.get("BERTJAX_TEST_DATA")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no real data here: set BERTJAX_TEST_DATA to its folder")
    return folder


@pytest.fixture(scope="session", autouse=True)
def no_timed_lines() -> None:
    """Tests of what is printed do not depend on how long it took; tests/test_progress.py sets its own times."""
    from bertjax.progress import reporter

    reporter.FIRST_SECONDS = reporter.NEXT_SECONDS = reporter.YOUNG_NEXT = float("inf")
    reporter.COMPILE_SECONDS = float("inf")


# ---- a project small enough to train in a test ----------------------------------------------------------------------

TINY = """\
model: {vocab_size: 128, hidden_size: 16, num_hidden_layers: 2, num_attention_heads: 2, intermediate_size: 32,
  max_position_embeddings: 48}
run: {name: tiny, log_every: 1, compute_dtype: float32, tensorboard: false, compilation_cache_dir: null,
  prepare_workers: 1, checkpoint: {save_every: 2}}
tasks:
  text: {source: {kind: text, files: [text.txt], layout: sentences}, preprocess: {sequence_length: 32}}
  questions: {source: {kind: squad, files: [train.json]}, preprocess: &windows {kind: span_qa, sequence_length: 48,
    doc_stride: 16, max_query_length: 12}}
stages:
  - {name: pretrain, data: text, steps: 5, batch_size: 8, optimizer: {learning_rate: 5e-3},
    evaluate: [{kind: mlm, data: {source: {kind: text, files: [more.txt], layout: sentences},
      preprocess: {sequence_length: 32}}}]}
  - {name: qa, data: questions, objective: {kind: span_qa}, steps: 6, batch_size: 8, trainable: gradual,
    optimizer: {learning_rate: 5e-3},
    evaluate: [{kind: squad, data: {source: {kind: squad, files: [heldout.json]}, preprocess: *windows}}]}
"""
TINY_T5 = """\
model: {family: t5, vocab_size: 256, d_model: 16, d_kv: 8, d_ff: 32, num_layers: 2, num_heads: 2}
tokenizer: {kind: sentencepiece}
run: {name: tiny, log_every: 1, compute_dtype: float32, tensorboard: false, compilation_cache_dir: null,
  prepare_workers: 1, checkpoint: {save_every: 2}}
tasks:
  spans: {source: {kind: text, files: [text.txt], layout: sentences}, preprocess: &spans {kind: span_corruption,
    sequence_length: 32, target_length: 16}}
  questions: {source: {kind: squad, files: [train.json]}, preprocess: &answers {kind: text_to_text, prompt: squad,
    sequence_length: 32, target_length: 16}}
stages:
  - {name: pretrain, data: {mixture: [spans, questions], temperature: 2.0}, objective: {kind: text_to_text}, steps: 5,
    batch_size: 8, optimizer: {kind: adafactor, min_dim_size_to_factor: 16},
    evaluate: [{kind: loss, data: {source: {kind: text, files: [more.txt], layout: sentences}, preprocess: *spans}}]}
  - {name: qa, data: questions, objective: {kind: text_to_text}, steps: 6, batch_size: 8, trainable: gradual,
    optimizer: {kind: adafactor, learning_rate: 1e-2, schedule: constant, warmup_steps: 0},
    evaluate: [{kind: text_to_text, data: {source: {kind: squad, files: [heldout.json]}, preprocess: *answers}}]}
"""
_ANIMALS = "dog cat fox hen cow owl bee ant eel elk".split()
_PLACES = "barn river forest garden field cave tree house pond hill".split()
_VERBS = "sleeps sings runs eats hides waits plays walks swims digs".split()


def _text(seed: int, documents: int) -> str:
    rng = random.Random(seed)
    say = lambda: f"The {rng.choice(_ANIMALS)} {rng.choice(_VERBS)} near the {rng.choice(_PLACES)}."  # noqa: E731
    return "\n\n".join("\n".join(say() for _ in range(8)) for _ in range(documents)) + "\n"


def _squad(seed: int, articles: int) -> str:
    rng = random.Random(seed)
    data = []
    for number in range(articles):
        animals, places = rng.sample(_ANIMALS, 3), rng.sample(_PLACES, 3)
        context = " ".join(f"The {a} sleeps in the {p}." for a, p in zip(animals, places, strict=True))
        qas = [
            {"id": f"{seed}-{number}-{a}", "question": f"Where is the {a}?",
             "answers": [{"text": p, "answer_start": context.index(f"the {p}.") + 4}]}
            for a, p in zip(animals, places, strict=True)
        ]  # fmt: skip
        data.append({"title": f"t{number}", "paragraphs": [{"context": context, "qas": qas}]})
    return json.dumps({"version": "1.1", "data": data})


@pytest.fixture(scope="session")
def tiny_project(tmp_path_factory) -> Path:
    """A folder with tiny.yaml (pre-training, then questions, gradually unfrozen) and its data; not to be changed."""
    return _project(tmp_path_factory.mktemp("tiny"), TINY)


@pytest.fixture(scope="session")
def tiny_t5_project(tmp_path_factory) -> Path:
    """The same with a T5: a mixture of span corruption and questions, then questions, gradually unfrozen."""
    return _project(tmp_path_factory.mktemp("tiny-t5"), TINY_T5)


@pytest.fixture(scope="session")
def pretrain_project(tmp_path_factory) -> Path:
    """The tiny project with its first stage only and one layer: what compiles fastest."""
    text = TINY.partition("  - {name: qa")[0].replace("num_hidden_layers: 2", "num_hidden_layers: 1")
    return _project(tmp_path_factory.mktemp("pretrain"), text)


@pytest.fixture(scope="session")
def fork_server() -> Iterator[Any]:
    """A kit/fork_server.py:ForkServer, from which runs start without importing everything."""
    from fork_server import ForkServer

    with ForkServer() as started:
        yield started


def _project(home: Path, config: str) -> Path:
    files = {
        "tiny.yaml": config, "text.txt": _text(0, 40), "more.txt": _text(1, 6),
        "train.json": _squad(2, 30), "heldout.json": _squad(3, 8),
    }  # fmt: skip
    for name, content in files.items():
        (home / name).write_text(content, encoding="utf-8")
    return home
