"""Every shipped configuration loads, says in its first lines how to run it, and resolves to the values kept in
golden/configs. After an intended change, write those again and read the difference:

    python tests/test_configs.py
"""

import difflib
import json
import os
import re
from pathlib import Path

import pytest

from bertjax.config.loading.load import dump, load
from bertjax.config.schema.run import Config

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = sorted(path.relative_to(ROOT / "configs").as_posix() for path in ROOT.glob("configs/**/*.yaml"))
GOLDEN = ROOT / "tests" / "golden" / "configs"
# The sizes in config.json of google-bert/bert-base-uncased: the model that the fine-tuning configurations start from.
BERT_BASE = {
    "model_type": "bert", "vocab_size": 30522, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
    "intermediate_size": 3072, "max_position_embeddings": 512, "type_vocab_size": 2, "hidden_act": "gelu",
    "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "layer_norm_eps": 1e-12,
    "initializer_range": 0.02,
}  # fmt: skip
# The sizes in config.json of google-t5/t5-base.
T5_BASE = {
    "model_type": "t5", "vocab_size": 32128, "d_model": 768, "d_kv": 64, "d_ff": 3072, "num_layers": 12,
    "num_decoder_layers": 12, "num_heads": 12, "relative_attention_num_buckets": 32, "dropout_rate": 0.1,
    "layer_norm_epsilon": 1e-6, "is_encoder_decoder": True,
}  # fmt: skip
# Layers and hidden size of Google's releases (google-research/bert README); heads are H/64, the feed-forward 4H.
SIZES = {
    "tiny": (2, 128),
    "mini": (4, 256),
    "small": (4, 512),
    "medium": (8, 512),
    "base": (12, 768),
    "large": (24, 1024),
}


def golden(name: str) -> Path:
    return GOLDEN / name.replace("/", "-")


def resolved(name: str, folder: Path) -> Config:
    """The configuration as seen from `folder`, where folders with the names of the models on the Hub come first."""
    for name_of_model, sizes in (("google-bert/bert-base-uncased", BERT_BASE), ("google-t5/t5-base", T5_BASE)):
        place = folder / name_of_model
        place.mkdir(exist_ok=True, parents=True)
        (place / "config.json").write_text(json.dumps(sizes), encoding="utf-8")
    before = Path.cwd()
    os.chdir(folder)
    try:
        return load(ROOT / "configs" / name)
    finally:
        os.chdir(before)


@pytest.mark.parametrize("name", CONFIGS)
def test_resolves_as_recorded(name: str, tmp_path: Path) -> None:
    text = dump(resolved(name, tmp_path))
    assert golden(name).is_file(), (
        f"configs/{name} is new: run `python tests/test_configs.py` and read {golden(name).name}"
    )
    kept = golden(name).read_text(encoding="utf-8")
    changes = difflib.unified_diff(kept.splitlines(), text.splitlines(), "recorded", "now", lineterm="", n=1)
    assert text == kept, (
        f"configs/{name} means something else now; if so intended, run `python tests/test_configs.py`:\n"
        + ("\n".join(changes))
    )


@pytest.mark.parametrize("name", CONFIGS)
def test_opening_says_how_to_run_it(name: str) -> None:
    lines = (ROOT / "configs" / name).read_text(encoding="utf-8").split("\n")
    opening = "\n".join(line for line in lines[: next(i for i, x in enumerate(lines) if not x.startswith("#"))])
    assert re.fullmatch(r"# .{20,118}\.", lines[0]), "`bertjax configs` shows the first line, a sentence"
    assert f"#   bertjax train {name.removesuffix('.yaml')}\n" in f"{opening}\n".replace(" mesh.fsdp=8", "")
    if "extends" not in lines[opening.count("\n") + 1]:
        assert re.search(r"Hardware", opening) and re.search(r"[Ss]core", opening)
    assert "configs/" not in opening, "the names work everywhere"
    for shown in re.findall(r"(?<![\w/=-])(?:bert|t5|finetune|recipes|debug)/\w+", opening):
        assert (ROOT / "configs" / f"{shown}.yaml").is_file(), shown


@pytest.mark.parametrize("size", SIZES)
def test_sizes_are_googles(size: str, tmp_path: Path) -> None:
    model = resolved(f"bert/pretrain_{size}.yaml", tmp_path).model
    layers, hidden = SIZES[size]
    found = (model.num_hidden_layers, model.hidden_size, model.num_attention_heads, model.intermediate_size)
    assert found == (layers, hidden, hidden // 64, 4 * hidden)
    assert (model.vocab_size, model.max_position_embeddings, model.hidden_act) == (30522, 512, "gelu_new")


@pytest.mark.parametrize("size", ["base", "large"])
def test_pretraining_is_the_papers(size: str, tmp_path: Path) -> None:
    """arXiv 1810.04805 section A.2: 256 sequences, 1,000,000 steps, 90 % of them at length 128; Adam at 1e-4, warm-up
    10,000, decay 0.01, dropout 0.1."""
    config = resolved(f"bert/pretrain_{size}.yaml", tmp_path)
    stages = config.stages
    assert [stage.steps for stage in stages] == [900_000, 100_000]
    lengths = [task.preprocess.sequence_length for stage in stages for task in config.stage_tasks(stage).values()]
    assert lengths == [128, 512]
    for stage in stages:
        rule = stage.optimizer
        assert (stage.batch_size, rule.learning_rate, rule.warmup_steps, rule.weight_decay) == (256, 1e-4, 10_000, 0.01)
        assert (rule.kind, rule.b1, rule.b2, rule.schedule) == ("bert_adamw", 0.9, 0.999, "linear")
    assert (config.model.hidden_dropout_prob, config.model.attention_probs_dropout_prob) == (0.1, 0.1)


def test_question_answering_is_run_squads(tmp_path: Path) -> None:
    """Flags of run_squad.py (384, 128, 64, n-best 20, answers up to 30, warm-up 0.1) and 3e-5, 2 epochs."""
    for name in ("squad_v1", "squad_v2", "squad_gradual"):
        stage = resolved(f"finetune/{name}.yaml", tmp_path).stages[0]
        cut = stage.data.preprocess
        assert (cut.sequence_length, cut.doc_stride, cut.max_query_length, cut.doc_stride_mode) == (
            384,
            128,
            64,
            "step",
        )
        rate = (4.5e-5, 0) if name == "squad_gradual" else (3e-5, 0.1)  # its own: 1.5 times as high, no warm-up
        assert (stage.optimizer.learning_rate, stage.optimizer.warmup_ratio, stage.epochs) == (*rate, 2)
        evaluation = stage.evaluate[0]
        assert evaluation.data.preprocess == cut
        assert (evaluation.n_best, evaluation.max_answer_length, evaluation.null_score_diff_threshold) == (20, 30, 0.0)
        assert stage.trainable.kind == ("gradual" if name == "squad_gradual" else "all")


# Parameters of the published checkpoints (T5 paper section 3.7.1 rounds them; exact counts are those of their shapes).
T5_COUNTS = {
    "small": 60_506_624, "base": 222_903_552, "large": 737_668_096, "3b": 2_851_598_336,
    "11b": 11_307_321_344,
    "v1_1_small": 76_961_152, "v1_1_base": 247_577_856, "v1_1_large": 783_150_080, "v1_1_3b": 2_849_757_184,
    "v1_1_11b": 11_135_332_352,
}  # fmt: skip


@pytest.mark.parametrize("size", T5_COUNTS)
def test_t5_sizes_are_the_published_ones(size: str, tmp_path: Path) -> None:
    m = resolved(f"t5/pretrain_{size}.yaml", tmp_path).model
    inner, gated = m.num_heads * m.d_kv, m.feed_forward_proj == "gated-gelu"
    attention, feed_forward = 4 * m.d_model * inner, (3 if gated else 2) * m.d_model * m.d_ff
    encoder = m.encoder_layers * (attention + feed_forward + 2 * m.d_model)
    decoder = m.decoder_layers * (2 * attention + feed_forward + 3 * m.d_model)
    stacks = 2 * (m.d_model + m.relative_attention_num_buckets * m.num_heads)
    tables = (1 if m.tie_word_embeddings else 2) * m.vocab_size * m.d_model
    assert encoder + decoder + stacks + tables == T5_COUNTS[size]


def test_t5_pretraining_is_the_papers(tmp_path: Path) -> None:
    """arXiv 1910.10683 section 3.1: 2^19 steps of 128 x 512 tokens, 15 % in spans of 3, 1/sqrt(max(step, 10^4))."""
    for name, steps in (("pretrain_base", 2**19), ("multitask_base", 2**19)):
        config = resolved(f"t5/{name}.yaml", tmp_path)
        (stage,), spans = config.stages, config.tasks["c4"].preprocess
        assert (stage.steps, stage.batch_size, spans.sequence_length) == (steps, 128, 512)
        assert (spans.noise_density, spans.mean_noise_span_length, stage.objective.z_loss) == (0.15, 3.0, 1e-4)
        rate = stage.optimizer
        assert (rate.kind, rate.schedule, rate.learning_rate, rate.warmup_steps) == (
            "adafactor", "inverse_sqrt", 1.0, 10_000,
        )  # fmt: skip
    assert (stage.data.rate, stage.data.limit, len(stage.data.mixture)) == ("proportional", 2**19, 21)


def test_nothing_is_recorded_that_is_gone() -> None:
    assert {path.name for path in GOLDEN.iterdir()} == {golden(name).name for name in CONFIGS}


if __name__ == "__main__":
    import tempfile

    GOLDEN.mkdir(parents=True, exist_ok=True)
    for path in GOLDEN.iterdir():
        path.unlink()
    with tempfile.TemporaryDirectory() as scratch:
        for name in CONFIGS:
            golden(name).write_text(dump(resolved(name, Path(scratch))), encoding="utf-8")
    print(f"{len(CONFIGS)} configurations written to {GOLDEN.relative_to(ROOT)}")
