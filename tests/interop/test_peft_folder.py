"""Adapter folders of the peft library: classifiers of every family of encoders, as peft reads them."""

import json

import numpy as np
import pytest
from safetensors.numpy import load_file

from bertjax.config.schema.model import FAMILIES
from bertjax.config.schema.training import Trainable
from bertjax.data.tokenizers.load import Tokenizer, build_wordpiece
from bertjax.interop import hf_folder, peft_folder
from bertjax.models import registry
from bertjax.models.layers import lora
from bertjax.models.peft_options import PeftOptions

SIZES = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24,
         "max_position_embeddings": 32}  # fmt: skip
# {family: the entries of `modules_to_save`}: besides the pooler what peft's task SEQ_CLS has, and pre_classifier
FAMILY_HEADS = {
    "bert": ["bert.pooler.dense", "classifier"],
    "distilbert": ["classifier", "pre_classifier"],
    "roberta": ["classifier"],
    "electra": ["classifier"],
    "albert": ["albert.pooler", "classifier"],
}
HEADS, LABELS = ("classifier",), 3
TRAINABLE = Trainable(kind="lora", lora_rank=2, lora_alpha=6, lora_targets=["query", "mlp_output"])
PEFT = PeftOptions(lora_rank=2, lora_scale=3.0, lora_targets=("query", "mlp_output"))


def write(family: str, folder):
    """-> (section, parameters), with the adapter in `peft` and the weights below it in `base`."""
    config = FAMILIES[family](**SIZES)
    rng = np.random.default_rng(0)
    shapes = registry.abstract_params(config, HEADS, LABELS, PEFT)
    params = {path: rng.normal(size=x.shape).astype(np.float32) * 0.3 for path, x in shapes.items()}
    own = {path: x for path, x in params.items() if lora.is_lora(path) or path.startswith("heads/")}
    peft_folder.save_adapter(folder / "peft", own, config, HEADS, TRAINABLE, str(folder / "base"))
    base = {path: np.zeros_like(x) if path in own else x for path, x in params.items() if not lora.is_lora(path)}
    names = ["<s>", "[PAD]"] if family == "roberta" else ["[PAD]"]
    backend = build_wordpiece(
        {p: i for i, p in enumerate([*names, "[UNK]", "[CLS]", "[SEP]", "[MASK]"])}, lowercase=True
    )
    hf_folder.save_folder(folder / "base", base, config, HEADS, tokenizer=Tokenizer(backend, "test"))
    return config, params


@pytest.mark.parametrize(("family", "saved"), FAMILY_HEADS.items())
def test_modules_are_saved_once(family, saved, tmp_path):
    write(family, tmp_path)
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert config["modules_to_save"] == saved and config["task_type"] == "SEQ_CLS"
    tensors = load_file(tmp_path / "peft" / "adapter_model.safetensors")
    heads = {name for name in tensors if ".lora_" not in name}
    for module in saved:
        assert any(name.startswith(f"base_model.model.{module}.") for name in heads)
    assert len(tensors) == 2 * len(config["target_modules"]) + len(heads)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of transformers and peft
@pytest.mark.parametrize("family", FAMILY_HEADS)
def test_peft_loads_the_folder(family, tmp_path):
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")
    config, params = write(family, tmp_path)
    ids = np.random.default_rng(1).integers(5, 40, (2, 9)).astype(np.int32)
    ours = registry.build_model(config, HEADS, params, num_labels=LABELS, peft=PEFT)(ids)["classifier"]
    base = transformers.AutoModelForSequenceClassification.from_pretrained(tmp_path / "base")
    model = peft.PeftModel.from_pretrained(base, tmp_path / "peft").eval()
    with torch.no_grad():
        theirs = model(input_ids=torch.tensor(ids).long()).logits.numpy()
        merged = model.merge_and_unload()(input_ids=torch.tensor(ids).long()).logits.numpy()
    np.testing.assert_allclose(ours, theirs, atol=1e-5)
    np.testing.assert_allclose(ours, merged, atol=1e-5)
