"""Tokenizer folders as those of RoBERTa, XLM-R, ALBERT and ELECTRA, trained on a few sentences of many languages."""

import io
import json
import unicodedata
from pathlib import Path
from typing import Any

import sentencepiece
import tokenizers

SENTENCES = [
    "The cat sat on the mat, and the dog sat beside the cat!",
    "Paris is the capital of France; it isn't the capital of Spain.",
    "UNaffable PEOPLE are seldom affable; don't you think?",
    "Café, naïve, Straße, façade, Ångström",
    unicodedata.normalize("NFD", "Tiếng Việt rất đẹp, ƯỚC MƠ"),
    "日本語とEnglishの混合文。東京は日本の首都です。",
    "中文没有空格，標點符號！北京是中国的首都。",
    "ภาษาไทยไม่มีช่องว่าง",
    "हिन्दी में लिखा हुआ वाक्य।",
    "اللغة العربية جميلة، أليس كذلك؟",
    "서울은 한국의 수도이다.",
    "emoji 😀👩\u200d👩\u200d👧 and flags 🇩🇪 said 👍🏽 twice",
]
ODD = [
    "", " ", "  many   spaces  ", "tabs\tand\nnew lines\r\n", "no\u00a0break and line\u2028separator", "a" * 150 + " b",
    "zero\u200bwidth\u200djoin\ufeff and soft\u00adhyphen", "control \x00\x01\x7f characters \ufffd here",
    "The [MASK] sat [SEP] on [CLS] a [PAD] and [UNK].", "a <mask> b<mask>c <s> </s> <pad> <unk> <MASK>", " <mask> ",
    "``quoted'' “text” – dashes ½ ﬁ ﬂ ™", "1234567890 3.14 $5 #tag user@example.com", "▁ Ġ ## ▁the Ġthe ##the",
    "ß ẞ İ ı ſ K Å", "I'm he'll we've DON'T", "e\u0301 E\u0301\u0323 \u0301alone",
]  # fmt: skip
TEXTS = [*SENTENCES, *ODD]
LETTERS = "".join(sorted({x for text in TEXTS for x in text + unicodedata.normalize("NFD", text.lower())}))
KINDS = ("roberta", "roberta, json", "xlm-roberta", "albert", "albert, cased", "electra")
_LAYOUT = {"roberta": "double", "roberta, json": "double", "xlm-roberta": "double"}


def is_double(kind: str) -> bool:
    """Whether two texts have two separators between them."""
    return kind in _LAYOUT


def tokenizer_folder(kind: str, folder: Path, model_type: str | None = None) -> Path:
    """Write the vocabulary, config.json and settings. `model_type` another than the kind's: its class is named."""
    folder.mkdir(parents=True, exist_ok=True)
    own = kind.split(",")[0]
    settings: dict[str, Any] = {}
    if own == "roberta":
        _byte_level(folder, with_json=kind.endswith("json"))
        names = "RobertaTokenizer"
    elif own == "xlm-roberta":
        (folder / "sentencepiece.bpe.model").write_bytes(_sentencepiece())
        names = "XLMRobertaTokenizer"
    elif own == "albert":
        roles = {"pad_id": 0, "unk_id": 1, "bos_id": -1, "eos_id": -1, "control_symbols": ["[CLS]", "[SEP]", "[MASK]"]}
        (folder / "spiece.model").write_bytes(_sentencepiece(**roles))
        names = "AlbertTokenizer"
        settings |= {"do_lower_case": False, "keep_accents": True} if kind.endswith("cased") else {}
    else:
        pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat", "##at", "##s"]
        pieces += [letter for letter in LETTERS if not letter.isspace()]
        pieces += ["##" + letter for letter in LETTERS if not letter.isspace()]
        (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in dict.fromkeys(pieces)), encoding="utf-8")
        names = "ElectraTokenizer"
    if model_type is not None:
        settings["tokenizer_class"] = names
    (folder / "config.json").write_text(json.dumps({"model_type": model_type or own, "vocab_size": 1000}))
    if settings:
        (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    return folder


def _byte_level(folder: Path, with_json: bool) -> None:
    """vocab.json and merges.txt; with the tokenizer.json of roberta-base, whose <mask> takes the space before it."""
    found = tokenizers.ByteLevelBPETokenizer(add_prefix_space=False)
    names = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
    found.train_from_iterator(SENTENCES * 3, vocab_size=500, min_frequency=2, special_tokens=names, show_progress=False)
    found.save_model(str(folder))
    if with_json:
        found.add_special_tokens([tokenizers.AddedToken(n, lstrip=n == "<mask>", normalized=False) for n in names])
        backend = found._tokenizer
        backend.post_processor = tokenizers.processors.RobertaProcessing(("</s>", 2), ("<s>", 0), True, False)
        backend.save(str(folder / "tokenizer.json"))


def _sentencepiece(**options: Any) -> bytes:
    writer = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES * 3), model_writer=writer, model_type="unigram", vocab_size=400,
        hard_vocab_limit=False, character_coverage=1.0, minloglevel=2, num_threads=1, **options,
    )  # fmt: skip
    return writer.getvalue()
