"""gcsfs for buckets with a hierarchical namespace, where the server of the tests stands in for the control API.

gcsfs asks for the kind of a bucket and for its folders by gRPC, which the server has not: these calls go to the folders
API of the server (see gcs_server). Everything else is gcsfs itself. Imported only where gcsfs is installed.
"""

import json
import os
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any
from urllib.error import HTTPError
from urllib.parse import quote, urlencode
from urllib.request import Request, urlopen

from gcsfs.extended_gcsfs import ExtendedGcsFileSystem
from google.api_core import exceptions

_ERRORS = {404: exceptions.NotFound, 409: exceptions.Conflict, 412: exceptions.FailedPrecondition}


class HierarchicalGcs(ExtendedGcsFileSystem):
    async def _get_control_plane_client(self) -> Any:
        return _Control()


class _Control:
    """The calls of `storage_control_v2.StorageControlAsyncClient` that gcsfs makes."""

    async def get_storage_layout(self, name: str, **_: Any) -> Any:
        found = _ask("GET", name.split("/")[3], "storageLayout")
        enabled = found.get("hierarchicalNamespace", {}).get("enabled", False)
        return SimpleNamespace(location_type="region", hierarchical_namespace=SimpleNamespace(enabled=enabled))

    async def get_folder(self, request: Any, **_: Any) -> Any:
        _ask("GET", *_folder(request.name))
        return SimpleNamespace(create_time=None, update_time=None, metageneration=1)

    async def create_folder(self, request: Any, **_: Any) -> None:
        _ask("POST", request.parent.split("/")[3], "folders", {"name": request.folder_id}, recursive="true")

    async def delete_folder(self, request: Any, **_: Any) -> None:
        _ask("DELETE", *_folder(request.name))

    async def list_folders(self, request: Any, **_: Any) -> AsyncIterator[Any]:
        bucket = request.parent.split("/")[3]
        found = _ask("GET", bucket, "folders", prefix=request.prefix).get("items", [])

        async def each() -> AsyncIterator[Any]:
            for one in found:
                name = f"projects/_/buckets/{bucket}/folders/{one['name']}"
                yield SimpleNamespace(name=name, create_time=None, update_time=None, metageneration=1)

        return each()


def _folder(name: str) -> tuple[str, str]:
    """(bucket, the rest of the URL) of projects/_/buckets/BUCKET/folders/NAME."""
    bucket, _, folder = name.removeprefix("projects/_/buckets/").partition("/folders/")
    return bucket, f"folders/{quote(folder, safe='')}"


def _ask(method: str, bucket: str, rest: str, body: Any = None, **query: str) -> dict[str, Any]:
    url = f"{os.environ['STORAGE_EMULATOR_HOST']}/storage/v1/b/{bucket}/{rest}?{urlencode(query)}"
    try:
        with urlopen(Request(url, json.dumps(body).encode() if body else None, method=method), timeout=20) as answer:
            return json.loads(answer.read() or b"{}")
    except HTTPError as error:
        error.close()
        raise _ERRORS.get(error.code, exceptions.ServiceUnavailable)(url) from None
