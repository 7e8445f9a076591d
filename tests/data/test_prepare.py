"""From text to a store: the same bytes whoever prepares them, kept in a cache, checked on the way."""

import gc
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from preparing import questions

from bertjax.config.schema.data import BertPairs, Classify, Mixture, SpanQa, Task, max_predictions
from bertjax.config.schema.run import Config
from bertjax.config.schema.sources import JsonLines, SquadFiles, TextFiles
from bertjax.data.jobs import job_plan
from bertjax.data.pipeline import prepare
from bertjax.data.pipeline.loader import Batches, open_batches, open_task
from bertjax.data.sources.class_names import ClassSpec
from bertjax.data.store.reader import Store
from bertjax.data.tokenizers.load import Tokenizer, build_wordpiece
from bertjax.errors import UserError

WORDS = [a + b for a in ("ba", "ko", "mi", "tu", "ra", "se") for b in ("n", "lo", "di", "pe", "sh", "gu", "x")]
PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS, "##s", "##ing", ".", "?"]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer(build_wordpiece({piece: n for n, piece in enumerate(PIECES)}, lowercase=True), "test")


def sentence(rng: np.random.Generator, words: int) -> str:
    chosen = [WORDS[n] + ("s" if n % 5 == 0 else "") for n in rng.integers(len(WORDS), size=words)]
    return " ".join(chosen) + " ."


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """40 documents of 1 to 12 sentences."""
    rng = np.random.default_rng(0)
    documents = [[sentence(rng, rng.integers(2, 14)) for _ in range(rng.integers(1, 13))] for _ in range(40)]
    (tmp_path / "text.txt").write_text("\n\n".join("\n".join(document) for document in documents) + "\n")
    return tmp_path


def text_task(**options) -> Task:
    pairs = BertPairs(**({"sequence_length": 32, "max_predictions_per_seq": 5, "dupe_factor": 2} | options))
    return Task(source=TextFiles(files=["text.txt"], layout="sentences"), preprocess=pairs)


def prepared(task: Task, tokenizer: Tokenizer, base: Path, cache: str = "cache", **options) -> Store:
    options = {"seed": 1, "workers": 1, "base": base, "cache": base / cache} | options
    return prepare.prepare(task, "demo", tokenizer, **options)


def contents(store: Store) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(store.folder.iterdir())}


@pytest.fixture
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many shards, and a pool even for little work."""
    for name, value in {
        "MIN_SHARD_TOKENS": 400,
        "MAX_SHARD_TOKENS": 400,
        "MIN_POOL_TOKENS": 0,
        "EXAMPLES_PER_JOB": 16,
        "MIN_POOL_EXAMPLES": 0,
    }.items():
        monkeypatch.setattr(job_plan, name, value)


VARIANTS = {
    "plain": {},
    "static": {"masking": "static", "whole_word_mask": True},
    "packed": {"pack": True},
    "packed and static": {"pack": True, "masking": "static"},
    "no nsp": {"next_sentence": False},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_rows_are_whole_examples(text: Path, tokenizer: Tokenizer, variant: str):
    task = text_task(**VARIANTS[variant])
    store = prepared(task, tokenizer, text)
    rows, pairs = store.rows(np.arange(len(store))), task.preprocess
    ids, segments = rows["input_ids"], rows["segment_ids"]
    assert ids.shape[1] == 32 and rows["cls_positions"].shape[1] == (8 if pairs.pack else 1)
    assert (ids[segments == 0] == tokenizer.pad_id).all()
    if pairs.masking == "dynamic":  # a random replacement may be any piece
        assert (ids[segments > 0] != tokenizer.pad_id).all()
    assert (rows["positions"] == 0)[segments == 0].all()
    for row in rows:
        examples = int(row["segment_ids"].max())
        for example in range(examples):
            where = np.flatnonzero(row["segment_ids"] == example + 1)
            assert (row["positions"][where] == np.arange(len(where))).all()
            assert row["cls_positions"][example] == where[0]
            assert row["input_ids"][where[0]] == tokenizer.cls_id and row["input_ids"][where[-1]] == tokenizer.sep_id
        assert row["nsp_weights"].sum() == (examples if pairs.next_sentence else 0)
    meta = store.meta
    assert meta["rows"] == len(store) and meta["examples"] == int((segments.max(axis=1)).sum())
    assert meta["documents"] == 40 and meta["tokens_in_rows"] == (segments > 0).sum()
    assert meta["density"] == pytest.approx((segments > 0).mean()) and meta["padding"] == pytest.approx(
        1 - meta["density"]
    )
    if pairs.masking == "static":
        weights = rows["masked_weights"]
        assert weights.shape[1] == max_predictions(pairs) and (weights.sum(axis=1) >= 1).all()
        assert (ids == tokenizer.mask_id).any() and not (rows["masked_ids"] == tokenizer.mask_id).any()
    else:
        assert "masked_ids" not in (store.dtype.names or ()) and not (ids == tokenizer.mask_id).any()


def test_packing_loses_and_repeats_nothing(text: Path, tokenizer: Tokenizer):
    def examples(store: Store) -> list[bytes]:
        rows = store.rows(np.arange(len(store)))
        return sorted(
            row["input_ids"][row["segment_ids"] == n].tobytes()
            for row in rows
            for n in range(1, row["segment_ids"].max() + 1)
        )

    plain, packed = (prepared(text_task(pack=pack, short_seq_prob=0.5), tokenizer, text) for pack in (False, True))
    assert examples(plain) == examples(packed)
    assert len(packed) < len(plain) and packed.meta["density"] > plain.meta["density"]


def test_static_passes_have_masks_of_their_own(text: Path, tokenizer: Tokenizer):
    store = prepared(text_task(masking="static", dupe_factor=1), tokenizer, text)
    rows = store.rows(np.arange(len(store)))
    full = rows[(rows["segment_ids"] > 0).sum(axis=1) == 32]
    assert len({row["masked_positions"].tobytes() for row in full}) > len(full) // 2


@pytest.mark.slow
@pytest.mark.parametrize("variant", VARIANTS)
def test_worker_processes_change_no_byte(text: Path, tokenizer: Tokenizer, small_shards: None, variant: str):
    task = text_task(**VARIANTS[variant])
    one = prepared(task, tokenizer, text, "one")
    two = prepared(task, tokenizer, text, "two", workers=2)
    assert len(one.shards) > 3
    assert contents(one) == contents(two)


SCRIPT = """
import sys
from pathlib import Path
from bertjax.config.schema.data import BertPairs, Task
from bertjax.config.schema.sources import TextFiles
from bertjax.data.pipeline.prepare import prepare
from bertjax.data.tokenizers.load import from_file

base, cache = Path(sys.argv[1]), Path(sys.argv[1]) / sys.argv[2]
pairs = BertPairs(sequence_length=32, max_predictions_per_seq=5, pack=True, masking="static")
task = Task(source=TextFiles(files=["text.txt"], layout="sentences"), preprocess=pairs)
store = prepare(task, "demo", from_file(base / "tokenizer"), seed=1, base=base, cache=cache, workers=1)
store.verify()
assert "jax" not in sys.modules
print(store.folder)
"""


def start(text: Path, cache: str, hash_seed: str) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(text), cache],
        env=os.environ | {"PYTHONHASHSEED": hash_seed},
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        text=True,
    )


@pytest.mark.slow
def test_hash_seeds_change_no_byte(text: Path, tokenizer: Tokenizer):
    tokenizer.save(text / "tokenizer")
    running = [start(text, f"cache{seed}", seed) for seed in ("1", "2")]
    folders = [Path(process.communicate()[0].strip()) for process in running]
    assert folders[0].name == folders[1].name and folders[0] != folders[1]
    assert contents(Store(folders[0])) == contents(Store(folders[1]))


@pytest.mark.slow
def test_processes_preparing_at_once_agree(text: Path, tokenizer: Tokenizer):
    tokenizer.save(text / "tokenizer")
    running = [start(text, "cache", "0") for _ in range(3)]
    folders = {process.communicate()[0].strip() for process in running}
    assert all(process.returncode == 0 for process in running)
    assert [str(path) for path in (text / "cache").iterdir()] == list(folders)  # one store and nothing temporary


def test_the_cache_is_used_and_knows_what_matters(text: Path, tokenizer: Tokenizer):
    task = text_task()
    store = prepared(task, tokenizer, text)
    inode = store.folder.stat().st_ino
    assert prepared(task, tokenizer, text, workers=2).folder.stat().st_ino == inode
    assert prepared(task, tokenizer, text, seed=2).folder != store.folder
    assert prepared(text_task(dupe_factor=3), tokenizer, text).folder != store.folder
    with (text / "text.txt").open("a") as file:
        file.write("\nban kolo .\n")
    assert prepared(task, tokenizer, text).folder != store.folder


def test_a_source_that_changed_since_it_was_looked_at_is_refused(text: Path, tokenizer: Tokenizer):
    with pytest.raises(UserError, match="task 'demo': its source has changed since this run looked at it; run again"):
        prepared(text_task(), tokenizer, text, fingerprint=lambda source: "of the file before")
    assert not list((text / "cache").glob("bert_pairs-*"))


def test_a_damaged_store_in_the_cache_is_made_again(text: Path, tokenizer: Tokenizer):
    store, lines = prepared(text_task(), tokenizer, text), []
    before = contents(store)
    gc.collect()
    os.truncate(store.folder / store.shards[0]["file"], 100)
    again = prepared(text_task(), tokenizer, text, report=lines.append)
    assert contents(again) == before
    assert "bytes, not" in lines[0] and all("\n" not in line for line in lines)


def test_the_limit_takes_a_sample_of_the_documents(text: Path, tokenizer: Tokenizer):
    everything = prepared(text_task(), tokenizer, text)
    some = prepared(text_task().model_copy(update={"limit": 7}), tokenizer, text)
    assert everything.meta["documents"] > 20 and some.meta["documents"] == 7
    assert some.meta["sentences"] < everything.meta["sentences"] and 0 < some.meta["tokens"] < everything.meta["tokens"]
    assert some.meta["made_from"]["seed"] is not None


def test_no_text_is_an_error_and_leaves_nothing(tmp_path: Path, tokenizer: Tokenizer):
    (tmp_path / "text.txt").write_text("\n \n\n")
    with pytest.raises(UserError) as caught:
        prepared(text_task(), tokenizer, tmp_path)
    assert "\n" not in str(caught.value) and len(str(caught.value)) <= 300
    assert not (tmp_path / "cache").exists()


# ---- questions and labels -------------------------------------------------------------------------------------------


@pytest.fixture
def squad(tmp_path: Path) -> Path:
    (tmp_path / "squad.json").write_text(questions(np.random.default_rng(3), 30, sentence))
    return tmp_path


@pytest.mark.parametrize("pack", [False, True])
def test_questions_become_windows_with_answers_in_place(squad: Path, tokenizer: Tokenizer, pack: bool):
    options = SpanQa(sequence_length=64, doc_stride=16, max_query_length=12, pack=pack)
    store = prepared(Task(source=SquadFiles(files=["squad.json"]), preprocess=options), tokenizer, squad)
    rows = store.rows(np.arange(len(store)))
    assert store.meta["questions"] == 60 and store.meta["unanswerable"] == 0
    found = 0
    for row in rows:
        for example in np.flatnonzero(row["span_weights"] > 0):
            start, end, cls = (row[name][example] for name in ("start_positions", "end_positions", "cls_positions"))
            assert row["segment_ids"][cls] == row["segment_ids"][start] == row["segment_ids"][end] == example + 1
            assert row["input_ids"][cls] == tokenizer.cls_id
            found += start > cls
    assert found >= 60  # every question has its answer in one window at least


def records(folder: Path, lines: list[dict]) -> Task:
    (folder / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    options = Classify(sequence_length=16, text_a="premise", text_b="hypothesis", label="gold")
    return Task(source=JsonLines(files=["records.jsonl"]), preprocess=options)


def labelled(labels: list) -> list[dict]:
    rng = np.random.default_rng(0)
    return [
        {"premise": sentence(rng, n % 9), "hypothesis": sentence(rng, 5), "gold": label}
        for n, label in enumerate(labels)
    ]


def test_labels_are_numbers_names_or_scores(tmp_path: Path, tokenizer: Tokenizer):
    names = ["no", "yes", "maybe"] * 5
    store = prepared(records(tmp_path, labelled(names)), tokenizer, tmp_path)
    assert store.meta["labels"] == ["maybe", "no", "yes"]
    rows = store.rows(np.arange(15))
    assert rows["labels"].dtype == np.int32 and rows["labels"][:3, 0].tolist() == [1, 2, 0]
    assert (rows["label_weights"] == 1).all() and (rows["cls_positions"] == 0).all()

    few = records(tmp_path, labelled(["yes"]))  # a source that lacks a label keeps the ids when it is told the names
    store = prepared(few, tokenizer, tmp_path, classes=ClassSpec(3, ("maybe", "no", "yes"), required=True))
    assert store.rows([0])["labels"][0, 0] == 2
    with pytest.raises(UserError, match=r"records.jsonl: line 1: label 'yes' is not one of those: maybe, no"):
        prepared(few, tokenizer, tmp_path, classes=ClassSpec(2, ("maybe", "no"), required=True))

    store = prepared(records(tmp_path, labelled([3, 0, 1])), tokenizer, tmp_path)
    assert store.meta["labels"] is None and store.rows([0, 1, 2])["labels"][:, 0].tolist() == [3, 0, 1]
    store = prepared(records(tmp_path, labelled([3.8, 0, 5.0])), tokenizer, tmp_path)
    scores = store.rows([0, 1, 2])["labels"]
    assert scores.dtype == np.float32 and scores[:, 0].tolist() == [np.float32(3.8), 0, 5]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ({"premise": "ban", "gold": 1}, "line 2: 'hypothesis' is missing"),
        ({"premise": 3, "hypothesis": "ban", "gold": 1}, "line 2: 'premise' is not a text but the number 3"),
        ({"premise": "ban", "hypothesis": "ban"}, "line 2: 'gold' is missing"),
        ({"premise": "ban", "hypothesis": "ban", "gold": -1}, "line 2: 'gold' is -1"),
        (
            {"premise": "ban", "hypothesis": "ban", "gold": "x"},
            "'gold' is a text in some records and a number in others",
        ),
    ],
)
def test_bad_records_are_named(tmp_path: Path, tokenizer: Tokenizer, line: dict, message: str):
    with pytest.raises(UserError, match=message):
        prepared(records(tmp_path, [*labelled([0]), line]), tokenizer, tmp_path)


@pytest.mark.slow
def test_questions_and_records_are_the_same_from_a_pool(squad: Path, tokenizer: Tokenizer, small_shards: None):
    windows = SpanQa(sequence_length=64, doc_stride=16, max_query_length=12, pack=True)
    for task in (
        Task(source=SquadFiles(files=["squad.json"]), preprocess=windows),
        records(squad, labelled(["a", "b"] * 40)),
    ):
        one, two = prepared(task, tokenizer, squad, "one"), prepared(task, tokenizer, squad, "two", workers=2)
        assert contents(one) == contents(two)


# ---- together -------------------------------------------------------------------------------------------------------


def test_a_stage_opens_its_mixture(text: Path, tokenizer: Tokenizer):
    tasks = {"long": text_task(), "short": text_task(short_seq_prob=0.9)}
    mixture = Mixture(mixture={"long": 3, "short": 1}, rate="explicit")
    config = Config(
        tasks=tasks,
        run={"prepare_workers": 1, "seed": 3},
        stages=[{"name": name, "data": mixture, "steps": 1, "batch_size": 16} for name in ("one", "two")],
    )

    def opened(stage: int) -> Batches:
        return open_batches(config, config.stages[stage], tokenizer, base=text, cache=text / "cache")

    batches = opened(0)
    assert batches.task_names == ["long", "short"] and batches.rates == {"long": 0.75, "short": 0.25}
    assert batches.rows_per_epoch == sum(batches.row_counts.values())
    first = batches.batch(2)
    assert (first["task_ids"] == 1).sum() == 4 and first["input_ids"].shape == (16, 32)
    assert all((first[name] == values).all() for name, values in opened(0).batch(2).items())
    assert (first["input_ids"] != opened(1).batch(2)["input_ids"]).any()  # stages have an order of their own


def test_an_evaluation_reads_a_finite_pass(text: Path, tokenizer: Tokenizer):
    batches = open_task(text_task(), "heldout", tokenizer, batch_size=8, seed=0, base=text, cache=text / "cache")
    passes = [list(batches.epoch_batches()) for _ in range(2)]
    assert sum((batch["nsp_weights"] > 0).sum() for batch in passes[0]) == batches.rows_per_epoch
    for one, two in zip(*passes, strict=True):
        assert all((one[name] == two[name]).all() for name in one)


@pytest.mark.slow
def test_real_text_makes_sensible_pairs(shared_data: Path, tmp_path: Path):
    from bertjax.data.tokenizers.load import from_file

    tokenizer = from_file(shared_data / "vocab" / "bert-base-uncased-vocab.txt")
    source = JsonLines(files=[str(shared_data / "text" / "openstax-us-history.jsonl.xz")])
    store = prepared(Task(source=source), tokenizer, tmp_path)
    rows = store.rows(np.arange(len(store)))
    assert 0.5 < rows["nsp_labels"].mean() < 0.75  # a chunk of one sentence always gets a random B
    assert (rows["input_ids"] == tokenizer.unk_id).mean() < 0.002
    assert store.meta["density"] > 0.75
    # [CLS] and [SEP] frame both texts, and token types change behind the first [SEP].
    assert ((rows["input_ids"] == tokenizer.sep_id).sum(axis=1) == 2).all()
    assert (rows["token_type_ids"].sum(axis=1) > 0).all()


@pytest.mark.slow
@pytest.mark.parametrize(("room", "kept"), [(200, False), (2_000, False), (66_000, True)])  # for a part of the corpus,
def test_a_full_disk_is_one_line_and_keeps_what_is_whole(  # for it without its record, for it and a part of a shard
    text: Path, tokenizer: Tokenizer, room: int, kept: bool
):
    tokenizer.save(text / "tokenizer")
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({room}, {room}))\n"
    script = SCRIPT.replace("store = prepare", limit + "store = prepare")
    command = [sys.executable, "-B", "-c", script, str(text), "cache"]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1 and last.startswith("bertjax.errors.StorageError") and len(last) < 330
    assert (text / "cache").exists() == kept
    if kept:
        (work,) = (text / "cache").iterdir()
        assert work.name.endswith(".work2") and (work / "corpus-done" / "00000.json").exists()
        again = start(text, "cache", "0")
        again.communicate()
        assert again.returncode == 0
        (store,) = (text / "cache").iterdir()
        Store(store).verify()
