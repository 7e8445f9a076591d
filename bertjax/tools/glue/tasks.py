"""The nine tasks of GLUE: their texts, labels, splits, metrics, and what the server wants to be told."""

from dataclasses import dataclass, field

from bertjax.evaluation.metrics.glue_average import DEV_METRICS, TITLES


@dataclass(frozen=True)
class GlueTask:
    """A task of GLUE (arXiv 1804.07461, section 3).

    Splits have the names of the Hub's data set (`nyu-mll/glue`): evaluations are {name: split}, tests are
    {name of the submission's file: split}. `labels` are the names of the classes by id, as there; () is a regression.
    """

    name: str
    texts: tuple[str, ...]
    labels: tuple[str, ...]
    evaluations: dict[str, str] = field(default_factory=lambda: {"dev": "validation"})
    tests: dict[str, str] = field(default_factory=dict)
    says_words: bool = False  # whether a submission has the names of labels, not their ids

    @property
    def title(self) -> str:
        """Its name in the paper, and of its official folder."""
        return TITLES[self.name]

    @property
    def metrics(self) -> dict[str, str]:
        """{metric: the score of an evaluation that it is}; the first one chooses among checkpoints and runs."""
        return DEV_METRICS[self.name]

    @property
    def choosing(self) -> str:
        """The metric that chooses among checkpoints, values of a grid and seeds."""
        return next(iter(self.metrics))

    @property
    def splits(self) -> dict[str, str]:
        """{name of a file of records: split}: train, the evaluations, the tests."""
        return {"train": "train", **self.evaluations, **{split: split for split in self.tests.values()}}


_NLI = ("entailment", "not_entailment")
_SENTENCES = ("sentence1", "sentence2")
AX = "ax"  # the split of the diagnostic set, which the MNLI model predicts
_ALL = (
    GlueTask("cola", ("sentence",), ("unacceptable", "acceptable"), tests={"CoLA": "test"}),
    GlueTask("sst2", ("sentence",), ("negative", "positive"), tests={"SST-2": "test"}),
    GlueTask("mrpc", _SENTENCES, ("not_equivalent", "equivalent"), tests={"MRPC": "test"}),
    GlueTask("stsb", _SENTENCES, (), tests={"STS-B": "test"}),
    GlueTask("qqp", ("question1", "question2"), ("not_duplicate", "duplicate"), tests={"QQP": "test"}),
    GlueTask(
        "mnli", ("premise", "hypothesis"), ("entailment", "neutral", "contradiction"),
        {"matched": "validation_matched", "mismatched": "validation_mismatched"},
        {"MNLI-m": "test_matched", "MNLI-mm": "test_mismatched", "AX": AX}, says_words=True,
    ),
    GlueTask("qnli", ("question", "sentence"), _NLI, tests={"QNLI": "test"}, says_words=True),
    GlueTask("rte", _SENTENCES, _NLI, tests={"RTE": "test"}, says_words=True),
    GlueTask("wnli", _SENTENCES, ("not_entailment", "entailment"), tests={"WNLI": "test"}),
)  # fmt: skip
TASKS = {task.name: task for task in _ALL}
FILES = tuple(name for task in _ALL for name in task.tests)  # all files of a submission
