"""Scenarios 9, 16, 20, 22 and 26: what may happen to checkpoints, and to who writes them."""

import os
import shutil
import signal

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vit_jax.errors import UserError
from vit_jax.runtime.distributed import StopRequest
from vit_jax.training.checkpoint import Checkpoints


def state_of(step):
    rng = np.random.default_rng(step)
    return {"params": {"w": jnp.asarray(rng.normal(size=(16, 8)))}, "step": jnp.int32(step)}


ABSTRACT = jax.tree.map(
    lambda x: jax.ShapeDtypeStruct(
        x.shape, x.dtype, sharding=jax.sharding.SingleDeviceSharding(jax.devices()[0])
    ),
    state_of(0),
)


def save(directory, *steps):
    opened = Checkpoints(directory, keep=5)
    for step in steps:
        assert opened.save(step, state_of(step), {})
    opened.close()


def restored(directory) -> int:
    """The step that is restored; its values are those that were saved."""
    opened = Checkpoints(directory, keep=5)
    try:
        state, meta = opened.restore(ABSTRACT)
    finally:
        opened.close()
    step = int(meta["step"])
    for found, wanted in zip(jax.tree.leaves(state), jax.tree.leaves(state_of(step)), strict=True):
        np.testing.assert_array_equal(found, wanted)
    return step


@pytest.fixture(scope="module")
def two_steps(tmp_path_factory):
    directory = tmp_path_factory.mktemp("run") / "checkpoints"
    save(directory, 1, 2)
    return directory


def delete(file):
    file.unlink()


def halve(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def flip(file):
    content = bytearray(file.read_bytes())
    if content:
        content[len(content) // 2] ^= 1
    file.write_bytes(content)


# Orbax leaves a read that failed unawaited; Python says so whenever it collects it.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("damage", [delete, halve, flip])
def test_20_each_file_of_a_checkpoint_in_turn(two_steps, tmp_path, damage, capsys):
    """The newest is used if it is whole, or else the one before it, or the cause is named."""
    used = []
    newest = two_steps / "000000002"
    for number, file in enumerate(sorted(path for path in newest.rglob("*") if path.is_file())):
        copy = tmp_path / str(number) / "checkpoints"
        shutil.copytree(two_steps, copy)
        damage(copy / file.relative_to(two_steps))
        said = ""
        try:
            used.append(restored(copy))
        except UserError as error:
            used.append(0)
            said = str(error)
        assert not said or ("Checkpoint 2" in said and "nothing was moved" in said)
        assert not said or not (copy.parent / "damaged").exists()
    assert len(used) > 5 and set(used) <= {0, 1, 2} and {0, 1} & set(used)


def test_22_an_empty_step_directory_is_no_checkpoint(two_steps, tmp_path):
    copy = tmp_path / "checkpoints"
    shutil.copytree(two_steps, copy)
    (copy / "000000003").mkdir()
    with pytest.raises(UserError, match=r"Checkpoint 3 .* move .*000000003 away"):
        restored(copy)
    (copy / "000000003").rmdir()
    assert restored(copy) == 2


def test_26_after_a_roll_back_the_same_step_is_saved_again(two_steps, tmp_path):
    copy = tmp_path / "checkpoints"
    shutil.copytree(two_steps, copy)
    halve(copy / "000000002" / "meta" / "metadata")
    assert restored(copy) == 1
    save(copy, 2)
    assert restored(copy) == 2


def test_16_a_relative_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    save("run/checkpoints", 1)
    assert restored("run/checkpoints") == restored(tmp_path / "run" / "checkpoints") == 1


def test_9_term_twice_and_thrice_is_one_request():
    with StopRequest() as request:
        assert not request.requested()
        for _ in range(3):
            os.kill(os.getpid(), signal.SIGTERM)
        assert request.requested()
