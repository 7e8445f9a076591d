"""Parity with transformers' torch T5: the same random weights, the same hidden states, logits and loss."""

from functools import cache

import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from torch_t5 import flat_parameters  # noqa: E402

from bertjax.config.schema.model import T5Config  # noqa: E402
from bertjax.models import registry  # noqa: E402
from bertjax.models.t5.attention import bucket_table  # noqa: E402
from bertjax.models.t5.model import shift_right  # noqa: E402

TOLERANCE = 1e-4
SIZES = dict(vocab_size=53, d_model=24, d_kv=6, d_ff=40, num_layers=2, num_heads=5, relative_attention_max_distance=20,
             relative_attention_num_buckets=8)  # fmt: skip
VERSIONS = {
    "1.0": {"feed_forward_proj": "relu", "tie_word_embeddings": True},
    "1.1": {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False},
    "deeper decoder": {"feed_forward_proj": "relu", "tie_word_embeddings": True, "num_decoder_layers": 3},
}


@cache
def pair(version: str):
    """A transformers model with random weights everywhere, and ours with the same."""
    config = T5Config(**SIZES | VERSIONS[version])
    theirs = transformers.T5Config(
        **SIZES, feed_forward_proj=config.feed_forward_proj, num_decoder_layers=config.decoder_layers, dropout_rate=0.1,
        tie_word_embeddings=config.tie_word_embeddings, decoder_start_token_id=0, attn_implementation="eager",
    )  # fmt: skip
    torch.manual_seed(len(version))
    model = transformers.T5ForConditionalGeneration(theirs).eval()
    if not config.tie_word_embeddings:  # transformers 5 ties them whatever the configuration says
        model.lm_head.weight = torch.nn.Parameter(torch.empty(SIZES["vocab_size"], SIZES["d_model"]))
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            norm = path.endswith("layer_norm.weight")
            parameter.copy_(torch.randn_like(parameter) * 0.3 + (1.0 if norm else 0.0))
    params = flat_parameters(model, config)
    return model, registry.build_model(config, ("lm",), params), params, config


def batch() -> dict[str, np.ndarray]:
    """Inputs longer than the furthest bucket and targets, three rows of different lengths."""
    rng = np.random.default_rng(0)
    out = {}
    for prefix, width, lengths in (("", 31, [31, 12, 1]), ("target_", 17, [4, 17, 9])):
        place = np.arange(width)[None]
        real = place < np.array(lengths)[:, None]
        out["target_ids" if prefix else "input_ids"] = np.where(real, rng.integers(1, 53, (3, width)), 0)
        out[f"{prefix}segment_ids"] = real.astype(int)
        out[f"{prefix}positions"] = place * real
    return {name: x.astype(np.int32) for name, x in out.items()}


@pytest.mark.parametrize("version", VERSIONS)
def test_same_hidden_states_logits_and_loss(version):
    model, ours, params, config = pair(version)
    rows = batch()
    real = rows["target_segment_ids"] > 0
    with torch.no_grad():
        expected = model(
            input_ids=torch.tensor(rows["input_ids"]).long(),
            attention_mask=torch.tensor(rows["segment_ids"]),
            labels=torch.tensor(np.where(real, rows["target_ids"], -100)).long(),
        )
    if not config.tie_word_embeddings:
        assert not np.allclose(params["heads/lm/kernel"].T, params["embeddings/word/embedding"])
    hidden = ours.encode(rows["input_ids"], rows["segment_ids"])
    seen = rows["segment_ids"] > 0
    np.testing.assert_allclose(
        np.asarray(hidden)[seen], expected.encoder_last_hidden_state.numpy()[seen], atol=TOLERANCE
    )
    inputs = shift_right(rows["target_ids"], rows["target_positions"])
    logits = ours.logits(ours.decode(inputs, rows["target_segment_ids"], hidden, rows["segment_ids"]))
    assert logits.dtype == jnp.float32
    np.testing.assert_allclose(np.asarray(logits)[real], expected.logits.numpy()[real], atol=TOLERANCE)
    log_z = np.log(np.exp(np.asarray(logits, np.float64)).sum(-1))
    picked = np.take_along_axis(np.asarray(logits), rows["target_ids"][..., None], axis=-1)[..., 0]
    assert abs((log_z - picked)[real].mean() - expected.loss.item()) < TOLERANCE


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize(("buckets", "furthest"), [(32, 128), (8, 20), (16, 64), (4, 100)])
def test_same_buckets(bidirectional, buckets, furthest):
    from transformers.models.t5.modeling_t5 import T5Attention

    found = bucket_table(bidirectional, buckets, furthest)
    relative = torch.arange(-furthest, furthest + 1)
    expected = T5Attention._relative_position_bucket(relative, bidirectional, buckets, furthest)
    np.testing.assert_array_equal(found, expected.numpy())
    for far in (-1000, 1000):  # beyond the table, its ends
        clipped = int(np.clip(far, -furthest, furthest)) + furthest
        assert found[clipped] == T5Attention._relative_position_bucket(
            torch.tensor(far), bidirectional, buckets, furthest
        )
