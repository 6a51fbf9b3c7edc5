"""Small arrays of a checkpoint are written whole, large ones in slices of all replicas."""

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from vit_jax.runtime import replicas, sharding


@pytest.mark.parametrize("size, parts", [(1024, 1), (8 * replicas.SLICE_BYTES // 4, 8)])
def test_slices(size, parts, tmp_path, caplog):
    replicas.write_small_arrays_whole.__wrapped__()
    assert not caplog.records
    mesh = sharding.make_mesh()
    x = jax.device_put(np.arange(size, dtype=np.float32), NamedSharding(mesh, PartitionSpec()))
    with ocp.CheckpointManager(tmp_path) as manager:
        manager.save(1, args=ocp.args.Composite(state=ocp.args.StandardSave({"x": x})))
        manager.wait_until_finished()
        chunks = manager.item_metadata(1)["state"]["x"].storage
        np.testing.assert_array_equal(manager.restore(1)["state"]["x"], x)
    assert chunks.chunk_shape == (size // parts,)
