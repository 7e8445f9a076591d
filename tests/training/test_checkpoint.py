"""CheckpointManager: what is saved comes back bit for bit, or it is said in one line that it does not."""

import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoint_trees import META, abstract_of, assert_same, make_tree, mesh_of, reader, save_steps
from hypothesis import given, settings
from hypothesis import strategies as st

from bertjax.config.schema.run import CheckpointPolicy
from bertjax.errors import DivergedError, StorageError, UserError
from bertjax.models import param_paths
from bertjax.storage import folders
from bertjax.training.checkpoint import layout, lock
from bertjax.training.checkpoint.manager import CheckpointManager
from bertjax.training.checkpoint.reader import CheckpointReader

# ---- round trips ----


def test_round_trip_with_meta_and_an_idempotent_second_save(tmp_path: Path) -> None:
    tree = make_tree(3)
    with CheckpointManager(tmp_path / "a" / "b", CheckpointPolicy()) as ck:
        assert ck.committed_steps() == []
        ck.save(3, tree, META, {"squad/f1": 50.0})
        ck.save(3, make_tree(4), META)  # the step just saved: nothing happens
        ck.wait()
        step, found, meta = ck.restore(abstract_of(tree))
    assert (step, meta) == (3, META)
    assert_same(found, tree)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(tree), strict=True):
        assert a.sharding.is_equivalent_to(b.sharding, a.ndim)
    assert reader(tmp_path / "a" / "b").meta() == META


@pytest.mark.parametrize("first, second", [((4, 2), (1, 1)), ((1, 1), (4, 2)), ((8, 1), (2, 2))])
def test_restores_onto_other_devices(tmp_path: Path, first: tuple[int, int], second: tuple[int, int]) -> None:
    tree = make_tree(1, mesh_of(*first))
    with CheckpointManager(tmp_path, CheckpointPolicy()) as ck:
        ck.save(1, tree, META)
    wanted = abstract_of(tree, mesh_of(*second))
    _, found, _ = reader(tmp_path).restore(wanted)
    assert_same(found, tree)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        assert a.sharding.is_equivalent_to(b.sharding, a.ndim)


SAVED_ON = [(4, 2), (8, 1), (2, 2), (1, 1)]  # (data, fsdp): 8, 8, 4 and 1 devices
RESTORED_ON = [(4, 2), (2, 4), (8, 1), (1, 8), (2, 2), (1, 2), (1, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("saved_on", SAVED_ON)
def test_any_topology_restores_on_any_other_bit_by_bit(tmp_path: Path, saved_on: tuple[int, int]) -> None:
    """28 pairs; each array has the sharding that was asked for."""
    tree = make_tree(3, mesh_of(*saved_on))
    with CheckpointManager(tmp_path, CheckpointPolicy()) as ck:
        ck.save(1, tree, META)
    for restored_on in RESTORED_ON:
        wanted = abstract_of(tree, mesh_of(*restored_on))
        _, found, _ = reader(tmp_path).restore(wanted)
        assert_same(found, tree)
        same = jax.tree.map(lambda x, like: x.sharding.is_equivalent_to(like.sharding, x.ndim), found, wanted)
        assert all(jax.tree.leaves(same)), restored_on


def test_donated_buffers_do_not_reach_the_disk(tmp_path: Path) -> None:
    step_fn = jax.jit(lambda tree: jax.tree.map(lambda x: x * -1, tree), donate_argnums=0)
    tree = {"params": {"w": jnp.arange(200_000, dtype=jnp.float32)}}
    expected = {"params": {"w": np.arange(200_000, dtype=np.float32)}}
    with CheckpointManager(tmp_path, CheckpointPolicy()) as ck:
        ck.save(1, tree, META)
        step_fn(tree)
        ck.wait()
        _, found, _ = ck.restore(abstract_of({"params": {"w": jnp.zeros(200_000)}}))
    assert_same(found, expected)


def test_restore_params_reads_nothing_else(tmp_path: Path) -> None:
    import tensorstore as ts

    def bytes_read() -> int:
        found = ts.experimental_collect_matching_metrics("/tensorstore/kvstore/file/bytes_read")
        return sum(int(value["value"]) for metric in found for value in metric["values"])

    rng = np.random.default_rng(0)
    tree = {
        "params": {"w": jnp.asarray(rng.integers(0, 2**31, 5_000), jnp.int32)},
        "opt": {"mu": jnp.asarray(rng.integers(0, 2**31, 500_000), jnp.int32)},
        "step": jnp.int32(7),
    }
    with CheckpointManager(tmp_path, CheckpointPolicy()) as ck:
        ck.save(7, tree, META)
    start = bytes_read()
    step, params, meta = reader(tmp_path).restore_params(abstract_of(tree)["params"])
    middle = bytes_read()
    assert (step, meta) == (7, META)
    assert_same(params, tree["params"])
    assert middle - start < 200_000
    reader(tmp_path).restore(abstract_of(tree))
    assert bytes_read() - middle > 1_500_000


def test_orbax_itself_reads_what_is_written(tmp_path: Path) -> None:
    """Without this module: by CheckpointManager and by the v1 API."""
    import orbax.checkpoint as ocp
    from orbax.checkpoint import v1

    save_steps(tmp_path, 5)
    kernel = np.asarray(make_tree(5)["params"]["layers"]["1"]["kernel"])
    manager = ocp.CheckpointManager(tmp_path, options=ocp.CheckpointManagerOptions(read_only=True))
    assert manager.latest_step() == 5
    meta = manager.restore(5, args=ocp.args.Composite(meta=ocp.args.JsonRestore())).meta
    assert meta["meta"]["step"] == 5
    plain = abstract_of(make_tree(5))
    plain["key"] = jax.ShapeDtypeStruct((2,), jnp.uint32, sharding=plain["key"].sharding)
    found = v1.load_checkpointables(tmp_path / "5", {"state": plain})["state"]
    np.testing.assert_array_equal(np.asarray(found["params"]["layers"]["1"]["kernel"]), kernel)


# ---- which steps there are ----


def test_only_complete_steps_are_listed(tmp_path: Path) -> None:
    save_steps(tmp_path, 10, 20)
    for name in ("99", "30.orbax-checkpoint-tmp", "trash/5", "quarantine/7", "010"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "30.orbax-checkpoint-tmp" / "x").write_text("x")
    (tmp_path / "010" / "x").write_text("x")
    (tmp_path / "40").write_text("a file")
    assert reader(tmp_path).committed_steps() == [10, 20]
    assert (tmp_path / "99").exists() and (tmp_path / "30.orbax-checkpoint-tmp").exists()
    with CheckpointManager(tmp_path, CheckpointPolicy()) as ck:
        assert ck.committed_steps() == [10, 20]
        assert not (tmp_path / "99").exists() and not (tmp_path / "30.orbax-checkpoint-tmp").exists()
        assert not (tmp_path / "trash").exists() and (tmp_path / "quarantine" / "7").exists()
        ck.save(99, make_tree(99), META)
    assert reader(tmp_path / "nowhere").committed_steps() == []


def test_policy_keeps_the_last_the_best_and_the_milestones(tmp_path: Path) -> None:
    policy = CheckpointPolicy(keep_last=2, keep_every=40, keep_best=["squad/f1"])
    scores = {10: 1.0, 20: 9.0, 30: 3.0, 50: float("nan"), 60: 2.0}
    seen: list[tuple[int, list[int]]] = []
    ck = CheckpointManager(tmp_path, policy, on_commit=lambda step, s: seen.append((step, ck.committed_steps())))
    for step in range(10, 80, 10):
        ck.save(step, make_tree(step), META, {"squad/f1": scores[step]} if step in scores else None)
    ck.close()
    assert reader(tmp_path).committed_steps() == [20, 40, 60, 70]
    assert [step for step, _ in seen] == list(range(10, 80, 10))
    assert all(step in there for step, there in seen)
    again = CheckpointReader(tmp_path)
    assert again.best_step("squad/f1") == 20 and again.best_step("squad/f1", "lowest") == 60  # read from disk
    with pytest.raises(UserError, match="no checkpoint has a score 'squad/f2'; their scores: squad/f1"):
        again.best_step("squad/f2")
    assert not (tmp_path / "trash").exists() or not any((tmp_path / "trash").iterdir())


def test_the_last_verified_step_outlives_the_policy(tmp_path: Path) -> None:
    policy = CheckpointPolicy(keep_last=1)
    save_steps(tmp_path, 1, policy=policy)
    with CheckpointManager(tmp_path, policy) as ck:
        ck.restore(abstract_of(make_tree(1)))
        for step in (2, 3, 4):
            ck.save(step, make_tree(step), META)
        ck.wait()
        assert ck.committed_steps() == [1, 4]
        ck.restore(abstract_of(make_tree(1)))  # now 4 is verified
        ck.save(5, make_tree(5), META)
        ck.wait()
        assert ck.committed_steps() == [4, 5]


@given(
    steps=st.sets(st.integers(0, 60), min_size=1, max_size=12),
    last=st.integers(1, 4),
    every=st.none() | st.integers(1, 20),
    lowest=st.booleans(),
    data=st.data(),
)
@settings(max_examples=100, deadline=None)
def test_what_is_kept(steps: set[int], last: int, every: int | None, lowest: bool, data: st.DataObject) -> None:
    scores = {s: {"a/b": data.draw(st.floats(-5, 5))} for s in data.draw(st.sets(st.sampled_from(sorted(steps))))}
    best_mode = "lowest" if lowest else "highest"
    policy = CheckpointPolicy(keep_last=last, keep_every=every, keep_best="a/b", best_mode=best_mode)
    verified = data.draw(st.sampled_from(sorted(steps)))
    kept = layout.steps_to_keep(policy, steps, scores, verified)
    assert kept <= steps and verified in kept and max(steps) in kept
    assert set(sorted(steps)[-last:]) <= kept
    assert not every or {s for s in steps if s % every == 0} <= kept
    values = [score["a/b"] for score in scores.values()]
    if values:
        edge = min(values) if lowest else max(values)
        assert any(scores.get(s, {}).get("a/b") == edge for s in kept)
    extra = kept - set(sorted(steps)[-last:]) - {verified} - {s for s in steps if every and s % every == 0}
    assert len(extra) <= 1


def test_the_best_step_of_each_task_is_kept() -> None:
    """T5 reports every task from its own best checkpoint (arXiv 1910.10683 section 3.1.2)."""
    scores = {
        10: {"cola/matthews": 20.0, "squad/em": 70.0}, 20: {"cola/matthews": 50.0}, 30: {"squad/em": 80.0},
        40: {"cola/matthews": 40.0, "squad/em": 75.0}, 50: {"cola/matthews": 50.0, "squad/em": float("nan")}, 60: {},
    }  # fmt: skip
    kept = lambda **policy: layout.steps_to_keep(CheckpointPolicy(keep_last=1, **policy), scores, scores, None)  # noqa: E731
    assert kept(keep_best=["cola/matthews", "squad/em"]) == {50, 30, 60}
    assert kept(keep_best=["squad/em"]) == kept(keep_best="squad/em") == {30, 60}
    assert kept(keep_best=["cola/matthews", "squad/em"], best_mode="lowest") == {10, 60}
    scores[10] |= {"novels/target_loss": 3.0}
    scores[20] |= {"novels/target_loss": 2.5}
    assert kept(keep_best=["novels/target_loss", "squad/em"]) == {20, 30, 60}  # a loss is best where it is lowest
    assert kept(keep_best=["novels/target_loss"], best_mode="highest") == {10, 60}
    assert kept(keep_best=["rte/accuracy"]) == kept(keep_best=[]) == kept() == {60}


# ---- refusals ----


def test_a_non_finite_array_is_never_saved(tmp_path: Path) -> None:
    for value in (np.nan, np.inf):
        tree = make_tree(2)
        tree["opt"]["top"]["mu.kernel"] = tree["opt"]["top"]["mu.kernel"].at[3, 4].set(value)
        with CheckpointManager(tmp_path, CheckpointPolicy()) as ck:
            with pytest.raises(DivergedError, match=r"/2: not saved: 1 values .* in 1 of 8 arrays.*opt/top/mu.kernel"):
                ck.save(2, tree, META)
        assert os.listdir(tmp_path) == [lock.FILE_NAME]


def change(tree: dict, path: str, **fields: object) -> dict:
    """An abstract tree with one leaf altered, added, or (no fields) left out."""
    flat = param_paths.flatten(tree)
    if not fields:
        del flat[path]
    else:
        old = flat.get(path, flat["params/bias"])
        merged = {"shape": old.shape, "dtype": old.dtype, **fields}
        flat[path] = jax.ShapeDtypeStruct(merged["shape"], merged["dtype"], sharding=old.sharding)
    return param_paths.unflatten(flat)


def test_what_does_not_fit_is_named(tmp_path: Path) -> None:
    save_steps(tmp_path, 6)
    good = abstract_of(make_tree(6))
    cases = [
        (change(good, "params/bias", dtype=jnp.bfloat16), "params/bias has dtype float32, the model wants bfloat16"),
        (change(good, "params/bias", shape=(25,)), r"params/bias has shape \(24,\), the model wants \(25,\)"),
        (change(good, "params/extra", shape=(2,)), "params/extra is not in the checkpoint"),
        (change(good, "params/half"), "params/half is in the checkpoint and not in the model"),
    ]
    with CheckpointManager(tmp_path, CheckpointPolicy()) as ck:
        for abstract, message in cases:
            for attempt in (lambda: ck.restore(abstract), lambda: ck.reader.restore_params(abstract["params"])):  # noqa: B023
                with pytest.raises(UserError, match=message) as error:
                    attempt()
                assert len(str(error.value)) <= 300 + len(str(tmp_path)) and "\n" not in str(error.value)
        assert ck.committed_steps() == [6]  # a misfit is no damage
        with pytest.raises(UserError, match="there is no step 7; complete steps: 6"):
            ck.restore(good, step=7)
        with pytest.raises(UserError, match="step 6 is there, so step 5 cannot follow"):
            ck.save(5, make_tree(5), META)
    with pytest.raises(UserError, match="there is no checkpoint here"):
        reader(tmp_path / "other").restore(good)


def test_an_unwritable_place_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError, match="file/deeper: cannot be written: Not a directory"):
        CheckpointManager(tmp_path / "file" / "deeper", CheckpointPolicy())


# ---- one writer ----

HOLD = """
import sys, time
from pathlib import Path
from bertjax.training.checkpoint.lock import WriterLock
lock = WriterLock(Path(sys.argv[1]))
print("held", flush=True)
time.sleep(60)
"""


def test_a_second_writer_is_told_who_holds_the_folder(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout and child.stdout.readline() == b"held\n"
            for _ in range(2):
                with pytest.raises(UserError, match=rf"process {child.pid} on \S+ since 20\S+ writes checkpoints here"):
                    CheckpointManager(tmp_path, CheckpointPolicy())
            assert reader(tmp_path).committed_steps() == []
        finally:
            child.kill()
    assert json.loads((tmp_path / lock.FILE_NAME).read_text())["pid"] == child.pid
    with CheckpointManager(tmp_path, CheckpointPolicy()):  # taken over from the dead
        assert json.loads((tmp_path / lock.FILE_NAME).read_text())["pid"] == os.getpid()


def test_one_process_cannot_write_twice_either(tmp_path: Path) -> None:
    with CheckpointManager(tmp_path, CheckpointPolicy()):
        with pytest.raises(UserError, match=f"process {os.getpid()} on"):
            CheckpointManager(tmp_path, CheckpointPolicy())
    CheckpointManager(tmp_path, CheckpointPolicy()).close()
    assert (tmp_path / lock.FILE_NAME).read_text() == ""


def test_a_folder_that_is_moved_is_not_written_any_more(tmp_path: Path) -> None:
    """The lock goes with the folder: another process could write the one that the next save would make."""
    with CheckpointManager(tmp_path / "a", CheckpointPolicy()) as writer:
        writer.save(1, make_tree(1), {"step": 1})
        writer.wait()
        (tmp_path / "a").rename(tmp_path / "b")
        with pytest.raises(StorageError, match=r"a: was moved or replaced while .* move it back"):
            writer.save(2, make_tree(2), {"step": 2})
        assert not (tmp_path / "a").exists() and reader(tmp_path / "b").committed_steps() == [1]
        (tmp_path / "b").rename(tmp_path / "a")  # the control
        writer.save(2, make_tree(2), {"step": 2})
    assert reader(tmp_path / "a").committed_steps() == [1, 2]


def test_a_folder_that_is_deleted_is_locked_again(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    with CheckpointManager(folder, CheckpointPolicy()) as writer:
        shutil.rmtree(folder)
        writer.save(1, make_tree(1), {"step": 1})
        writer.wait()
        assert reader(folder).committed_steps() == [1]
        with pytest.raises(UserError, match=f"process {os.getpid()} on"):
            CheckpointManager(folder, CheckpointPolicy())
    assert (folder / lock.FILE_NAME).read_text() == ""


def test_a_deleted_folder_that_another_process_writes_now_is_left_to_it(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    with CheckpointManager(folder, CheckpointPolicy()) as writer:
        shutil.rmtree(folder)
        folder.mkdir()
        with subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], stdout=subprocess.PIPE) as child:
            try:
                assert child.stdout and child.stdout.readline() == b"held\n"
                with pytest.raises(StorageError, match=f"process {child.pid} on"):
                    writer.save(1, make_tree(1), {"step": 1})
                assert reader(folder).committed_steps() == []
            finally:
                child.kill()


@pytest.mark.parametrize("alive", [True, False])
def test_another_machine_is_judged_by_its_heartbeat(
    tmp_path: Path, alive: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lock, "STALE_SECONDS", 0.6)
    path = tmp_path / lock.FILE_NAME
    path.write_text(json.dumps({"host": "elsewhere", "pid": 1, "started": "2024-01-01T00:00:00+00:00"}))
    stop = threading.Event()
    thread = threading.Thread(target=lambda: [os.utime(path) for _ in iter(lambda: stop.wait(0.05), True)])
    if alive:
        thread.start()
        with pytest.raises(UserError, match="process 1 on elsewhere"):
            CheckpointManager(tmp_path, CheckpointPolicy())
        stop.set()
        thread.join()
    else:
        CheckpointManager(tmp_path, CheckpointPolicy()).close()


def test_a_failed_save_is_told_once_and_the_next_one_succeeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commits: list[int] = []
    with CheckpointManager(tmp_path, CheckpointPolicy(), on_commit=lambda step, s: commits.append(step)) as ck:
        ck.save(1, make_tree(1), META)
        ck.wait()

        def full(path: Path) -> None:
            raise OSError(28, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(folders, "flush_tree", full)
            ck.save(2, make_tree(2), META)
            with pytest.raises(StorageError, match="/2: could not be written: .*No space left on device"):
                ck.wait()
        assert ck.committed_steps() == [1] == commits
        assert not list(tmp_path.glob("*tmp*"))
        ck.save(2, make_tree(2), META)
        ck.wait()
        assert ck.committed_steps() == [1, 2] == commits
        assert_same(ck.restore(abstract_of(make_tree(2)))[1], make_tree(2))
