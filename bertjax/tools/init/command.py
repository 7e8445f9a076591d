"""Run `bertjax init`: look at the data, then write the held-out split, the configuration and the schema."""

import os
from collections.abc import Callable

from bertjax.config.json_schema import json_schema
from bertjax.errors import UserError
from bertjax.storage.atomic import write_json_atomic, write_text_atomic
from bertjax.tools.init.classify import classify
from bertjax.tools.init.questions import questions
from bertjax.tools.init.request import BASE, Request, Result
from bertjax.tools.init.tag import tag
from bertjax.tools.init.text import pretrain
from bertjax.tools.init.text_to_text import text_to_text
from bertjax.tools.init.write import SCHEMA_FILE, render
from bertjax.training.inputs import check_prepare

KINDS: dict[str, Callable[[Request], Result]] = {
    "classify": classify, "tag": tag, "qa": questions, "pretrain": pretrain, "t5": text_to_text,
}  # fmt: skip


def init_command(request: Request) -> list[str]:
    """Write a configuration for the user's data -> lines to print.

    Raises UserError, with nothing written, for data that cannot be understood and for files that exist.
    """
    folder = request.output.absolute().parent
    if folder.is_dir() and not os.access(folder, os.W_OK | os.X_OK):
        raise UserError(f"{request.output}: its folder cannot be written; choose another place with --output")
    _refuse_existing(request, [request.output])
    result = KINDS[request.kind](request)
    _refuse_existing(request, result.sides.files)
    result.recipe.commands.insert(0, f"bertjax train {request.quoted_output}")
    text, config = render(result.recipe)
    if result.sides.write is None:  # its files are there; parts that are written come from records that were read
        check_prepare(config, BASE)
    lines = list(result.found)
    if result.sides.write is not None:
        train, heldout = result.sides.write()
        files = " and ".join(map(str, result.sides.files))
        lines.append(f"held out {heldout:,} of {train + heldout:,} {result.sides.unit}: wrote {files}")
    elif result.sides.heldout is None:
        lines.append("no held-out data: nothing will be scored")
    write_json_atomic(request.output.with_name(SCHEMA_FILE), json_schema())
    write_text_atomic(request.output, text)
    lines.append(f"wrote {request.output}, for training on {request.device_name}; read it, then run:")
    if request.pretrained is not None and not request.is_local:
        lines.append(
            f"(the first run downloads {request.pretrained} from the Hugging Face Hub; without a network, write it "
            "again with --force and --pretrained FOLDER, or --pretrained none: a small model from random weights)"
        )
    return [*lines, *(f"  {command}" for command in result.recipe.commands)]


def _refuse_existing(request: Request, paths: list) -> None:
    own = {os.path.realpath(name) for name in (*request.files, request.evaluation or "none")}
    for path in paths:
        if os.path.realpath(path) in own:
            raise UserError(f"{path}: is a file of your data; choose another name with --output")
        if path.is_dir():
            raise UserError(f"{path}: is a folder; name a file")
        if path.exists() and not request.force:
            raise UserError(f"{path}: already exists; --force overwrites it, or choose another name with --output")
