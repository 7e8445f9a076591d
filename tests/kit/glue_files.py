"""GLUE's nine tasks in the layouts that gluebenchmark.com publishes, a few hand-written examples each.

Texts consist of words of a tiny vocabulary (`hf_folders.PIECES`), and of the quotes and accents that make tables hard.
"""

import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bertjax.tools.glue.tasks import TASKS

WORDS = "bad cab fed head face cafe deaf faded decade beef word egg".split()
QUOTED = '"bad head fed a cab'  # an opening quote that no quote closes
# task -> rows of (texts, label) by split, as the Hub's data set has them
Rows = dict[str, list[tuple[tuple[str, ...], Any]]]


def rows_of(name: str, train: int = 24, heldout: int = 10) -> Rows:
    """Examples by split; the label follows from the first word, so that it can be learned."""
    rng, task = random.Random(name), TASKS[name]

    def example() -> tuple[tuple[str, ...], Any]:
        texts = tuple(" ".join(rng.choices(WORDS, k=rng.randint(2, 4))) for _ in task.texts)
        first = WORDS.index(texts[0].split()[0])
        return texts, (task.labels[first % len(task.labels)] if task.labels else round(first * 5 / 11, 3))

    made = {split: [example() for _ in range(train if split == "train" else heldout)] for split in task.splits.values()}
    texts, label = made["train"][0]
    made["train"][0] = ((QUOTED, *texts[1:]), label)
    return made


def write_glue(folder: Path, names: Sequence[str] = tuple(TASKS), **counts: int) -> dict[str, Rows]:
    """Write the official files of the tasks -> their rows."""
    made = {name: rows_of(name, **counts) for name in names}
    for name, rows in made.items():
        _WRITERS[name](folder / TASKS[name].title, rows)
    return made


def write(path: Path, lines: Sequence[Sequence[Any]], end: str = "\n", start: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((start + "".join("\t".join(map(str, line)) + end for line in lines)).encode())


def _ids(name: str, rows: list) -> list:
    labels = TASKS[name].labels
    return [(texts, labels.index(label)) for texts, label in rows]


def _cola(folder: Path, rows: Rows) -> None:
    """Four columns without a header; the test has one."""
    for split, file in (("train", "train.tsv"), ("validation", "dev.tsv")):
        listed = [("gj04", label, "" if label else "*", texts[0]) for texts, label in _ids("cola", rows[split])]
        write(folder / file, listed)
    write(folder / "test.tsv", [("index", "sentence"), *((i, t[0]) for i, (t, _) in enumerate(rows["test"]))])


def _sst2(folder: Path, rows: Rows) -> None:
    for split, file in (("train", "train.tsv"), ("validation", "dev.tsv")):
        listed = [(f"{texts[0]} ", label) for texts, label in _ids("sst2", rows[split])]  # a space ends the sentences
        write(folder / file, [("sentence", "label"), *listed])
    write(folder / "test.tsv", [("index", "sentence"), *((i, t[0]) for i, (t, _) in enumerate(rows["test"]))])


MRPC_HEAD = ("Quality", "#1 ID", "#2 ID", "#1 String", "#2 String")


def _mrpc(folder: Path, rows: Rows) -> None:
    """As Microsoft published it: a byte order mark, carriage returns, and the pairs for development by their ids."""
    listed, ids = [], []
    left = {split: iter(_ids("mrpc", rows[split])) for split in ("train", "validation")}
    mixed = [split for split in left for _ in rows[split]]
    random.Random(0).shuffle(mixed)  # the order within a split stays that of `rows`
    merged = [(split, next(left[split])) for split in mixed]
    for number, (split, (texts, label)) in enumerate(merged):
        listed.append((label, 1000 + number, 2000 + number, *texts))
        ids += [(1000 + number, 2000 + number)] if split == "validation" else []
    write(folder / "msr_paraphrase_train.txt", [MRPC_HEAD, *listed], "\r\n", "\ufeff")
    write(folder / "dev_ids.tsv", ids)
    test = [(label, 1, 2, *texts) for texts, label in _ids("mrpc", rows["test"])]
    write(folder / "msr_paraphrase_test.txt", [MRPC_HEAD, *test], "\r\n", "\ufeff")


def _stsb(folder: Path, rows: Rows) -> None:
    head = "index genre filename year old_index source1 source2 sentence1 sentence2 score".split()
    about = ("main-news", "headlines", 2016, 7, "none", "none")
    for split, file in (("train", "train.tsv"), ("validation", "dev.tsv")):
        listed = [(i, *about, *texts, f"{label:.3f}") for i, (texts, label) in enumerate(rows[split])]
        write(folder / file, [head, *listed])
    write(folder / "test.tsv", [head[:-1], *((i, *about, *texts) for i, (texts, _) in enumerate(rows["test"]))])


def _qqp(folder: Path, rows: Rows) -> None:
    """With two lines that a line end inside a question has broken."""
    head = ["id", "qid1", "qid2", "question1", "question2", "is_duplicate"]
    for split, file in (("train", "train.tsv"), ("validation", "dev.tsv")):
        listed: list[Sequence[Any]] = [
            (900 + i, 1, 2, *texts, y) for i, (texts, y) in enumerate(_ids("qqp", rows[split]))
        ]
        broken = [(77, 1, 2, "bad cab", "fed"), ("head", "0")] if split == "train" else []
        write(folder / file, [head, *listed[:2], *broken, *listed[2:]])
    write(folder / "test.tsv", [("id", *head[3:5]), *((i, *texts) for i, (texts, _) in enumerate(rows["test"]))])


def _mnli(folder: Path, rows: Rows) -> None:
    """Pairs without a gold label are there in the development files; the diagnostic set is a folder of its own."""
    head = "index promptID pairID genre sentence1_binary_parse sentence2_binary_parse".split()
    head += "sentence1_parse sentence2_parse sentence1 sentence2".split()
    about = ("31193", "31193n", "fiction", "( a )", "( b )", "(ROOT a)", "(ROOT b)")
    lines = lambda split, more=lambda label: (): [  # noqa: E731
        (i, *about, *texts, *more(label)) for i, (texts, label) in enumerate(rows[split])
    ]
    write(folder / "train.tsv", [[*head, "label1", "gold_label"], *lines("train", lambda y: (y, y))])
    five = [f"label{n}" for n in range(1, 6)]
    for kind in ("matched", "mismatched"):
        dev = lines(f"validation_{kind}", lambda y: (*[y] * 5, y))
        write(
            folder / f"dev_{kind}.tsv", [[*head, *five, "gold_label"], *dev, (99, *about, "bad", "cab", *"nnece", "-")]
        )
        write(folder / f"test_{kind}.tsv", [head, *lines(f"test_{kind}")])
    full = [("", "", "", "", "News", *texts, label) for texts, label in rows["ax"]]
    names = ("Lexical Semantics", "Predicate-Argument Structure", "Logic", "Knowledge", "Domain")
    write(folder.parent / "diagnostic" / "diagnostic-full.tsv", [(*names, "Premise", "Hypothesis", "Label"), *full])


def _pairs(head: Sequence[str]) -> Callable[[Path, Rows], None]:
    def writer(folder: Path, rows: Rows) -> None:
        for split, file in (("train", "train.tsv"), ("validation", "dev.tsv")):
            write(folder / file, [(*head, "label"), *((i, *texts, y) for i, (texts, y) in enumerate(rows[split]))])
        write(folder / "test.tsv", [head, *((i, *texts) for i, (texts, _) in enumerate(rows["test"]))])

    return writer


def _wnli(folder: Path, rows: Rows) -> None:
    """Labels are ids; the test file has some too, which mean nothing."""
    for split, file in (("train", "train.tsv"), ("validation", "dev.tsv"), ("test", "test.tsv")):
        listed = [(i, *texts, y) for i, (texts, y) in enumerate(_ids("wnli", rows[split]))]
        write(folder / file, [("index", "sentence1", "sentence2", "label"), *listed])


_WRITERS: dict[str, Callable[[Path, Rows], None]] = {
    "cola": _cola, "sst2": _sst2, "mrpc": _mrpc, "stsb": _stsb, "qqp": _qqp, "mnli": _mnli,
    "qnli": _pairs(("index", "question", "sentence")), "rte": _pairs(("index", "sentence1", "sentence2")),
    "wnli": _wnli,
}  # fmt: skip
