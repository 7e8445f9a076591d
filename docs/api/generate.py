"""An mkdocs hook that adds one page of the API reference for each folder of the package."""

from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "bertjax"
LEFT_OUT = {"cli", "tools", "verify"}  # commands and their checks: `bertjax COMMAND --help` documents them


def pages() -> dict[str, str]:
    """{page under docs/: its Markdown}, a folder of the package each."""
    found = {}
    for init in sorted(PACKAGE.rglob("__init__.py")):
        folder = init.parent.relative_to(PACKAGE)
        modules = [path.stem for path in sorted(init.parent.glob("[!_]*.py"))]
        if folder.parts and folder.parts[0] not in LEFT_OUT:
            name = ".".join(("bertjax", *folder.parts))
            directives = [f"::: {name}.{module}\n    options: {{heading_level: 2}}\n" for module in modules]
            head = f"::: {name}\n    options: {{members: false, heading_level: 1}}\n"
            found[f"api/{'.'.join(folder.parts)}.md"] = "\n".join([head, *directives])
    return found


def on_config(config: Any) -> Any:
    for entry in config.nav:
        if "API" in entry:
            entry["API"] += [{f"bertjax.{Path(page).stem}": page} for page in pages()]
    return config


def on_files(files: Files, config: Any) -> Files:
    for page, text in pages().items():
        files.append(File.generated(config, page, content=text))
    return files
