"""Checks whether a path is local or in a supported object store.

Every path in the schema has the type `LocalPath` or `AnyPath` (config/schema/base.py); commands check their arguments
with `local_path`. An option whose code can use object stores has the type `AnyPath`.
"""

import re
from pathlib import Path

from bertjax.errors import UserError

REMOTE_SCHEMES = ("gs", "s3", "az")  # read and written by etils.epath and fsspec (storage/remote.py)
# Names of local files may contain a colon: only these words before one, or `://`, make a path a URL.
_SCHEMES = {*REMOTE_SCHEMES, *(
    "gcs s3a s3n abfs abfss adl wasb wasbs hdfs http https ftp sftp ssh file hf dbfs oss swift viewfs".split()
)}  # fmt: skip
_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(/*)(.*)", re.DOTALL)
_PATH_LENGTH, _NAME_LENGTH = 4096, 255  # PATH_MAX and NAME_MAX of Linux, in bytes
_BUCKET = re.compile(r"[a-z0-9]([a-z0-9._-]*[a-z0-9])?")  # of Google Cloud Storage
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_WILDCARDS = re.compile(r"[*?\[\]#]")  # patterns and versions to the clients of object stores
_USERINFO = re.compile(r"(?<=//)[^/@\s]+@")


def path_problem(path: str, *, remote: bool) -> str | None:
    """What is wrong with a path and what to do, in one line; None if nothing. `remote`: whether gs://... is allowed."""
    found = _URL.match(path)
    if not found or not (found[2].startswith("//") or found[1].lower() in _SCHEMES):
        return _local_problem(path)
    scheme, slashes, rest = found[1].lower(), found[2], found[3]
    shown = ascii(_USERINFO.sub("***@", path)[:100])
    if scheme == "file":
        return f"{shown}: write a local path without file://, such as {'/' + rest.lstrip('/')}"
    if not remote:
        return f"{shown}: only a local path works here; name one, or the folder where the bucket is mounted (gcsfuse)"
    if scheme not in REMOTE_SCHEMES:
        known = ", ".join(f"{name}://" for name in REMOTE_SCHEMES)
        meant = {"gcs": "gs", "s3a": "s3", "s3n": "s3"}.get(scheme)
        hint = f"did you mean {meant}://{rest}?" if meant else f"use a local path or one of {known}"
        return f"{shown}: '{scheme}://' is not known; {hint}"
    if slashes != "//" or found[1] != scheme or not re.match(r"[^/]", rest):
        meant = rest.lstrip("/")
        hint = f"; did you mean {scheme}://{meant}?" if meant else ""
        return f"{shown}: an object is named like {scheme}://bucket/name{hint}"
    bucket, _, name = rest.partition("/")
    if scheme == "gs" and not _BUCKET.fullmatch(bucket):
        return f"{shown}: names of buckets have only lower-case letters, digits, '-', '_' and '.'; correct the bucket"
    if _CONTROL.search(rest) or {".", ".."} & {*name.split("/")}:
        return f"{shown}: names in an object store have no control characters, '.' or '..'; write the name in full"
    return None


def folder_problem(path: str) -> str | None:
    """What is wrong with a folder, here or in an object store, that is written to; None if nothing."""
    if (problem := path_problem(path, remote=True)) or "://" not in path:
        return problem
    if found := _WILDCARDS.search(path):  # deleting in it would delete what matches
        return f"{ascii(path[:100])}: has {found[0]!r}, a wildcard to object stores; choose another name"
    return None


def _local_problem(path: str) -> str | None:
    """Why no local file can have this name."""
    if path.startswith("~"):
        try:
            Path(path).expanduser()
        except RuntimeError:  # of pathlib, without a home for the user
            name = path[1:].partition("/")[0]
            return f"{path[:100]!a}: there is no home folder of a user {name!a:.40}; write the path without ~"
    is_pattern = any(sign in path for sign in "*?[")  # whose length is not that of the names that it finds
    lengths = [len(part.encode("utf-8", "surrogatepass")) for part in (path, *path.split("/"))]
    if not is_pattern and (lengths[0] > _PATH_LENGTH or max(lengths[1:]) > _NAME_LENGTH):
        return f"{path[:40]!a}...: too long for the name of a file ({lengths[0]:,} bytes)"
    return None


def local_path(path: str | Path) -> Path:
    """A local path with `~` expanded. Raises UserError for any other path."""
    if problem := path_problem(str(path), remote=False):
        raise UserError(problem)
    return Path(path).expanduser()
