"""Upload a folder as a model to the Hugging Face Hub, through huggingface_hub.

HF_TOKEN or the token of `hf auth login` is used, HF_ENDPOINT names another Hub.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bertjax.errors import UserError, brief
from bertjax.progress import reporter
from bertjax.progress.text import size
from bertjax.storage.model_hub import FITTED, INDEX, SHARDS, WEIGHTS, quiet

CARD = "README.md"
CARD_MARK = "<!-- Model card written by bertjax export. A card without this line is not replaced. -->"


@dataclass(frozen=True)
class Destination:
    """Where a model goes: its full name, and whether it was there before."""

    name: str
    revision: str | None
    private: bool | None
    create_pr: bool


def check(
    name: str, *, revision: str | None = None, private: bool | None = None, create_pr: bool = False
) -> Destination:
    """Log in and complete `name` with the user's own (`model` -> `user/model`). Nothing is created yet.

    Raises UserError for a name that the Hub does not allow, without network, and without a valid token.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(f"--push {name}: not a name that the Hub allows ({brief(error, 120)})") from None
    if constants.HF_HUB_OFFLINE:
        raise UserError(f"--push {name}: HF_HUB_OFFLINE is set; unset it, or export to a folder without --push")
    who = _call(name, lambda: HfApi().whoami())
    full = name if "/" in name else f"{who['name']}/{name}"
    return Destination(full, revision, private, create_pr)


def upload(folder: Path, to: Destination, message: str) -> str:
    """Create the model on the Hub if it is not there, and upload the files of `folder` in one commit -> its address.

    Weights of an earlier upload under other names are deleted in the same commit, so that no program loads them. A
    model card there that bertjax did not write is kept. Raises UserError if the Hub refuses or cannot be reached.
    """
    from huggingface_hub import HfApi

    api = HfApi()
    total = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

    def push() -> Any:
        api.create_repo(to.name, private=to.private, exist_ok=True)
        if to.revision is not None and not to.create_pr:
            api.create_branch(to.name, branch=to.revision, exist_ok=True)
        keeps_card = (folder / CARD).is_file() and _has_own_card(to)
        if keeps_card:
            reporter.say(f"note: {to.name} has a model card that bertjax did not write; it is kept")
        return api.upload_folder(
            repo_id=to.name, folder_path=folder, commit_message=message, revision=to.revision,
            create_pr=to.create_pr, delete_patterns=[WEIGHTS, INDEX, SHARDS, FITTED],
            ignore_patterns=[CARD] if keeps_card else None,
        )  # fmt: skip

    with reporter.task(f"uploading {size(total)} to {to.name}"), quiet(True):
        done = _call(to.name, push)
    return str(done.pr_url or done.commit_url)


def _has_own_card(to: Destination) -> bool:
    """Whether the model has a card on the Hub that bertjax did not write."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, RevisionNotFoundError

    try:
        card = Path(hf_hub_download(to.name, CARD, revision=None if to.create_pr else to.revision))
    except (EntryNotFoundError, RevisionNotFoundError):
        return False
    return CARD_MARK not in card.read_text(encoding="utf-8", errors="replace")


def _call(name: str, ask: Callable[[], Any]) -> Any:
    """Call the Hub. Raises UserError with the reason in one line."""
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    try:
        return ask()
    except UserError:
        raise
    except LocalTokenNotFoundError:
        raise UserError(f"--push {name}: not logged in to the Hub; run `hf auth login`, or set HF_TOKEN") from None
    except Exception as raised:  # noqa: BLE001  (the library's errors, and those of its HTTP library without network)
        error: BaseException = raised
        while error.__cause__ is not None and not isinstance(error, HfHubHTTPError):
            error = error.__cause__  # the library wraps errors of single files
        status = getattr(getattr(error, "response", None), "status_code", None)
        if status == 401:
            why = "the Hub refuses the token; run `hf auth login`, or correct HF_TOKEN"
        elif status == 403:
            why = "the token may not write there; use one with write access, and a name that is yours"
        else:
            what = f"HTTP {status}" if status else type(error).__name__
            said = f": {brief(error)}" if status in (None, 400, 409, 413, 422) else ""
            why = f"the upload failed ({what}{said}); try again"
        raise UserError(f"--push {name}: {why}") from None
