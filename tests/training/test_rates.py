"""Schedules against transformers, and several learning rates against torch.optim.AdamW with parameter groups."""

from dataclasses import replace

import jax
import numpy as np
import pytest
from pydantic import ValidationError

from bertjax.config.schema.model import T5Config
from bertjax.config.schema.run import Stage
from bertjax.config.schema.training import Adafactor, AdamW, SpanQaObjective, Trainable
from bertjax.errors import UserError
from bertjax.models import registry
from bertjax.models.peft_options import PeftOptions
from bertjax.training import freezing, optimizers, rates
from bertjax.training.state import TrainState
from bertjax.training.step import compute_gradients, jit_train_step

N, W = 200, 20
HUGGING_FACE = [  # (name and options of transformers, options here)
    ("linear", {}, {"schedule": "polynomial"}),
    ("polynomial", {"power": 2.0, "lr_end": 1e-4}, {"schedule": "polynomial", "power": 2.0, "min_lr_ratio": 0.1}),
    ("cosine", {}, {"schedule": "cosine"}),
    ("cosine_with_min_lr", {"min_lr_rate": 0.1}, {"schedule": "cosine_with_min_lr", "min_lr_ratio": 0.1}),
    ("constant_with_warmup", {}, {"schedule": "constant_with_warmup"}),
    *(
        ("warmup_stable_decay", {"num_decay_steps": 50, "decay_type": shape},
         {"schedule": "warmup_stable_decay", "decay_steps": 50, "decay_shape": shape})
        for shape in ("linear", "1-sqrt", "cosine")
    ),
]  # fmt: skip


@pytest.mark.parametrize(("name", "theirs", "ours"), HUGGING_FACE)
def test_schedules_are_those_of_transformers(name, theirs, ours):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
    scheduler = transformers.get_scheduler(name, optimizer, W, N, scheduler_specific_kwargs=theirs)
    expected = []
    for _ in range(N + 1):
        expected.append(scheduler.get_last_lr()[0])
        optimizer.step()
        scheduler.step()
    rate = optimizers.schedule(AdamW(learning_rate=1e-3, warmup_steps=W, **ours), N)
    np.testing.assert_allclose(jax.vmap(rate)(np.arange(N + 1)), expected, rtol=2e-5, atol=1e-10)


def slanted(step: int, steps: int, cut_frac: float = 0.1, ratio: float = 32, highest: float = 1.0) -> float:
    """Equation 3 of arXiv 1801.06146, as it is written there."""
    cut = int(steps * cut_frac)
    p = step / cut if step < cut else 1 - (step - cut) / (cut * (1 / cut_frac - 1))
    return highest * (1 + p * (ratio - 1)) / ratio


@pytest.mark.parametrize(
    ("steps", "options", "paper"),
    [
        (200, {}, {}),
        (1000, {"warmup_ratio": 0.2, "ratio": 10.0}, {"cut_frac": 0.2, "ratio": 10}),
        (105, {}, {}),  # floor(10.5): the equation goes below 0 at the end
    ],
)
def test_slanted_triangular_rates_are_those_of_the_paper(steps, options, paper):
    rate = optimizers.schedule(AdamW(learning_rate=1.0, schedule="slanted_triangular", **options), steps)
    ratio = paper.get("ratio", 32)
    expected = [max(slanted(step, steps, **paper), 1 / ratio) for step in range(steps + 1)]
    np.testing.assert_allclose(jax.vmap(rate)(np.arange(steps + 1)), expected, rtol=1e-5)
    assert max(expected) == 1 and expected[0] == pytest.approx(1 / ratio)
    below = [step for step in range(steps) if slanted(step, steps, **paper) < expected[step] - 1e-9]
    assert below == ([] if steps != 105 else list(range(100, 105)))[-len(below) :]


def test_slanted_triangular_rates_with_steps_or_without_warm_up():
    options = {"schedule": "slanted_triangular", "learning_rate": 1.0}
    rate = optimizers.schedule(AdamW(warmup_steps=20, **options), 200)
    assert [float(rate(step)) for step in (0, 20, 200)] == pytest.approx([1 / 32, 1, 1 / 32])
    falling = optimizers.schedule(AdamW(warmup_steps=0, **options), 100)
    assert [float(falling(step)) for step in (0, 50, 100)] == pytest.approx([1, 33 / 64, 1 / 32])
    assert Adafactor(schedule="slanted_triangular").warmup_ratio == 0.1
    with pytest.raises(ValidationError, match="ratio is for schedule: slanted_triangular, not linear"):
        AdamW(ratio=10.0)
    assert "ratio" not in AdamW().model_dump() and "restart" not in AdamW().model_dump()


def test_a_schedule_that_restarts_runs_over_each_episode():
    config = AdamW(schedule="slanted_triangular", learning_rate=1.0, restart=True)
    episodes = ((0, 50), (50, 100), (100, 205))
    rate = jax.vmap(optimizers.restarting_schedule(config, 205, episodes))(np.arange(205))
    expected = [max(slanted(step, stop - start), 1 / 32) for start, stop in episodes for step in range(stop - start)]
    np.testing.assert_allclose(rate, expected, rtol=1e-5)
    plain = jax.vmap(optimizers.restarting_schedule(replace_restart(config), 205, episodes))(np.arange(205))
    np.testing.assert_allclose(plain, [max(slanted(step, 205), 1 / 32) for step in range(205)], rtol=1e-5)
    stage = {"name": "s", "steps": 20, "data": "t", "optimizer": {"restart": True}}
    with pytest.raises(ValidationError, match="optimizer.restart is for the episodes of trainable: gradual"):
        Stage.model_validate(stage)
    long = Stage.model_validate(stage | {"trainable": "gradual", "optimizer": {"restart": True, "warmup_steps": 6}})
    with pytest.raises(UserError, match="warmup_steps .6. is more than an episode has .5., and restart"):
        rates.restarts(long, [freezing.Episode(0, 5, ()), freezing.Episode(5, 20, ())])


def replace_restart(config: AdamW) -> AdamW:
    return config.model_copy(update={"restart": False})


def test_the_end_of_a_schedule():
    def last(**options: object) -> list[float]:
        rate = optimizers.schedule(AdamW(learning_rate=1.0, warmup_steps=0, **options), N)
        return [float(rate(step)) for step in (0, 180, 190, N, N + 50)]

    assert last(schedule="wsd", min_lr_ratio=0.1) == pytest.approx([1, 1, 0.55, 0.1, 0.1])  # decay_ratio 0.1
    assert last(schedule="cosine", min_lr_ratio=0.1)[3:] == pytest.approx([0.1, 0.1])
    assert float(optimizers.schedule(Adafactor(schedule="wsd", learning_rate=2.0), N)(50)) == 2.0  # no warm-up
    assert optimizers.decay_steps(AdamW(schedule="wsd", warmup_steps=150, decay_ratio=0.9), N) == 50


def test_a_schedule_refuses_options_that_it_does_not_read():
    for given, words in (
        ({"min_lr_ratio": 0.1}, "min_lr_ratio is for schedule: cosine or polynomial or wsd, not linear"),
        ({"schedule": "cosine", "power": 2.0}, "power is for schedule: polynomial"),
        ({"schedule": "wsd", "decay_steps": 5, "decay_ratio": 0.5}, "give either decay_steps or decay_ratio"),
        ({"learning_rates": {"heads": "0x"}}, "must be a factor above 0 such as 0.1x"),
        ({"learning_rates": {"heads": "fast"}}, "must be a factor above 0 such as 0.1x"),
    ):
        with pytest.raises(ValidationError, match=words):
            AdamW(**given)
    with pytest.raises(ValidationError, match="decay_steps"):
        Stage(name="a", data="t", steps=10, optimizer=AdamW(schedule="wsd", warmup_steps=5, decay_steps=6))


def test_options_that_are_not_used_are_not_saved():
    for section in (AdamW(), Adafactor()):
        assert (
            not {"min_lr_ratio", "power", "decay_steps", "learning_rates", "layer_decay"} & section.model_dump().keys()
        )
    saved = AdamW(learning_rates={"heads": "10x"}, layer_decay=0.9).model_dump()
    assert (saved["learning_rates"], saved["layer_decay"]) == ({"heads": "10x"}, 0.9)


# ---- several rates ---------------------------------------------------------------------------------------------------

SEVERAL = AdamW(
    kind="adamw", learning_rate=1e-2, schedule="constant", warmup_steps=0, clip_norm=None, weight_decay=0.1, eps=1e-8,
    learning_rates={"heads": 3e-2, "*bias": "0.5x", "layers/1/attention": "0.1x"}, layer_decay=0.8,
)  # fmt: skip
PLAIN = SEVERAL.model_copy(update={"learning_rates": {}, "layer_decay": 1.0})


def expected_factor(path: str) -> float:
    """Written out by hand for the two layers of the tiny model."""
    if path.startswith("layers/1/attention"):  # more letters than *bias
        return 0.1
    if path.startswith("heads"):
        return 3.0
    if path.endswith("bias"):
        return 0.5
    return {"layers/1": 0.8, "layers/0": 0.8**2}.get("/".join(path.split("/")[:2]), 0.8**3)


def start(program, groups=None) -> TrainState:
    groups = groups or freezing.param_groups(program.abstract_params())
    return program.init_state(program.initialize(jax.random.key(1)), groups, jax.random.key(2))


def test_several_rates_are_torch_parameter_groups(make_program, make_rows):
    torch = pytest.importorskip("torch")
    batches = [make_rows("span", 8, groups=2, seed=seed) for seed in range(3)]
    program = make_program(SpanQaObjective(), optimizer=SEVERAL, dropout=0.0)
    state = start(program)
    weights = {path: torch.nn.Parameter(torch.tensor(np.asarray(x))) for path, x in state.params.items()}
    groups = [
        {"params": [w], "lr": 1e-2 * expected_factor(path),
         "weight_decay": 0.1 if optimizers.has_weight_decay(path) else 0.0}
        for path, w in weights.items()
    ]  # fmt: skip
    adamw = torch.optim.AdamW(groups, betas=(SEVERAL.b1, SEVERAL.b2), eps=SEVERAL.eps)
    step, gradients = jit_train_step(program, state), jax.jit(lambda s, b: compute_gradients(program, s, b)[0])
    for batch in batches:
        for path, grad in gradients(state, batch).items():
            weights[path].grad = torch.tensor(np.asarray(grad))
        adamw.step()
        state, metrics = step(state, jax.device_put(batch, program.batch_sharding()))
        assert float(metrics["learning_rate"]) == pytest.approx(1e-2)
    for path, w in weights.items():
        np.testing.assert_allclose(state.params[path], w.detach(), rtol=2e-4, atol=2e-5, err_msg=path)


@pytest.mark.parametrize(
    ("axes", "groups"),
    [
        ({"fsdp": 2, "tensor": 2, "segments": (2,)}, None),
        pytest.param({"segments": (2,)}, ("layers/1", "heads"), marks=pytest.mark.slow),
    ],
    ids=["sharded and scanned", "partly frozen"],
)
def test_a_factor_scales_the_update_of_its_parameter(make_program, make_rows, axes, groups):
    batch = make_rows("span", 8, groups=2, seed=0)

    def change(optimizer: AdamW) -> dict[str, np.ndarray]:
        program = make_program(SpanQaObjective(), optimizer=optimizer, dropout=0.0, **axes)
        state = start(program, groups)
        before = jax.device_get(state.params)
        after = jit_train_step(program, state)(state, jax.device_put(batch, program.batch_sharding()))[0].params
        return {path: np.asarray(after[path]) - x for path, x in before.items()}

    plain, several = change(PLAIN), change(SEVERAL)
    for path, moved in plain.items():
        np.testing.assert_allclose(several[path], moved * expected_factor(path), rtol=2e-3, atol=2e-7, err_msg=path)


def t5_paths(adapter_size: int = 0) -> list[str]:
    model = T5Config(num_layers=2, num_decoder_layers=3, d_model=8, d_ff=16, num_heads=2, d_kv=4, vocab_size=32)
    return list(registry.abstract_params(model, ("lm",), None, PeftOptions(adapter_size=adapter_size)))


def test_layers_of_both_stacks_decay_from_their_own_top():
    factor = rates.depth_factors(t5_paths(4), 0.5)
    shared = {
        name: factor.get(name) for name in ("encoder/shared", "decoder/shared", "encoder/shared/norms", "embeddings")
    }
    assert shared == {
        "encoder/shared": 0.25,
        "decoder/shared": 0.125,
        "encoder/shared/norms": None,
        "embeddings": 0.0625,
    }
    assert [factor[f"decoder/layers/{n}"] for n in range(3)] == [0.125, 0.25, 0.5]
    assert factor["encoder/layers/1"] == factor["encoder/layers/1/norms"] == factor["encoder/layers/1/adapter"] == 0.5


def test_a_pattern_needs_a_parameter_that_trains():
    paths = t5_paths(4)

    def check(pattern: str, kind: str) -> None:
        trainable = Trainable(kind=kind)
        stage = Stage(
            name="qa", data="t", steps=10, trainable=trainable, optimizer=AdamW(learning_rates={pattern: 1e-3})
        )
        rates.check_patterns(stage, paths, freezing.episodes(trainable, freezing.param_groups(paths), 10))

    check("encoder/layers/0", "all")
    check("*/adapter", "adapters")
    check("encoder/layers/0", "gradual")
    with pytest.raises(
        UserError, match="qa.optimizer.learning_rates.encoder/layer/0: .* did you mean 'encoder/layers/0'"
    ):
        check("encoder/layer/0", "all")
    for pattern in ("adapter", "adapters"):
        with pytest.raises(UserError, match=rf"rates.{pattern}: .* did you mean '\*/adapter'\?"):
            check(pattern, "adapters")
    with pytest.raises(UserError, match="paths begin with decoder, embeddings, encoder"):
        check("xyzzy", "all")
    with pytest.raises(UserError, match="nothing that it matches trains"):
        check("embeddings", "adapters")


@pytest.mark.parametrize("kind", ["all", "gradual", "head", "adapters", "lora"])
def test_muon_without_a_matrix_is_said(kind):
    model = T5Config(vocab_size=32, d_model=8, d_kv=4, d_ff=8, num_layers=2, num_heads=2)
    peft = PeftOptions(adapter_size=2 * (kind == "adapters"), lora_rank=int(kind == "lora"), lora_targets=("query",))
    params = registry.abstract_params(model, ("lm",), 2, peft)

    def note(**options: object) -> str | None:
        stage = Stage(name="a", data="b", steps=10, trainable=kind, optimizer={"kind": "muon", **options})
        return rates.muon_note(stage, params, freezing.stage_episodes(stage, freezing.param_groups(params), 10))

    assert note(kind="adamw") is None
    if kind in ("all", "gradual"):
        assert note() is None
    else:
        assert f"trainable: {kind}" in str(note()) and "rate 0.001 " in str(note())
        assert "rate 0.0005 " in str(note(adam_learning_rate=5e-4))


def test_a_layer_number_is_not_the_beginning_of_another():
    assert rates.matches("layers/1", "layers/1/mlp/output/bias") and not rates.matches("layers/1", "layers/11/mlp")
    assert rates.matches("layers/1*", "layers/11/mlp") and rates.matches("*bias", "layers/11/mlp/output/bias")


def test_a_program_without_other_rates_has_no_factors(make_program):
    program = make_program()
    assert program.rate_factors == {}
    same = replace(program, optimizer=AdamW(learning_rate=1e-3, learning_rates={"heads": 1e-3}))
    assert same.rate_factors == {} and same.named_rates(("heads",)) == {"heads": 1.0}
