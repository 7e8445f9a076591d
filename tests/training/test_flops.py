"""FLOPs against the closed forms worked out by hand, against XLA's own count, and the peaks against the data sheets."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bertjax.config.schema.model import BertConfig
from bertjax.models.bert import flops
from bertjax.models.peft_options import PeftOptions
from bertjax.parallel import hardware

BASE = BertConfig()
LARGE = BertConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16, intermediate_size=4096)


@pytest.mark.parametrize(
    "model, length, predictions, gigaflops",
    [(BASE, 128, 20, 69.9), (BASE, 512, 77, 301.0), (LARGE, 128, 20, 240.6), (LARGE, 512, 77, 1019.9)],
)
def test_published_shapes(model: BertConfig, length: int, predictions: int, gigaflops: float) -> None:
    # The standard pre-training shapes; 6 * N * S + 12 * L * D * S^2 + head, with N the weights that multiply.
    assert flops.train_flops(model, length, predictions) / 1e9 == pytest.approx(gigaflops, abs=0.06)


def test_six_n_d() -> None:
    # 85.1M weights multiply in BERT-base and 302M in BERT-large: "6 N D" plus attention is the same number.
    for model, weights in ((BASE, 84_934_656), (LARGE, 301_989_888)):
        attention = 12 * model.num_hidden_layers * model.hidden_size * 128 * 128
        assert flops.train_flops(model, 128) == 6 * weights * 128 + attention


def test_forward_agrees_with_xla() -> None:
    """The formula counts what the compiler counts in a plain encoder of the same matrix products."""
    jax = pytest.importorskip("jax")
    jnp = jax.numpy
    model = BertConfig(hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, vocab_size=96)
    length, predictions = 16, 3

    def encoder(x, square, up, down, table):
        for _ in range(2):
            query, key, value = x @ square, x @ square.T, x @ (square + 1)
            heads = [t.reshape(length, 4, 8).transpose(1, 0, 2) for t in (query, key, value)]
            mixed = (heads[0] @ heads[1].transpose(0, 2, 1)) @ heads[2]
            x = mixed.transpose(1, 0, 2).reshape(length, 32) @ (square - 1)
            x = (x @ up) @ down
        return (x[:predictions] @ square) @ table

    shapes = [(length, 32), (32, 32), (32, 64), (64, 32), (32, 96)]
    compiled = jax.jit(encoder).lower(*(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes)).compile()
    counted = compiled.cost_analysis()["flops"]
    formula = flops.encoder_flops(model, length) + flops.head_flops(model, predictions)
    assert formula == pytest.approx(counted, rel=0.01)


@given(st.integers(0, 12), st.integers(1, 512), st.integers(0, 80))
def test_frozen_layers_cost_their_forward_pass_only(trained: int, length: int, predictions: int) -> None:
    whole = flops.train_flops(BASE, length, predictions)
    part = flops.train_flops(BASE, length, predictions, trainable_layers=trained)
    assert whole - part == 2 * (12 - trained) * flops.encoder_flops(BASE, length) // 12


@given(st.lists(st.integers(1, 128), min_size=1, max_size=8))
def test_packing_saves_attention_and_nothing_else(lengths: list[int]) -> None:
    packed = flops.train_flops(BASE, sum(lengths), 20, squared_lengths=sum(n * n for n in lengths))
    alone = sum(flops.train_flops(BASE, n) for n in lengths) + 3 * flops.head_flops(BASE, 20)
    assert packed == alone


def test_more_trainable_layers_than_layers() -> None:
    with pytest.raises(ValueError, match="12 layers"):
        flops.train_flops(BASE, 128, trainable_layers=13)


@pytest.mark.parametrize(
    "kind, teraflops",
    [
        ("TPU v2", 22.5), ("TPU v3", 61.5), ("TPU v4", 275), ("TPU v5 lite", 197), ("TPU v5e", 197), ("TPU v5", 459),
        ("TPU v5p", 459), ("TPU v6 lite", 918), ("TPU v6e", 918), ("NVIDIA A100-SXM4-40GB", 312),
        ("NVIDIA A100 80GB PCIe", 312), ("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989), ("NVIDIA GH200 480GB", 989), ("NVIDIA B200", 2250), ("NVIDIA GB200", 2500),
        ("NVIDIA L4", 121), ("Tesla T4", 65), ("Tesla V100-SXM2-16GB", 125), ("Tesla V100-PCIE-32GB", 112),
    ],
)  # fmt: skip
def test_peaks(kind: str, teraflops: float) -> None:
    assert hardware.peak_flops(kind) == teraflops * 1e12


@pytest.mark.parametrize(
    "kind", ["cpu", "", "NVIDIA L40S", "NVIDIA T400", "TPU v4 lite", "TPU v7", "NVIDIA H200 MIG 1g.18gb", "Radeon"]
)
def test_unknown_chips_have_no_peak(kind: str) -> None:
    assert hardware.peak_flops(kind) is None
    assert hardware.utilization(1e12, 1.0, kind, 1) is None


def test_utilization_of_a_known_rate() -> None:
    # BERT-base S128 at 8 486 sequences a second is 60 % of an H100's 989 TFLOP/s.
    done = flops.train_flops(BASE, 128, 20) * 8486
    assert hardware.utilization(done, 1.0, "NVIDIA H100 80GB HBM3", 1) == pytest.approx(0.60, abs=0.001)
    assert hardware.utilization(8 * done, 1.0, "NVIDIA H100 80GB HBM3", 8) == pytest.approx(0.60, abs=0.001)
    assert hardware.utilization(done, 0.0, "NVIDIA H100 80GB HBM3", 1) is None


LORA = PeftOptions(lora_rank=8, lora_targets=("query", "value"))


def test_added_layers_by_hand() -> None:
    """Frozen weights: forward and the gradient of their inputs, 4 N S; what trains costs 6 N S, attention as ever."""
    S, D, weights = 128, 768, 84_934_656
    attention = 12 * 12 * D * S * S
    lora, adapters = 12 * 2 * 8 * (D + D), 12 * 2 * 2 * D * 64
    assert flops.peft_flops(BASE, LORA, S) == 4 * weights * S + attention + 6 * lora * S
    assert flops.peft_flops(BASE, PeftOptions(adapter_size=64), S) == 4 * weights * S + attention + 6 * adapters * S
    head = flops.peft_flops(BASE, LORA, S, 20) - flops.peft_flops(BASE, LORA, S)
    assert head == 20 * (6 * D * D + 4 * D * 30522), "the word embeddings are frozen"


@pytest.mark.parametrize("peft", [LORA, PeftOptions(adapter_size=16)], ids=["lora", "adapters"])
def test_added_layers_agree_with_xla(peft: PeftOptions) -> None:
    """As T5's (test_flops_t5.py): the lowest layer needs no gradients of what it reads, which the formula counts."""
    jax = pytest.importorskip("jax")
    from bertjax.models import registry
    from bertjax.training import freezing

    model = BertConfig(
        hidden_size=128, num_hidden_layers=3, num_attention_heads=4, intermediate_size=384, vocab_size=96,
        hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0,
    )  # fmt: skip
    S = 48
    params = jax.eval_shape(lambda key: registry.init_params(model, ("qa",), 2, key, peft), jax.random.key(0))
    of = freezing.grouped(params)
    trained = {path: x for path, x in params.items() if of[path].endswith(("/lora", "/adapter", "/norms"))}
    frozen = {path: x for path, x in params.items() if path not in trained}

    def loss(trained, frozen, ids):
        return registry.build_model(model, ("qa",), trained | frozen, peft=peft)(ids)["start"].sum()

    ids = jax.ShapeDtypeStruct((1, S), jax.numpy.int32)
    counted = jax.jit(jax.grad(loss)).lower(trained, frozen, ids).compile().cost_analysis()["flops"]
    formula = flops.peft_flops(model, peft, S)
    lowest = flops.encoder_flops(model, S, layers=1)
    assert formula - 2 * lowest < counted < 1.15 * formula
