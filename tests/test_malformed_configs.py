"""Configurations and options beyond what the program can hold: huge numbers, odd digits, depth, loops, cycles."""

import time
from pathlib import Path

import pytest
from refusals import CONFIG, put

HUGE = ("1e30", "1e12", "1000000000", "9" * 5000, "1e308")
INTEGERS = (
    "model.hidden_size", "model.num_hidden_layers", "model.vocab_size", "model.num_attention_heads",
    "model.max_position_embeddings", "model.intermediate_size", "model.type_vocab_size", "stages.s.batch_size",
    "stages.s.grad_accum", "tasks.text.preprocess.sequence_length", "tasks.text.preprocess.max_segments", "mesh.data",
    "mesh.fsdp", "run.prefetch", "run.prepare_workers",
)  # fmt: skip
ABOVE_INT32 = (
    "stages.s.steps", "run.log_every", "run.checkpoint.save_every", "run.checkpoint.keep_last",
    "tasks.text.preprocess.dupe_factor", "stages.s.optimizer.warmup_steps",
)  # fmt: skip


@pytest.mark.parametrize("key", INTEGERS)
def test_huge_sizes(refused, key):
    for number in HUGE:
        assert key in refused("train", "c.yaml", f"{key}={number}", mentions=": must be ")


@pytest.mark.parametrize("key", (*ABOVE_INT32, "run.seed", "tasks.text.limit"))
def test_huge_counts(refused, key):
    for number in ("1e30", "9" * 5000, "-1", "1e308", *(["1e12"] if key in ABOVE_INT32 else [])):
        assert key in refused("train", "c.yaml", f"{key}={number}", mentions=": must be ")


@pytest.mark.parametrize("key", ["run.seed", "stages.s.steps", "mesh.data", "model.hidden_size", "tasks.text.limit"])
@pytest.mark.parametrize("digit", ["²", "①", "٣", "½", "1²"])
def test_odd_digits(refused, key, digit):
    refused("train", "c.yaml", f"{key}={digit}", mentions=(key, "must be an integer"))


def test_a_batch_that_no_machine_computes(refused):
    sizes = ("tasks.text.preprocess.sequence_length=1048576", "model.max_position_embeddings=1048576")
    refused("train", "c.yaml", *sizes, "stages.s.batch_size=1048576", mentions=("batch_size", "sequence_length"))
    many = ("model.family=t5", "model.num_heads=1000000", "model.d_kv=1000000")
    put("c.yaml", CONFIG.replace(CONFIG.splitlines()[0], "model: {family: t5}"))
    refused("train", "c.yaml", "tokenizer.kind=sentencepiece", *many, mentions="num_heads times d_kv")


@pytest.mark.parametrize("value", ["null", "3", "true", "[]", "[text]", "{}", "1.5"])
def test_data_of_another_type(refused, value):
    refused("train", "c.yaml", f"stages.s.data={value}", mentions="stages.s.data")


def test_epochs(refused):
    put("c.yaml", CONFIG.replace("steps: 2", "epochs: 1e300"))
    refused("train", "c.yaml", mentions="stages.s.epochs: must be less than or equal to 1000000")


@pytest.mark.parametrize(
    ("words", "mentions"),
    [
        (("evaluate", ".", "--step", "²"), "--step: must be an integer above 0"),
        (("evaluate", ".", "--step", "9" * 5000), "--step: must be an integer above 0 and at most 2147483647"),
        (("predict", "classify", ".", "x", "--batch-size", "9999999999"), "at most 1048576 (got '9999999999')"),
        (("predict", "generate", ".", "x", "--beam", "1e30"), "--beam: must be an integer above 0"),
        (("predict", "generate", ".", "x", "--beam", "0"), "--beam: must be an integer above 0 (got '0')"),
    ],
)
def test_options(refused, words, mentions):
    refused(*words, mentions=mentions)


def test_deep_keys(refused):
    refused("train", "c.yaml", "a" + ".a" * 3000 + "=1", mentions="more than 40 levels deep")
    refused("train", "c.yaml", "run." * 3000 + "seed=1", mentions="more than 40 levels deep")
    refused("train", "c.yaml", "--" + "run." * 3000 + "seed", "1", mentions="more than 40 levels deep")
    refused("train", "c.yaml", "run.seed=" + "[" * 3000, mentions="levels deep")


def test_a_rule_that_names_an_axis_twice(refused):
    refused(
        "train", "c.yaml", "mesh.rules.batch=[data, data]", mentions=("mesh.rules", "batch names a mesh axis twice")
    )
    refused("train", "c.yaml", "mesh.rules.batch=[data, fsdp, data]", mentions="names a mesh axis twice")


def test_slices(refused):
    put("c.yaml", CONFIG.replace("files: [data.jsonl]", "files: [data.jsonl], slice: '[:2]'"))
    for text in ("[:" + "9" * 30 + "]", "[:²]", "[" + "9" * 5000 + ":]"):
        refused("train", "c.yaml", f"tasks.lines.source.slice='{text}'", mentions="tasks.lines.source")


def test_surrogates(refused):
    put("lone.yaml", 'extends: c.yaml\nrun: {root: "\\ud83d"}\n')
    refused("train", "lone.yaml", mentions="lone.yaml:2: run.root: lone surrogates are not allowed")
    refused("train", "c.yaml", 'run.root="a\\ud83d"', mentions=("run.root", "lone surrogates are not allowed"))
    refused("train", "c.yaml", "run.root=a\udcff", mentions="run.root")
    refused("train", "\udcff.yaml", mentions="udcff")


def test_symbolic_links_that_lead_back(refused):
    for one, other in (("a", "b"), ("b", "a"), ("self", "self"), ("c2.yaml", "c2.yaml"), ("t.txt", "t.txt")):
        Path(one).symlink_to(other)
    refused("train", "c2.yaml", mentions="c2.yaml")
    refused("train", "a/c.yaml", mentions="a/c.yaml")
    put("extends.yaml", "extends: c2.yaml\n")
    refused("train", "extends.yaml", mentions="c2.yaml")
    refused("prepare", "c.yaml", "tasks.text.source.files=[t.txt]", mentions="t.txt")
    refused("prepare", "c.yaml", "tokenizer.path=self", mentions="self")
    refused("prepare", "c.yaml", "run.root=a", mentions="a")
    refused("evaluate", "self", mentions="self")
    refused("inspect", "a/b", mentions="a/b")
    refused("score", "squad", "self", "self", mentions="self")


def test_files_that_extend_each_other_a_thousand_times(refused):
    for number in range(1200):
        Path(f"e{number}.yaml").write_text(f"extends: e{number + 1}.yaml\n")
    Path("e1200.yaml").write_text(CONFIG)
    refused("train", "e0.yaml", mentions="nested too deeply")


def mixtures(levels: int, tasks: tuple[str, str]) -> str:
    """A tree in which each mixture holds the two below: 2^levels paths."""
    members = {f"m0{name}": [task] for name, task in zip("ab", tasks, strict=True)}
    members |= {f"m{level}{name}": [f"m{level - 1}a", f"m{level - 1}b"] for level in range(1, levels) for name in "ab"}
    return "mixtures:\n" + "".join(
        f"  {name}: {{mixture: {{{', '.join(f'{one}: 1' for one in below)}}}, rate: explicit}}\n"
        for name, below in members.items()
    )


def test_a_tree_of_mixtures_takes_no_time(small_project):
    from bertjax.config.loading.load import load
    from bertjax.data.pipeline.mixing import rates

    put("c.yaml", CONFIG.replace("data: text", "data: m59a") + mixtures(60, ("text", "lines")))
    start = time.process_time()
    config = load("c.yaml")
    assert list(config.stage_tasks(config.stages[0])) == ["text", "lines"]
    shares = rates({"text": 10, "lines": 10}, config.mixtures["m59a"], config.mixtures)
    assert shares == {"text": pytest.approx(0.5), "lines": pytest.approx(0.5)}
    assert time.process_time() - start < 10


def test_mixtures_that_contain_each_other(refused):
    content = CONFIG.replace("data: text", "data: m2a") + mixtures(3, ("m2b", "lines"))
    put("c.yaml", content)
    refused("train", "c.yaml", mentions="its mixtures contain each other")
