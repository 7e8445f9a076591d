"""Import plugins: files or modules of the user that register kinds, metrics and callbacks.

Importing runs code, so only what the user writes or names is imported: `plugins` of a configuration file and of the
command line, `--plugins` and `bertjax.load_plugins`. Configurations in run folders and checkpoints only name plugins.
"""

import hashlib
import importlib
import importlib.util
import re
import sys
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from bertjax.config.loading.yaml_reader import Node
from bertjax.errors import BertjaxError, UserError, brief
from bertjax.storage.locations import local_path
from bertjax.storage.text import suggest_file

_MODULE = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*\Z")


@dataclass(frozen=True)
class Plugin:
    """An imported plugin. `name`: as written; `module`: in sys.modules; `file`: of its code, "" if it has none."""

    name: str
    module: str
    file: str
    sha256: str

    @property
    def place(self) -> str:
        """What imports it again in another process of this machine."""
        return self.file if is_file(self.name) else self.module


_loaded: dict[str, Plugin] = {}  # by module


def is_file(name: str) -> bool:
    """Whether a plugin is written as a path; other names are modules."""
    return name.endswith(".py") or "/" in name


def load_plugins(*names: str) -> list[Plugin]:
    """Import plugins: paths of Python files, or names of modules. One whose file has not changed is imported once.

    Paths start at the current directory. Raises UserError when one cannot be found or its code fails.
    """
    return [_load_file(name) if is_file(name) else _load_module(name) for name in names]


def loaded() -> list[Plugin]:
    """The plugins imported in this process, in order."""
    return list(_loaded.values())


def _load_file(name: str) -> Plugin:
    path = local_path(name)
    if not path.is_file():
        raise UserError(f"{name}: no such file{suggest_file(path) or '; name a Python file that exists'}")
    path = path.resolve()
    source = path.read_bytes()
    module = f"bertjax_plugin_{re.sub(r'[^A-Za-z0-9_]', '_', path.stem)}_{_sha256(str(path).encode())[:8]}"
    plugin = Plugin(name, module, str(path), _sha256(source))
    if (before := _loaded.get(module)) and before.sha256 == plugin.sha256:
        return before
    spec = importlib.util.spec_from_file_location(module, path)
    assert spec is not None
    made = importlib.util.module_from_spec(spec)
    if str(path.parent) not in sys.path:  # last: a plugin may import modules beside it, which replace no others
        sys.path.append(str(path.parent))
    sys.modules[module] = made
    try:
        exec(compile(source, str(path), "exec"), made.__dict__)  # what the digest is of, whatever is in __pycache__
    except (Exception, SystemExit) as error:
        del sys.modules[module]
        raise _failed(name, str(path), error) from error
    _loaded[module] = plugin
    return plugin


def _load_module(name: str) -> Plugin:
    if not _MODULE.match(name):
        raise UserError(f"{name[:80]!a}: not the path of a Python file (x.py) or the name of a module")
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name and not name.startswith(f"{error.name}."):
            raise _failed(name, "", error) from error
        file = Path(name.replace(".", "/") + ".py")
        hint = f"did you mean the file '{file}'?" if file.is_file() else "install it, or name a file: x.py"
        raise UserError(f"{name}: no such module; {hint}") from None
    except (Exception, SystemExit) as error:
        raise _failed(name, "", error) from error
    _loaded[name] = Plugin(name, name, _file_of(module), _sha256(_source_of(module)))
    return _loaded[name]


def _file_of(module: ModuleType) -> str:
    return getattr(module, "__file__", None) or ""


def _source_of(module: ModuleType) -> bytes:
    try:
        return Path(_file_of(module)).read_bytes() if _file_of(module) else b""
    except OSError:
        return b""


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _failed(name: str, file: str, error: BaseException) -> UserError:
    """One line about code that failed: its last line in the plugin, and the error."""
    where = f"line {error.lineno}: " if isinstance(error, SyntaxError) and error.lineno else ""
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    where = where or (f"line {frames[-1].lineno}: " if frames else "")
    kind = "" if isinstance(error, BertjaxError) else f"{type(error).__name__}: "
    text = error.msg if isinstance(error, SyntaxError) else brief(error, 200)  # its text repeats the place
    return UserError(f"{name}: {where}{kind}{text}")


def import_listed(node: Node) -> None:
    """Import the plugins in the `plugins` of a configuration. Raises UserError that names the file, line and key.

    One that a run's own configuration lists is refused, unless it is imported already.
    """
    items = node.value if isinstance(node.value, list) else [node]
    for item in items:
        if not isinstance(item.value, str):
            continue  # validation reports it
        if _is_in_run(item.where) and (missing := not_loaded([item.value])):
            raise missing_plugins(item.where, missing, option="plugins=[{}]")
        try:
            load_plugins(item.value)
        except UserError as error:
            raise UserError(f"{item.where}: plugins: {error}") from error.__cause__


def _is_in_run(where: str) -> bool:
    """Whether a value comes from the config.yaml of a run folder."""
    path = Path(where.rpartition(":")[0])
    signs = ("environment.json", "checkpoints")
    return path.name == "config.yaml" and any((path.parent / name).exists() for name in signs)


def not_loaded(names: Any) -> list[str]:
    """Those of the plugins named by a saved configuration that are not imported, by file name or module."""
    listed = names if isinstance(names, list | tuple) else []
    return [name for name in listed if isinstance(name, str) and _find(name) is None]


def _find(name: str) -> Plugin | None:
    """The imported plugin of this path or module; for a file that was moved, the last one of the same file name."""
    path = str(Path(name).expanduser().resolve())
    there = list(reversed(_loaded.values()))
    same = [plugin for plugin in there if (plugin.file == path if is_file(name) else plugin.module == name)]
    if is_file(name):
        same += [plugin for plugin in there if is_file(plugin.name) and Path(plugin.name).name == Path(name).name]
    return same[0] if same else None


def missing_plugins(where: str, names: Sequence[str], option: str = "--plugins {}") -> UserError:
    """The error for a saved configuration whose plugins are not imported; `option` names one on the command line."""
    options = " ".join(option.format(name) for name in names)
    quoted = ", ".join(f'"{name}"' for name in names)
    return UserError(
        f"{where}: this run uses the plugin {' and '.join(names)}, which bertjax does not import by itself because it "
        f"is code: name the file, {options} (in Python: bertjax.load_plugins({quoted}))"
    )


def require(names: Sequence[str], where: str) -> list[Plugin]:
    """The imported plugins that a configuration names. Raises UserError when one is not imported."""
    if missing := not_loaded(list(names)):
        raise missing_plugins(where, missing)
    return [plugin for plugin in map(_find, names) if plugin]


def digests(names: Sequence[str]) -> dict[str, str]:
    """sha256 of the code of each imported plugin that a configuration names."""
    return {name: plugin.sha256 for name in names if (plugin := _find(name))}


def registered_by(plugins: Iterable[Plugin], registered: Iterable[Any]) -> list[Any]:
    """Those of the registered classes and functions that these plugins define."""
    modules = [plugin.module for plugin in plugins]
    inside = lambda name: any(name == module or name.startswith(f"{module}.") for module in modules)  # noqa: E731
    return [each for each in registered if inside(each.__module__)]
