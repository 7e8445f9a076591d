"""Loads tokenizers of every kind, and trains those of a configuration without a file; no network is needed."""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import sentencepiece
import tokenizers

from bertjax.config.loading.step_meta import is_checkpoint_step, read_meta
from bertjax.config.schema.data import BpeConfig, BytesConfig, SentencePieceConfig, WordPieceConfig
from bertjax.data.tokenizers import backend_state, bpe, byte_level, encoder, huggingface, sentinels
from bertjax.data.tokenizers import files as tokenizer_files
from bertjax.data.tokenizers import sentencepiece as tokenizers_sentencepiece
from bertjax.data.tokenizers import wordpiece as tokenizers_wordpiece
from bertjax.data.tokenizers.byte_level import ByteTokenizer
from bertjax.data.tokenizers.encoder import Tokenizer
from bertjax.data.tokenizers.files import JSON, SpecialTokens
from bertjax.data.tokenizers.locate import FILES, find_tokenizer, locate
from bertjax.data.tokenizers.sentinels import SentinelTokenizer
from bertjax.data.tokenizers.unigram import UnigramTokenizer
from bertjax.data.tokenizers.wordpiece import VERSION, build_wordpiece
from bertjax.errors import UserError
from bertjax.progress import reporter
from bertjax.storage import pretrained

# A Tokenizer, or for T5 one of SentencePieceTokenizer, UnigramTokenizer, SentinelTokenizer and ByteTokenizer:
# preprocessing says which.
AnyTokenizer: TypeAlias = Any


def load(
    config: WordPieceConfig | BpeConfig | SentencePieceConfig | BytesConfig,
    base: Path,
    *,
    vocab_size: int,
    train_source_documents: Callable[[], Iterator[list[str]]] | None,
    cache: Path,
    fingerprint: str | None = None,
    text_bytes: int = 0,
) -> AnyTokenizer:
    """The tokenizer of a config: read from `config.path`, or trained on the given documents (lists of sentences).

    A trained one is kept under `cache`, keyed by the options and the `fingerprint` of the text (default: a hash).
    `text_bytes`: the size of the text's files, for the progress that is shown; 0 if unknown.
    """
    if config.path is not None:
        place = locate(config.path, base)
        with pretrained.name_in_errors(place):
            read = set(DEFAULTS) if isinstance(config, SentencePieceConfig) else set(encoder.DEFAULTS)
            found = from_pretrained(place.path, **config.model_dump(include=read))
        if found.kind != ("wordpiece" if isinstance(config, BpeConfig) else config.kind):
            names = {"wordpiece": "a WordPiece tokenizer", "bytes": "ByT5's tokenizer of bytes"}
            has = names.get(found.kind, "a SentencePiece tokenizer")
            raise UserError(f"{place}: is {has}; tokenizer.kind is {config.kind}: name one of that kind")
        huggingface.note_unused_options(config, getattr(found, "inner", found), Path(str(place)))
        return _with_sentinels(config, found, str(place))
    if isinstance(config, BytesConfig):
        return ByteTokenizer(config.extra_ids)
    if train_source_documents is None:
        raise UserError("tokenizer: neither 'path' nor text to train on; set tokenizer.path or tokenizer.train_on")
    options: dict[str, Any] = {"vocab_size": (config.vocab_size or vocab_size) - _sentinels(config)}
    trainer: Callable[..., AnyTokenizer]
    if isinstance(config, SentencePieceConfig):
        trainer = tokenizers_sentencepiece.train
        options |= {"extra_ids": config.extra_ids, "character_coverage": config.character_coverage}
        recipe = [config.kind, tokenizers_sentencepiece.VERSION, sentencepiece.__version__, *options.values()]
    elif isinstance(config, BpeConfig):
        trainer = train_bpe
        options |= {"min_frequency": config.min_frequency}
        recipe = [config.kind, bpe.VERSION, tokenizers.__version__, *options.values()]
    else:
        trainer = train
        options |= {"lowercase": config.lowercase, "min_frequency": config.min_frequency}
        recipe = [VERSION, tokenizers.__version__, *options.values()]
        chosen = config.model_dump(include={"strip_accents", "tokenize_chinese_chars"})
        if chosen := {name: value for name, value in chosen.items() if value != DEFAULTS[name]}:
            options |= chosen
            recipe.append(chosen)
    recipe.append(fingerprint or _hash_documents(train_source_documents()))
    folder = cache / "tokenizers" / hashlib.sha256(json.dumps(recipe).encode()).hexdigest()[:24]
    if not tokenizer_files.is_intact(folder):
        if (folder / JSON).is_file():
            reporter.say(f"note: {folder}: not as it was written; the tokenizer is trained again")
        passes = 2 if isinstance(config, WordPieceConfig) else 1
        title = f"training a tokenizer of {options['vocab_size']:,} pieces"
        with reporter.task(title, passes * text_bytes, "bytes") as task:
            trainer(_CountedDocuments(train_source_documents, task), **options).save(folder)
        tokenizer_files.write_digests(folder)
    return _with_sentinels(config, from_file(folder), "the trained tokenizer")


def _sentinels(config: Any) -> int:
    """The sentinels that bertjax appends to a WordPiece vocabulary, which a T5 reads."""
    return config.extra_ids if isinstance(config, WordPieceConfig) else 0


def _with_sentinels(config: Any, found: AnyTokenizer, where: str) -> AnyTokenizer:
    """`found` with the configured sentinels. Raises UserError if it has another number of them already."""
    wanted = _sentinels(config)
    if isinstance(found, SentinelTokenizer) and found.extra_ids != wanted:
        raise UserError(f"{where}: has {found.extra_ids} sentinels; set tokenizer.extra_ids to {found.extra_ids}")
    return SentinelTokenizer(found, wanted, where) if wanted and isinstance(found, Tokenizer) else found


def from_json(text: str, where: str) -> AnyTokenizer:
    """The tokenizer of any kind whose `json` attribute is `text`; `where` is named in errors."""
    try:
        state = json.loads(text)
        if isinstance(state, dict) and state.get("type") == "sentencepiece":
            return tokenizers_sentencepiece.from_state(state, where)
        if isinstance(state, dict) and state.get("type") == byte_level.STATE_KEY:
            return byte_level.from_state(state, where)
        if isinstance(state, dict) and state.get("type") == sentinels.STATE_KEY:
            return sentinels.from_state(state, from_json(str(state.get("tokenizer")), where), where)
        if isinstance(state, dict) and state.get("type") == tokenizer_files.STATE_KEY:
            return _build(*tokenizer_files.from_state_json(state, where), where)
        return Tokenizer(backend_state.parse_backend(text, where), where)
    except Exception as error:  # the library raises bare Exception
        if isinstance(error, UserError):
            raise
        raise UserError(f"{where}: not a tokenizer.json ({str(error)[:120]})") from None


def _build(text: str, special: SpecialTokens, where: str) -> AnyTokenizer:
    kind: Any = UnigramTokenizer if special.is_t5 else Tokenizer
    return kind(backend_state.parse_backend(text, where), where, special)


def from_pretrained(path: Path, **options: Any) -> AnyTokenizer:
    """The tokenizer of a file, a folder as for `from_file`, a run or a checkpoint. Raises UserError."""
    found = find_tokenizer(path) or path
    if is_checkpoint_step(found):
        return from_json(read_meta(found)["tokenizer_json"], str(path))
    return from_file(found, **options)


DEFAULTS: dict[str, Any] = encoder.DEFAULTS | {"extra_ids": tokenizers_sentencepiece.EXTRA_IDS}  # BERT's and T5's


def from_file(path: Path, **options: Any) -> AnyTokenizer:
    """A tokenizer from *.model (SentencePiece), tokenizer.json, vocab.txt, or a folder with one of them or ByT5's.

    Options: `lowercase`, `strip_accents` and `tokenize_chinese_chars` for a vocab.txt, `extra_ids` for a *.model, where
    files leave them open. With settings in the folder, transformers loads it. Raises UserError.
    """
    path, options = Path(path), DEFAULTS | options
    if not path.exists():
        wanted = "a vocab.txt, a tokenizer.json, a spiece.model or a folder with one"
        raise UserError(f"{path}: no such file; give {wanted}")
    if byte_level.is_byt5(path):
        return byte_level.from_folder(path)
    path = tokenizer_files.prefer_tokenizer_json(path)
    if kept := sentinels.saved_count(path):
        inner = _load_native(path) or _from_bare(path / JSON if path.is_dir() else path, options)
        return sentinels.from_state(kept, inner, str(path))
    if found := _load_native(path):
        return found
    if huggingface.needs_transformers(path):
        names = {"lowercase": "do_lower_case"}
        given = {names.get(name, name): x for name, x in options.items() if x != DEFAULTS[name]}
        backend, special = huggingface.load(path, given)
        return _build(backend.to_str(), special, str(path))
    if path.is_dir():
        present = [path / name for name in FILES if (path / name).is_file()]
        if not present:
            present = [path / name for name in huggingface.NAMED_BY_CLASS if (path / name).is_file()]
        if not present:
            raise UserError(huggingface.NO_VOCAB_FILE.format(path))
        path = present[0]
    return _from_bare(path, options)


def _load_native(path: Path) -> AnyTokenizer | None:
    """The tokenizer of a folder that bertjax wrote and that is unchanged, without transformers."""
    folder = path if path.is_dir() else path.parent
    if path.is_dir() or path.name == JSON:
        if found := tokenizer_files.read_verified(folder):
            return _build(*found, str(path))
    return tokenizers_sentencepiece.from_saved(folder) if path.is_dir() or path.name in FILES else None


def _from_bare(path: Path, options: dict[str, Any]) -> AnyTokenizer:
    if path.name in huggingface.NAMED_BY_CLASS:
        raise UserError(
            f"{path}: only its model's settings say how it is read; put the config.json or tokenizer_config.json of "
            "the model beside it"
        )
    if path.suffix == ".model":
        return tokenizers_sentencepiece.from_model(path, extra_ids=options["extra_ids"])
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{path}: not UTF-8 text; tokenizer.path takes a vocab.txt or a tokenizer.json") from None
    if not text.strip():
        raise UserError(f"{path}: the file is empty; copy or export it again")
    if path.suffix == ".json":
        return _from_json(path, text)
    vocab = tokenizers_wordpiece.read_vocab(text)
    for note in backend_state.describe_unused_ids(vocab):
        huggingface.note_once(path, note)
    chosen = {name: options[name] for name in ("lowercase", "strip_accents", "tokenize_chinese_chars")}
    return Tokenizer(build_wordpiece(vocab, **chosen), str(path))


def train(documents: tokenizers_wordpiece.Documents, **options: Any) -> Tokenizer:
    """A WordPiece vocabulary of at most `vocab_size` pieces: the same for the same text (`wordpiece.train`)."""
    return Tokenizer(tokenizers_wordpiece.train(documents, **options), "the trained tokenizer")


def train_bpe(documents: tokenizers_wordpiece.Documents, **options: Any) -> Tokenizer:
    """A byte-level BPE of at most `vocab_size` pieces: the same for the same text (`bpe.train`)."""
    return Tokenizer(bpe.train(documents, **options), "the trained tokenizer", bpe.SPECIAL)


class _CountedDocuments:
    """Documents that are counted the first time they are read."""

    def __init__(self, documents: Callable[[], Iterator[list[str]]], task: reporter.Task) -> None:
        self._documents, self._task, self._passes = documents, task, 0

    def __call__(self) -> Iterator[list[str]]:
        self._passes += 1
        is_first = self._passes == 1
        for document in self._documents():
            if is_first:
                self._task.advance(1, "documents")
            yield document


def _hash_documents(documents: Iterator[list[str]]) -> str:
    digest = hashlib.sha256()
    for sentences in documents:
        digest.update("\n".join(sentences).encode() + b"\n\n")
    return digest.hexdigest()


def _from_json(path: Path, text: str) -> AnyTokenizer:
    try:
        state = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON ({error}); export the tokenizer again") from None
    model = state.get("model") if isinstance(state, dict) else None
    model = model if isinstance(model, dict) else {}
    kind = model.get("type", "WordPiece" if "max_input_chars_per_word" in model else None)
    if kind == "Unigram":
        return tokenizers_sentencepiece.from_unigram(state, str(path))
    if kind != "WordPiece":
        said = f"a {kind} tokenizer" if kind else "no tokenizer.json of the tokenizers library"
        raise UserError(f"{path}: is {said}; without settings in its folder bertjax reads WordPiece and Unigram")
    return Tokenizer(backend_state.parse_backend(text, str(path)), str(path))
