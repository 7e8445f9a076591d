"""The configurations that come with the package: found by name (`bert/pretrain_base`) in a wheel and in a checkout."""

import difflib
from pathlib import Path

from bertjax.errors import UserError
from bertjax.storage.locations import local_path
from bertjax.storage.text import suggest_file

PACKAGE = Path(__file__).resolve().parents[2]


def shipped_dir() -> Path:
    """The folder of the shipped configurations: inside the package in a wheel, beside it in a checkout.

    Raises UserError if there is neither, as in a copied package folder.
    """
    for folder in (PACKAGE / "configs", PACKAGE.parent / "configs"):
        if (folder / "demo.yaml").is_file():
            return folder
    raise UserError(f"{PACKAGE / 'configs'}: the shipped configurations are missing; install bertjax again")


def shipped_configs() -> dict[str, Path]:
    """{name: file} of all shipped configurations, sorted by name. Names have no suffix: `finetune/squad_v1`."""
    folder = shipped_dir()
    names = {path.relative_to(folder).with_suffix("").as_posix(): path for path in folder.rglob("*.yaml")}
    return {name: names[name] for name in sorted(names, key=lambda name: ("/" in name, name))}


def find_shipped(name: str | Path) -> Path | None:
    """The file of a shipped configuration, or None if no configuration has this name."""
    return shipped_configs().get(str(name))


def resolve_config(argument: str | Path) -> Path:
    """The file that a CONFIG argument names: a local file, else the shipped configuration of that name.

    A missing file with a suffix is returned as it is, for the reader to report, unless a shipped one is meant.
    Raises UserError for a name that is neither.
    """
    path, name = local_path(argument), str(argument)
    try:
        if path.is_file() or path.is_dir():
            return path
    except (OSError, ValueError):  # a name too long, or one with a NUL in it
        return path
    if found := find_shipped(name):
        return found
    if path.suffix in (".yaml", ".yml"):
        meant = _shipped_name(path)
        if meant is None:
            return path
        raise UserError(f"{name}: no such file; the shipped configuration is called '{meant}'")
    yaml = path.with_name(f"{path.name}.yaml") if path.name else path
    hint = f"; did you mean '{yaml}'?" if yaml.is_file() else suggest_file(path) or suggest_shipped(name)
    raise UserError(f"{name[:200]!a}: no such file or shipped configuration{hint}")


def _shipped_name(path: Path) -> str | None:
    """`bert/pretrain_base` for `.../configs/bert/pretrain_base.yaml`, the place of the file in a checkout."""
    parts = path.with_suffix("").parts
    after = parts[len(parts) - parts[::-1].index("configs") :] if "configs" in parts else parts
    name = "/".join(after)
    return name if find_shipped(name) else None


def suggest_shipped(name: str) -> str:
    """`; did you mean 'bert/pretrain_base' or 't5/pretrain_base'?`, or the command that lists all."""
    names = list(shipped_configs())
    last = name.rsplit("/", 1)[-1]
    close = difflib.get_close_matches(name, names, 1, 0.6) if "/" in name else []
    close = close or [known for known in names if known.rsplit("/", 1)[-1] == last]
    close = close or difflib.get_close_matches(last, [known.rsplit("/", 1)[-1] for known in names], 1, 0.75)
    if close and close[0] not in names:
        close = [known for known in names if known.rsplit("/", 1)[-1] == close[0]]
    shown = " or ".join(f"'{known}'" for known in close)
    return f"; did you mean {shown}?" if close else "; `bertjax configs` lists them"


def summary(path: Path) -> str:
    """What a configuration is for: the comment in its first line."""
    with path.open(encoding="utf-8") as file:
        return file.readline().removeprefix("#").strip()
