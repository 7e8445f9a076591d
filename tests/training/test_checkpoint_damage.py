"""Damaged checkpoints: never read as good, and a good older step is found."""

import json
import logging
import os
import shutil
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from checkpoint_trees import META, abstract_of, assert_same, make_tree, reader, save_steps

from bertjax.config.schema.run import CheckpointPolicy
from bertjax.errors import StorageError, UserError
from bertjax.training.checkpoint.manager import CheckpointManager


def array_files(step: Path) -> list[Path]:
    """What holds the arrays: small ones lie in state/d, bigger ones in one folder for each process that wrote."""
    return sorted(p for p in (step / "state").rglob("*") if p.is_file() and p.parent.name == "d")


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8 % len(content)] ^= 1 << bit % 8
    path.write_bytes(content)


def edit_json(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


DAMAGE = {
    "cut arrays": lambda step: [os.truncate(p, p.stat().st_size // 2) for p in array_files(step)],
    "no arrays": lambda step: shutil.rmtree(step / "state"),
    "flipped arrays": lambda step: [flip(p, 4 * p.stat().st_size) for p in array_files(step)],
    "cut tree": lambda step: os.truncate(step / "state" / "_METADATA", 40),
    "no digest": lambda step: shutil.rmtree(step / "digest"),
    "empty meta": lambda step: os.truncate(step / "meta" / "metadata", 0),
    "other meta": lambda step: edit_json(step / "meta" / "metadata", '"stage": 1', '"stage": 3'),
    "other score": lambda step: edit_json(step / "digest" / "metadata", '"format": 1', '"format": 9'),
    "not utf-8": lambda step: (step / "digest" / "metadata").write_bytes(b"\xff\xfe"),
    "not a dict": lambda step: (step / "meta" / "metadata").write_text("[1]"),
    "another step": lambda step: (shutil.rmtree(step), shutil.copytree(step.with_name("10"), step)),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_goes_back_past_a_damaged_step(tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture) -> None:
    save_steps(tmp_path, 10, 20)
    DAMAGE[kind](tmp_path / "20")
    wanted = abstract_of(make_tree(1))
    with pytest.raises(UserError, match="/20: damaged"):
        reader(tmp_path).restore(wanted, step=20)
    step, _, _ = reader(tmp_path).restore(wanted)
    assert step == 10 and reader(tmp_path).committed_steps() == [10, 20]
    caplog.clear()
    with CheckpointManager(tmp_path, CheckpointPolicy()) as ck, caplog.at_level(logging.WARNING):
        step, found, meta = ck.restore(wanted)
        assert (step, meta["step"]) == (10, 10)
        assert_same(found, make_tree(10))
        warnings = [r.getMessage() for r in caplog.records if r.levelno >= logging.WARNING]
        assert len(warnings) == 1 and "\n" not in warnings[0]
        assert "step 20 is damaged (" in warnings[0] and "moved to quarantine/20, step 10 is used" in warnings[0]
        assert ck.committed_steps() == [10] and any((tmp_path / "quarantine" / "20").iterdir())
        ck.save(15, make_tree(15), META)
        ck.wait()
        ck.save(20, make_tree(20), META)
        ck.wait()
        assert ck.committed_steps() == [10, 15, 20]
        assert_same(ck.restore(wanted)[1], make_tree(20))


def test_a_tree_that_depends_on_the_step(tmp_path: Path) -> None:
    """As in gradual unfreezing, where an older step has fewer slots."""
    trees = {10: {"params": {"w": jnp.ones(3)}}, 20: {"params": {"w": jnp.ones(3)}, "opt": {"mu": jnp.zeros(3)}}}
    with CheckpointManager(tmp_path, CheckpointPolicy()) as ck:
        for step, tree in trees.items():
            ck.save(step, tree, META)
        ck.wait()
        DAMAGE["empty meta"](tmp_path / "20")
        step, found, _ = ck.restore(lambda step, _: abstract_of(trees[step]))
    assert step == 10
    assert_same(found, trees[10])


def test_when_memory_or_permission_fails_nothing_is_called_damaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import orbax.checkpoint as ocp

    save_steps(tmp_path, 10, 20)
    for error in (PermissionError(13, "Permission denied"), jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: too big")):

        def fail(*args: object, error: Exception = error, **kwargs: object) -> None:
            raise error

        with monkeypatch.context() as patch, CheckpointManager(tmp_path, CheckpointPolicy()) as ck:
            patch.setattr(ocp.PyTreeCheckpointHandler, "restore", fail)
            with pytest.raises(StorageError, match="/20: could not be read: "):
                ck.restore(abstract_of(make_tree(1)))
            assert ck.committed_steps() == [10, 20]


def test_when_every_step_is_damaged_nothing_moves(tmp_path: Path) -> None:
    save_steps(tmp_path, 10, 20)
    DAMAGE["flipped arrays"](tmp_path / "10")
    DAMAGE["cut tree"](tmp_path / "20")
    for _ in range(2):  # the second launch finds what the first one found
        with CheckpointManager(tmp_path, CheckpointPolicy()) as ck:
            with pytest.raises(StorageError, match="every step is damaged, the newest by .*nothing was moved"):
                ck.restore(abstract_of(make_tree(1)))
            assert ck.committed_steps() == [10, 20]


def test_damage_outside_the_parameters_does_not_stop_an_evaluation(tmp_path: Path) -> None:
    save_steps(tmp_path, 10)
    record = tmp_path / "10" / "digest" / "metadata"
    leaves = json.loads(record.read_text())["leaves"]
    assert leaves["key"][:2] == [[], "key<fry>"] and leaves["params/half"][:2] == [[8, 8], "bfloat16"]
    step, params, _ = reader(tmp_path).restore_params(abstract_of(make_tree(10))["params"])
    assert_same(params, make_tree(10)["params"])
