"""Checkpoints: what is read is what was written, or the run says so."""

import contextlib
import errno
import functools
import gc
import json
import os
import subprocess
import sys
import threading
import types

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import tiny_runs
from jax.sharding import NamedSharding, PartitionSpec

from vit_jax.errors import UserError
from vit_jax.models import fingerprints
from vit_jax.runtime import sharding
from vit_jax.training import checkpoint, orbax_threads
from vit_jax.training.checkpoint import CheckpointError, Checkpoints


def make_state(seed=0, dtype=jnp.float32, size=64):
    rng = np.random.default_rng(seed)
    return {
        "params": {
            "blocks/0/mlp/dense1/kernel": jnp.asarray(rng.normal(size=(16, size)), dtype),
            "head/bias": jnp.asarray(rng.normal(size=3), jnp.bfloat16),
        },
        "step": jnp.asarray(seed, jnp.int32),
    }


def abstract(state):
    one = jax.devices()[0]
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(
            x.shape, x.dtype, sharding=jax.sharding.SingleDeviceSharding(one)
        ),
        state,
    )


def save_steps(directory, last=3):
    saved = Checkpoints(directory, keep=3)
    for step in range(1, last + 1):
        assert saved.save(step, make_state(step), {"note": "x"})
    saved.close()


def restore(directory, target=None):
    opened = Checkpoints(directory, keep=3)
    try:
        return opened.restore(abstract(target or make_state()))
    finally:
        opened.close()


def assert_equal(a, b):
    for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_array_equal(np.asarray(x), np.asarray(y))


def test_round_trip_and_meta(tmp_path):
    save_steps(tmp_path / "c")
    state, meta = restore(tmp_path / "c")
    assert_equal(state, make_state(3))
    assert (meta["step"], meta["note"]) == (3, "x")


def test_without_a_checkpoint_nothing_is_restored(tmp_path):
    assert restore(tmp_path / "c") is None


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int32, jnp.uint8])
def test_fingerprint_sees_every_single_bit(dtype):
    words = np.random.default_rng(0).integers(0, 256, 24, dtype=np.uint8)
    original = words.view(jnp.dtype(dtype))
    before = fingerprints.fingerprint(jnp.asarray(original))
    for bit in range(words.size * 8):
        flipped = words.copy()
        flipped[bit // 8] ^= np.uint8(1 << (bit % 8))
        after = fingerprints.fingerprint(jnp.asarray(flipped.view(jnp.dtype(dtype))))
        assert not np.array_equal(after, before), bit


def test_fingerprint_sees_exchanged_values_and_not_the_sharding():
    x = np.arange(64, dtype=np.float32).reshape(8, 8)
    mesh = sharding.make_mesh(fsdp=8)
    split = jax.device_put(x, NamedSharding(mesh, PartitionSpec("fsdp")))
    whole = fingerprints.fingerprint(jnp.asarray(x))
    np.testing.assert_array_equal(fingerprints.fingerprint(split), whole)
    assert not np.array_equal(fingerprints.fingerprint(jnp.asarray(x[::-1])), whole)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.int32, jnp.uint8, jnp.bool_])
@pytest.mark.parametrize("rule", fingerprints.RULES)
def test_small_arrays_of_this_cpu_have_the_same_fingerprint_without_a_program(dtype, rule):
    rng = np.random.default_rng(0)
    arrays = [rng.normal(0, 9, shape).astype(jnp.dtype(dtype)) for shape in [(), (7,), (2, 3, 5)]]
    tree = {str(i): jnp.asarray(x) for i, x in enumerate(arrays)}
    if dtype == jnp.bfloat16:
        tree["2"] = tree["2"].at[1, 1, 1].set(jnp.inf)
    programs = fingerprints._look_on_device._cache_size()
    found = fingerprints.checked(tree, rule)
    assert fingerprints._look_on_device._cache_size() == programs
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fingerprints, "SMALL", -1)
        assert fingerprints.checked(tree, rule) == found
    assert fingerprints._look_on_device._cache_size() > programs
    assert found[1] == (["['2']"] if dtype == jnp.bfloat16 else [])
    assert len(set(found[0].values())) == 3


def missed(rule, before, after):
    """How many changes of rows (tries, words) uint32 a rule does not see."""
    rule = jax.jit(jax.vmap(rule))
    return (
        (np.asarray(rule(before)) == np.asarray(rule(after))).reshape(len(before), -1).all(1).sum()
    )


@pytest.mark.parametrize("kind", ["noise", "weights", "zeros"])
def test_two_bit_flips_and_any_sign_flips_are_detected(kind):
    """10,000 tries of each here; docs/reliability.md has those of 7 million."""
    rng, tries, words = np.random.default_rng(0), 10_000, 48
    x = {
        "noise": lambda: rng.integers(0, 2**32, (tries, words), dtype=np.uint32),
        "weights": lambda: rng.standard_normal((tries, words), np.float32).view(np.uint32),
        "zeros": lambda: np.zeros((tries, words), np.uint32),
    }[kind]()
    two = x.copy()
    first = rng.integers(0, 32 * words, tries)
    second = (first + rng.integers(1, 32 * words, tries)) % (32 * words)
    for bit in (first, second):
        two[np.arange(tries), bit // 32] ^= np.uint32(1) << (bit % 32).astype(np.uint32)
    signs = rng.random((tries, words)) < rng.random((tries, 1))
    signs[~signs.any(1), 0] = True
    signs = x ^ (signs.astype(np.uint32) << np.uint32(31))
    assert (
        missed(fingerprints.fingerprint, x, two) == missed(fingerprints.fingerprint, x, signs) == 0
    )
    assert missed(fingerprints.sum32, x, signs) > tries / 3  # the rule of before


def test_the_two_lanes_are_independent():
    """A lane of 8 bits of each would collide once in 256 if they were; together once in 65,536."""
    values = jnp.arange(200_000, dtype=jnp.uint32)[:, None]
    low = np.asarray(jax.jit(jax.vmap(fingerprints.fingerprint))(values)) & 0xFF
    both = np.histogram2d(low[:, 0], low[:, 1], bins=16)[0]
    expected = len(values) / 256
    assert ((both - expected) ** 2 / expected).sum() < 255 + 6 * np.sqrt(2 * 255)  # chi-square


def test_a_checkpoint_is_checked_by_the_rule_that_it_names(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "RULE", "sum32")
    monkeypatch.setattr(
        checkpoint, "checked", functools.partial(fingerprints.checked, rule="sum32")
    )
    save_steps(tmp_path / "c", last=1)
    monkeypatch.undo()
    assert restore(tmp_path / "c")[1]["fingerprint"] == "sum32"
    save_steps(tmp_path / "now", last=1)
    assert restore(tmp_path / "now")[1]["fingerprint"] == "mix64"
    monkeypatch.setattr(checkpoint, "RULE", "later")
    save_steps(tmp_path / "later", last=1)
    with pytest.raises(UserError, match="rule 'later', which this vit_jax does not know"):
        restore(tmp_path / "later")
    assert not (tmp_path / "damaged").exists()


def test_a_flipped_bit_is_found_and_the_checkpoint_before_is_used(tmp_path, monkeypatch, capsys):
    save_steps(tmp_path / "c")
    real = checkpoint.fingerprints

    def flipped(
        tree, rule=checkpoint.RULE
    ):  # as if one bit had changed on the disk: Orbax itself would not notice
        if int(tree["step"]) == 3:
            bits = np.asarray(tree["params"]["head/bias"]).view(np.uint16).copy()
            bits[0] ^= 1
            tree = {**tree, "params": {**tree["params"], "head/bias": bits.view(jnp.bfloat16)}}
        return real(tree, rule)

    monkeypatch.setattr(checkpoint, "fingerprints", flipped)
    state, meta = restore(tmp_path / "c")
    assert meta["step"] == 2
    assert_equal(state, make_state(2))
    assert "1 damaged arrays, e.g. ['params']['head/bias']" in capsys.readouterr().out
    assert [path.name[:9] for path in (tmp_path / "damaged").iterdir()] == ["000000003"]


def test_truncated_files_fall_back_and_all_damaged_refuses(tmp_path):
    save_steps(tmp_path / "c", last=2)

    def truncate(step):
        for folder, _, files in os.walk(tmp_path / "c" / f"{step:09d}" / "state"):
            for name in files:
                os.truncate(os.path.join(folder, name), 3)

    truncate(2)
    assert restore(tmp_path / "c")[1]["step"] == 1
    truncate(1)
    with pytest.raises(CheckpointError, match=r"No checkpoint in .* can be used"):
        restore(tmp_path / "c")


def bytes_of(directory):
    return {
        str(path.relative_to(directory)): path.read_bytes()
        for path in sorted(directory.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


# Orbax leaves a read that failed unawaited; Python says so whenever it collects it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize(
    "part", ["state/ocdbt.process_0", "state/d", "state/manifest.ocdbt", "meta"]
)
def test_an_unreadable_checkpoint_is_not_moved(tmp_path, part):
    """Storage that answers with an error for a moment costs nothing."""
    save_steps(tmp_path / "c", last=2)
    before = bytes_of(tmp_path)
    for step in (1, 2):
        (tmp_path / "c" / f"{step:09d}" / part).rename(tmp_path / f"away{step}")
    for _ in range(2):
        with pytest.raises(
            CheckpointError, match=r"Checkpoint 2 .* cannot be read .* nothing was moved"
        ):
            restore(tmp_path / "c")
        assert not (tmp_path / "damaged").exists()
    gc.collect()
    for step in (1, 2):
        (tmp_path / f"away{step}").rename(tmp_path / "c" / f"{step:09d}" / part)
    assert bytes_of(tmp_path) == before
    assert restore(tmp_path / "c")[1]["step"] == 2


def test_a_changed_record_is_damage_and_not_another_model(tmp_path, capsys):
    """The shapes that it claims are not those that were written."""
    save_steps(tmp_path / "c", last=2)
    file = tmp_path / "c" / "000000002" / "meta" / "metadata"
    text = file.read_text()
    assert text.count("[16, 64]")
    file.write_text(text.replace("[16, 64]", "[16, 65]", 1))
    assert restore(tmp_path / "c")[1]["step"] == 1
    assert "its record does not match its checksum" in capsys.readouterr().out


def test_the_last_step_on_the_disk_is_known_outside(tmp_path):
    save_steps(tmp_path / "c", last=2)
    assert json.loads((tmp_path / checkpoint.SAVED).read_text()) == {"step": 2}


@pytest.mark.parametrize(
    ("target", "message"),
    [
        (make_state(dtype=jnp.bfloat16), "is float32 .* there and bfloat16"),
        (make_state(size=32), r"is float32 \(16, 64\) there and float32 \(16, 32\) in this"),
        ({"step": jnp.zeros((), jnp.int32)}, "there and absent in this"),
    ],
)
def test_another_model_is_refused_and_nothing_is_moved(tmp_path, target, message):
    save_steps(tmp_path / "c", last=1)
    with pytest.raises(UserError, match=message):
        restore(tmp_path / "c", target)
    assert not (tmp_path / "damaged").exists()
    assert restore(tmp_path / "c")[1]["step"] == 1


def test_restores_onto_other_device_counts_bit_exactly(tmp_path):
    save_steps(tmp_path / "c", last=1)
    mesh = sharding.make_mesh(fsdp=8)
    path = "blocks/0/mlp/dense1/kernel"

    def split_over_eight(keys, leaf):
        spec = PartitionSpec(None, "fsdp") if keys[-1].key == path else PartitionSpec()
        return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=NamedSharding(mesh, spec))

    target = jax.tree_util.tree_map_with_path(split_over_eight, make_state())
    where = target["params"][path].sharding
    state, _ = restore(tmp_path / "c", make_state())
    opened = Checkpoints(tmp_path / "c")
    split, _ = opened.restore(target)
    opened.close()
    assert split["params"][path].sharding == where
    assert_equal(split, state)


def test_a_second_job_on_the_directory_is_refused_by_name(tmp_path):
    held = Checkpoints(tmp_path / "c")
    try:
        with pytest.raises(UserError, match=rf"in use by process {os.getpid()} on"):
            Checkpoints(tmp_path / "c")
    finally:
        held.close()
    Checkpoints(tmp_path / "c").close()


def test_a_file_system_without_locks_is_no_second_job(tmp_path, monkeypatch):
    def flock(*args):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(checkpoint.fcntl, "flock", flock)
    with pytest.raises(UserError, match=r"cannot be locked \(No locks available\)"):
        Checkpoints(tmp_path / "c")


@pytest.mark.parametrize("in_flight", [False, True])
def test_57_a_workdir_that_is_moved_during_the_run_is_not_made_again(tmp_path, in_flight):
    opened = Checkpoints(tmp_path / "run" / "checkpoints")
    opened.save(1, make_state(1), {})
    opened.wait()
    (tmp_path / "run").rename(tmp_path / "moved")
    if in_flight:  # Orbax makes the directories of its write again
        (tmp_path / "run" / "checkpoints").mkdir(parents=True)
        opened._manager.wait_until_finished = lambda: (_ for _ in ()).throw(OSError(2, "None"))
        opened._pending = 2
    with pytest.raises(CheckpointError, match=r"was moved or removed .* after checkpoint 1\."):
        opened.save(2, make_state(2), {})
    vars(opened._manager).pop("wait_until_finished", None)
    opened.close()
    assert in_flight or not (tmp_path / "run").exists()
    again = Checkpoints(tmp_path / "moved" / "checkpoints")
    assert again.save(2, make_state(2), {})
    again.close()


@pytest.mark.parametrize("place", ["wait_until_finished", "save"])
def test_a_failed_save_is_reported_at_once_and_the_last_good_one_named(tmp_path, place):
    """In its thread or before it; Orbax raises the bare error once more when it is closed."""
    opened = Checkpoints(tmp_path / "c")
    opened.save(1, make_state(1), {})
    opened.wait()
    close = opened._manager.close

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    def full_again():
        close()
        full()

    setattr(opened._manager, place, full)
    opened._manager.close = full_again
    message = r"Checkpoint 2 was not written to .*/c \(.*No space.*good one is 1"
    again = opened.check
    if place == "save":
        again = functools.partial(opened.save, 2, make_state(2), {})
    else:
        opened._pending = 2
    with pytest.raises(CheckpointError, match=message):
        again()
    delattr(opened._manager, place)
    opened.close()
    again = Checkpoints(tmp_path / "c")  # the lock was released
    again._manager.close = full
    with pytest.raises(OSError, match="No space"):  # said by nobody before
        again.close()
    again._lock_file.close()


def test_unwritable_directory_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="Cannot write to"):
        Checkpoints(tmp_path / "file" / "c")


SAVE_FOREVER = """
import jax.numpy as jnp, numpy as np
from vit_jax.training.checkpoint import Checkpoints
c = Checkpoints({directory!r}, keep=2)
for step in range(1, 10_000):
    c.save(step, {{"x": jnp.full((1_000_000,), step, jnp.float32)}}, {{}})
    c.wait() if step == 1 else None
    print(step, flush=True)
"""


@pytest.mark.parametrize("after", [2, 5])
def test_kill_9_during_a_save_leaves_a_good_checkpoint(tmp_path, after):
    code = SAVE_FOREVER.format(directory=str(tmp_path / "c"))
    program = [sys.executable, "-c", code]
    with subprocess.Popen(program, stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if int(line) == after:
                process.kill()
                break
    opened = Checkpoints(tmp_path / "c")
    target = {"x": jnp.zeros(1_000_000, jnp.float32)}
    state, meta = opened.restore(abstract(target))
    opened.close()
    assert 1 <= meta["step"] <= after + 1
    np.testing.assert_array_equal(np.asarray(state["x"]), np.float32(meta["step"]))
    assert not [name for name in os.listdir(tmp_path / "c") if "tmp" in name]


def test_record_is_plain_json(tmp_path):
    save_steps(tmp_path / "c", last=1)
    text = next((tmp_path / "c" / "000000001" / "meta").iterdir()).read_text()
    record = json.loads(text)
    assert record["spec"]["['params']['head/bias']"] == [[3], "bfloat16"]


@pytest.mark.slow
@pytest.mark.parametrize("size", [60, 700])
def test_a_full_disk_is_one_line(tmp_path, size):
    """On a file system too small for the first checkpoint, or for the third."""
    small = tmp_path / "small"
    small.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "tmpfs", str(small)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    try:
        ended = subprocess.run(
            [
                *(sys.executable, "-m", "vit_jax", "train", *tiny_runs.SETTINGS),
                *("--config.model.hidden_size=64", "--config.checkpoint_every_steps=1"),
                f"--workdir={small / 'run'}",
            ],
            env={**os.environ, "JAX_PLATFORMS": "cpu"}, capture_output=True, text=True,
        )  # fmt: skip
    finally:
        subprocess.run(["umount", str(small)], check=True)
    assert ended.returncode == 1
    assert len(ended.stderr.strip().splitlines()) == 1, ended.stderr
    assert str(small) in ended.stderr
    assert "No space" in ended.stderr or "RESOURCE_EXHAUSTED" in ended.stderr


def test_raised_errors_are_not_printed_twice(monkeypatch):
    """Found by the soak: coroutines of a read that failed were printed when the process ended."""
    printed = []
    monkeypatch.setattr(sys, "unraisablehook", lambda found: printed.append(str(found.exc_value)))
    orbax_threads.silence_raised_errors()
    orbax_threads.silence_raised_errors()
    for text in ("Event loop is closed", "Encountered error while reading array index: ()", "x"):
        sys.unraisablehook(types.SimpleNamespace(exc_value=Exception(text)))
    assert printed == ["x"]


def test_a_process_whose_write_has_failed_does_not_wait_for_the_others(monkeypatch):
    """Found by the soak: it waited for 20 minutes, and the others for it."""
    waited = []
    monkeypatch.setattr(
        ocp.multihost, "get_barrier_sync_fn", lambda: lambda *, key, timeout_ms: waited.append(key)
    )
    barrier = orbax_threads.barrier()

    def write():
        barrier(key="written", timeout_ms=1)
        with contextlib.suppress(OSError):
            try:
                raise OSError("no space")
            finally:
                barrier(key="finalize", timeout_ms=1)

    thread = threading.Thread(target=write)
    thread.start()
    thread.join()
    try:
        raise KeyError("handled")
    except KeyError:  # of the main thread, as a save after a signal
        barrier(key="main", timeout_ms=1)
    assert waited == ["written", "main"]
