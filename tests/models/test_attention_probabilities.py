"""`attention_probabilities` against `output_attentions` of transformers' torch models with the same random weights."""

import jax.numpy as jnp
import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from model_sections import model_section  # noqa: E402
from torch_t5 import flat_parameters  # noqa: E402

from bertjax.config.schema.model import T5Config  # noqa: E402
from bertjax.interop import hf_folder  # noqa: E402
from bertjax.models import registry  # noqa: E402

COMMON = {"vocab_size": 61, "hidden_size": 24, "num_hidden_layers": 3, "num_attention_heads": 3,
          "intermediate_size": 40, "max_position_embeddings": 22}  # fmt: skip
ENCODERS = {
    "Bert": COMMON,
    "DistilBert": {"vocab_size": 61, "dim": 24, "n_layers": 2, "n_heads": 3, "hidden_dim": 40},
    "Roberta": COMMON,
    "Electra": COMMON | {"embedding_size": 10},
    "Albert": COMMON | {"embedding_size": 10, "num_hidden_layers": 4, "num_hidden_groups": 2, "inner_group_num": 2},
}
T5_SIZES = dict(vocab_size=53, d_model=24, d_kv=6, d_ff=40, num_layers=3, num_heads=5,
                relative_attention_max_distance=20, relative_attention_num_buckets=8)  # fmt: skip


def randomize(model) -> None:
    torch.manual_seed(3)
    with torch.no_grad():
        for path, parameter in model.named_parameters():
            norm = "norm" in path.lower() and path.endswith("weight")
            parameter.copy_(torch.randn_like(parameter) * 0.3 + (1.0 if norm else 0.0))


def rows(pad: int) -> tuple[np.ndarray, np.ndarray]:
    """(ids, 1 for tokens and 0 for padding) of a full row, one with padding and a single token."""
    real = np.arange(18)[None] < np.array([18, 11, 1])[:, None]
    return np.where(real, np.random.default_rng(0).integers(pad + 1, 53, (3, 18)), pad), real.astype(int)


def assert_same(ours, theirs, real: np.ndarray) -> None:
    """Layer by layer, for the queries that are tokens."""
    assert len(ours) == len(theirs) > 1
    for number, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        assert a.dtype == jnp.float32 and a.shape == b.shape
        a, b = (np.moveaxis(np.asarray(x), 1, 2)[real > 0] for x in (a, b.detach().numpy()))
        np.testing.assert_allclose(a, b, atol=2e-5, err_msg=f"layer {number}")
        np.testing.assert_allclose(a.sum(-1), 1, atol=1e-5)
        assert a.std() > 0.01  # not uniform


@pytest.mark.parametrize("family", ENCODERS)
def test_encoders(family, tmp_path):
    config = getattr(transformers, f"{family}Config")(**ENCODERS[family], attn_implementation="eager")
    theirs = getattr(transformers, f"{family}Model")(config).eval()
    randomize(theirs)
    theirs.save_pretrained(tmp_path)
    model = model_section(tmp_path)
    ours = registry.build_model(model, (), hf_folder.load_params(tmp_path, model))
    ids, real = rows(config.pad_token_id)
    found = theirs(torch.tensor(ids), attention_mask=torch.tensor(real), output_attentions=True).attentions
    given = (ids, np.zeros_like(ids), real, np.arange(18)[None] * real)
    assert_same(ours.attention_probabilities(*(jnp.asarray(x, jnp.int32) for x in given)), found, real)


@pytest.mark.parametrize("gated", [False, True])
def test_t5(gated):
    more = {"feed_forward_proj": "gated-gelu" if gated else "relu", "tie_word_embeddings": True}
    config = T5Config(**T5_SIZES, **more)
    theirs = transformers.T5ForConditionalGeneration(
        transformers.T5Config(**T5_SIZES, **more, decoder_start_token_id=0, attn_implementation="eager")
    ).eval()
    randomize(theirs)
    ours = registry.build_model(config, ("lm",), flat_parameters(theirs, config))
    ids, real = rows(0)
    found = theirs.encoder(torch.tensor(ids), attention_mask=torch.tensor(real), output_attentions=True).attentions
    given = (jnp.asarray(ids, jnp.int32), jnp.asarray(real, jnp.int32))
    assert_same(ours.attention_probabilities(*given), found, real)
