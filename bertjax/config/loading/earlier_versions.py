"""Options of earlier versions: renamed keys, and defaults that saved configurations imply.

Run folders and checkpoints keep every option; one that is missing there was unknown to the version that wrote it.
"""

from typing import Any

# Dotted key -> new last part; a `*` stands for an element of a list.
RENAMED = {
    "mesh.slices": "dcn",
    "run.max_bad_steps": "max_nonfinite_steps",
    "run.prepared": "prepared_dir",
    "run.compile_cache": "compilation_cache_dir",
    "run.checkpoint.best_is": "best_mode",
    "stages.*.init_base": "adapter_base",
}


def upgrade_config(saved: Any, path: str = "") -> Any:
    """Rename the keys of a saved configuration (plain data) and add the defaults of the version that wrote it."""
    if isinstance(saved, list):
        return [upgrade_config(item, f"{path}*.") for item in saved]
    if not isinstance(saved, dict):
        return saved
    found = {RENAMED.get(path + key, key): upgrade_config(value, f"{path}{key}.") for key, value in saved.items()}
    if found.get("kind") == "span_qa" and "doc_stride" in found:  # the preprocessing, not the objective
        found.setdefault("profile", "bert")
    return found
