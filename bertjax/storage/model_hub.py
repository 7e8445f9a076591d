"""Models on the Hugging Face Hub: fetches the files that bertjax reads into the Hub's own cache on this machine.

HF_HOME, HF_HUB_CACHE, HF_ENDPOINT, HF_HUB_OFFLINE and HF_TOKEN have their usual meaning. Without network the cache is
read; what is missing there is reported in one line.
"""

import contextlib
import errno
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from bertjax.errors import StorageError, UserError, brief
from bertjax.progress import reporter
from bertjax.storage.atomic import write_bytes_atomic

TIMEOUT = 8.0  # seconds to wait for the Hub's first answer
FITTED = "bertjax_fitted.json"  # thresholds and calibrations, written by `bertjax export`
WEIGHTS, INDEX, SHARDS = "model.safetensors", "model.safetensors.index.json", "model-*.safetensors"
SMALL_FILES = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "vocab.txt", "vocab.json", "merges.txt", "spiece.model", "sentencepiece.bpe.model",
    "tokenizer.model", FITTED, "modules.json", "sentence_bert_config.json", "1_Pooling/config.json",
)  # fmt: skip
PICKLES = ("pytorch_model.bin", "pytorch_model.bin.index.json", "tf_model.h5", "flax_model.msgpack")
_NOTED_BYTES = 10_000_000
_STORAGE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS, errno.EACCES)


@dataclass(frozen=True)
class Listing:
    """The files of a commit of a model: {name: bytes, or None if the Hub does not say}."""

    commit: str
    files: dict[str, int | None]


_listings: dict[tuple[str, str | None], Listing] = {}  # one commit for all files that a process fetches


def fetch(model: str, revision: str | None, *, weights: bool) -> tuple[Path, str]:
    """Fetch a model's configuration and tokenizer files, with `weights` also its safetensors -> (folder, commit).

    Files that are in the cache are not fetched again. Raises UserError, within seconds without network, and
    StorageError when the cache cannot be written.
    """
    listing, why = _listing(model, revision)
    if listing is None:
        return _cached(model, revision, weights, why)
    names = [name for name in SMALL_FILES if name in listing.files]
    names += _weight_files(model, listing) if weights else []
    if "config.json" not in names:
        raise UserError(f"{model}: has no config.json on the Hub; name a model of transformers")
    folder = _download(model, listing, names)
    _check_present(model, folder, names)
    _remember_revision(model, revision, listing.commit)
    return folder, listing.commit


def _download(model: str, listing: Listing, names: list[str]) -> Path:
    from huggingface_hub import snapshot_download, try_to_load_from_cache

    places = [try_to_load_from_cache(model, name, revision=listing.commit) for name in names]
    if all(isinstance(place, str) for place in places):
        return Path(str(places[0])).parent
    pairs = zip(names, places, strict=True)
    size = sum(listing.files[name] or 0 for name, place in pairs if not isinstance(place, str))
    if size >= _NOTED_BYTES:
        reporter.say(f"{model}: fetching {size / 1e6:,.0f} MB from the Hugging Face Hub")
    bars = size >= _NOTED_BYTES and sys.stderr.isatty()  # the library's own
    if bars:
        reporter.current.close()
    try:
        with quiet(not bars), nullcontext() if bars else reporter.task(f"fetching {model}"):
            return Path(snapshot_download(model, revision=listing.commit, allow_patterns=names))
    except Exception as error:  # noqa: BLE001  (the library's, its HTTP library's and the system's errors)
        if isinstance(error, OSError) and error.errno in _STORAGE_ERRORS:
            raise StorageError(f"{model}: cannot be kept in the Hub's cache ({error.strerror}); set HF_HOME") from None
        raise UserError(f"{model}: {_reason(error, listing.commit)}") from None


def _listing(model: str, revision: str | None) -> tuple[Listing | None, str]:
    """-> (the files of a model; None if the Hub cannot be reached, why). Raises UserError if the Hub refuses."""
    if found := _listings.get((model, revision)):
        return found, ""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError

    if constants.HF_HUB_OFFLINE:
        return None, "HF_HUB_OFFLINE is set"
    try:
        about = HfApi().model_info(model, revision=revision, timeout=TIMEOUT, files_metadata=True)
        if about.gated:  # its list of files is public
            HfApi().auth_check(model)
    except HFValidationError as error:
        raise UserError(f"{model}: no such folder, and not a name on the Hub ({brief(error)})") from None
    except HfHubHTTPError as error:
        if getattr(error.response, "status_code", 500) >= 500:
            return None, _reason(error, revision)
        raise UserError(f"{model}: no such folder, and {_reason(error, revision)}") from None
    except Exception as error:  # noqa: BLE001  (no network: errors of the HTTP library)
        return None, f"{type(error).__name__}: {brief(error, 60)}"
    files = {one.rfilename: one.size for one in about.siblings or ()}
    found = _listings[model, revision] = Listing(str(about.sha), files)
    return found, ""


def _weight_files(model: str, listing: Listing) -> list[str]:
    if WEIGHTS in listing.files:
        return [WEIGHTS]
    if INDEX in listing.files:
        return [INDEX, *(name for name in listing.files if fnmatchcase(name, SHARDS) and "/" not in name)]
    there = next((name for name in PICKLES if name in listing.files), None)
    if there is None:
        raise UserError(f"{model}: has no {WEIGHTS} on the Hub; name a model with weights")
    raise UserError(
        f"{model}: has {there} on the Hub and no {WEIGHTS}; name a revision that has one ({model}@refs/pr/N, see its "
        "page), or load it with transformers where it is trusted, save_pretrained it, and give that folder"
    )


def _cached(model: str, revision: str | None, weights: bool, why: str) -> tuple[Path, str]:
    """The files in the cache; `why` the Hub was not asked."""
    from huggingface_hub import snapshot_download

    try:
        with quiet(True):
            # named alone: with several patterns the library wants every file that the model has on the Hub
            found = snapshot_download(model, revision=revision, allow_patterns=["config.json"], local_files_only=True)
    except Exception:  # noqa: BLE001  (not there, or not a name: both are said below)
        raise UserError(
            f"{_named(model, revision)}: no such folder, not in the Hub's cache, and the Hub cannot be reached "
            f"({why}); give a folder, or run `hf download {model}` where there is a network"
        ) from None
    folder = Path(found)
    wanted = ["config.json"]
    if weights:
        index = (folder / INDEX).is_file() and not (folder / WEIGHTS).is_file()
        wanted += [INDEX] if index else [WEIGHTS]
    _check_present(model, folder, wanted, why)
    return folder, folder.name


def _check_present(model: str, folder: Path, names: list[str], why: str = "") -> None:
    if missing := [name for name in names if not (folder / name).is_file()]:
        reason = f" and the Hub cannot be reached ({why})" if why else ""
        raise UserError(
            f"{model}: its cache here does not have {missing[0]}{reason}; run `hf download {model}` where there is a "
            "network, or give a folder"
        )


def _remember_revision(model: str, revision: str | None, commit: str) -> None:
    """Note in the cache which commit a branch is, as the library does when it resolves the branch itself."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    if revision == commit:
        return
    name = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=model, repo_type="model") / "refs"
    path = name / (revision or constants.DEFAULT_REVISION)
    with contextlib.suppress(OSError):
        write_bytes_atomic(path, commit.encode(), parents=True)


def _reason(error: Exception, revision: str | None) -> str:
    """What is wrong and what to do, in words."""
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return "the model is gated: ask for access on its page on the Hub, then log in (`hf auth login`, or HF_TOKEN)"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"the Hub has no revision '{revision}' of it; name a branch, a tag or a commit"
    if isinstance(error, errors.RepositoryNotFoundError):
        return "there is no such model on the Hub; check the name, or log in if it is private (`hf auth login`)"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return "the Hub refuses access; log in (`hf auth login`, or HF_TOKEN), or correct the token"
    if status == 429:
        return "the Hub refuses more requests for now (429); log in (`hf auth login`), or try again later"
    said = f"HTTP {status}" if status else f"{type(error).__name__}: {brief(error, 80)}"
    return f"fetching from the Hub failed ({said}); try again"


def _named(model: str, revision: str | None) -> str:
    return f"{model}@{revision}" if revision else model


@contextlib.contextmanager
def quiet(wanted: bool) -> Iterator[None]:
    """Without the library's progress bars, which are for large files."""
    from huggingface_hub import utils

    if not wanted or utils.are_progress_bars_disabled():
        yield
        return
    utils.disable_progress_bars()
    try:
        yield
    finally:
        utils.enable_progress_bars()


def forget() -> None:
    """Ask the Hub again for what has been asked in this process."""
    _listings.clear()
