"""Eight CPU devices for every test, a compilation cache kept between runs, and the real data when a machine has it."""

import os

# Both are read when jax starts, so they are set before anything here can import it.
_DEVICES = "--xla_force_host_platform_device_count=8"
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {_DEVICES}".strip()
os.environ["JAX_PLATFORMS"] = os.environ.get("BERTJAX_TEST_PLATFORM", "cpu")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from pathlib import Path  # noqa: E402

import pytest  # noqa: E402


def _compile_cache() -> Path:
    """A folder of this user alone: the cache holds native code, so it must never be shared."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    folder = home / "bertjax" / "tests-xla"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    folder.chmod(0o700)
    return folder


os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(_compile_cache()))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.3")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Real data sets (vocabularies, SQuAD, text): $BERTJAX_TEST_DATA, else ../shared/data beside the repository."""
    named = os.environ.get("BERTJAX_TEST_DATA")
    folder = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no real data here: set BERTJAX_TEST_DATA to its folder")
    return folder
