"""kill -9 at random moments of a real run: nothing that was learnt may differ from a run nobody touched."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tally

STORM = Path(__file__).with_name("kill_storm.py")
SAVE_EVERY = 4


def storm(project: Path, root: Path, *options: str, steps: int) -> dict[str, Any]:
    """What kill_storm.py found; the programs it compiles are kept for the next storm."""
    cache = Path(os.environ["JAX_COMPILATION_CACHE_DIR"]) / "storms"
    overrides = [f"run.compilation_cache_dir={cache}", f"run.checkpoint.save_every={SAVE_EVERY}"]
    overrides += [f"stages.{stage}.steps={steps}" for stage in ("pretrain", "qa")]
    done = subprocess.run(
        [sys.executable, str(STORM), str(project), str(root), *options, *overrides],
        capture_output=True, text=True, timeout=900, check=False, cwd=Path(__file__).parents[2],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout)
    print(found)
    return found


def assert_nothing_lost(found: dict[str, Any], kills: int) -> None:
    assert found["kills"] == kills and found["runs"] >= 1
    assert found["differing"] == 0, found  # of all steps seen after each kill, by the bits of their losses
    assert found["whole"] and found["arrays"], found  # every step once; parameters, slots and key to the last bit
    assert found["lost_checkpoints"] == 0, found
    assert found["redone"] <= 2 * SAVE_EVERY, found
    lost = found["differing"] + found["lost_checkpoints"]
    tally.add("process killed", "SIGKILL at a random time of a run", kills, lost=lost, recovery=found["recoveries"])


def test_three_kills(tiny_project, tmp_path):
    assert_nothing_lost(storm(tiny_project, tmp_path, "--kills", "3", steps=12), 3)


@pytest.mark.slow
def test_kills_in_a_mixture_and_in_the_episodes_of_a_t5(tiny_t5_project, tmp_path):
    assert_nothing_lost(storm(tiny_t5_project, tmp_path, "--kills", "10", steps=16), 10)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_forty_kills(tiny_project, tmp_path):
    assert_nothing_lost(storm(tiny_project, tmp_path, "--kills", "40", "--seed", "1", steps=30), 40)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["slots", "key", "data"])
def test_the_storm_sees_what_is_not_restored(tiny_project, tmp_path, what):
    """The control: without the optimizer's slots, the random key or the place in the data, a resumed run differs."""
    found = storm(tiny_project, tmp_path, "--kills", "3", "--forget", what, steps=12)
    assert found["differing"] > 0 and not found["arrays"], found
