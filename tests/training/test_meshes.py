"""Every mesh on every split of processes works: who feeds which rows, and the same losses."""

import itertools
import types

import numpy as np
import pytest
import tiny_runs

from vit_jax.runtime import sharding
from vit_jax.runtime.logbook import read_metrics

PROCESSES, DEVICES = (1, 2, 4), (1, 2)
#: (processes, devices of each, fsdp, tensor): all that cover their devices.
MESHES = [
    (processes, devices, fsdp, tensor)
    for processes, devices, fsdp, tensor in itertools.product(
        PROCESSES, DEVICES, (1, 2, 4, 8), (1, 2, 4, 8)
    )
    if processes * devices % (fsdp * tensor) == 0
]
#: What runs each time: each layer split over two processes. Batches that they share are in
#: test_resume.py, weights in test_processes.py.
OFTEN = [(2, 1, 1, 2)]


def fake_mesh(processes, devices, fsdp, tensor, order=None):
    """What `host_rows` looks at, of processes that need not run."""
    every = [types.SimpleNamespace(process_index=i // devices) for i in range(processes * devices)]
    grid = np.array(every)[slice(None) if order is None else order].reshape(-1, fsdp, tensor)
    shape = dict(zip(sharding.AXES, grid.shape, strict=True))
    return types.SimpleNamespace(devices=grid, shape=shape)


def named(mesh):
    return "{}x{} fsdp {} tensor {}".format(*mesh)


@pytest.mark.parametrize("mesh", MESHES, ids=named)
def test_each_process_feeds_the_rows_that_its_devices_hold(mesh):
    processes = mesh[0]
    made = fake_mesh(*mesh)
    parts = made.shape["data"] * made.shape["fsdp"]
    size = 3 * parts
    fed = [sharding.host_rows(made, size, process) for process in range(processes)]
    assert sorted({int(row) for rows in fed for row in rows}) == list(range(size))
    for i, part in enumerate(made.devices.reshape(parts, -1)):  # each part, on all who hold it
        for device in part:
            assert set(range(3 * i, 3 * i + 3)) <= set(fed[device.process_index])
    assert all(len(rows) <= 3 * mesh[1] for rows in fed)  # and nothing that is not needed


def test_devices_that_are_not_in_the_order_of_their_processes():
    mesh = fake_mesh(2, 2, 1, 1, order=[0, 2, 1, 3])  # as on a torus
    assert sharding.host_rows(mesh, 8, 0).tolist() == [0, 1, 4, 5]
    assert sharding.host_rows(mesh, 8, 1).tolist() == [2, 3, 6, 7]


def test_rows_are_those_that_jax_puts_on_each_device():
    batch = {"label": np.arange(16, dtype=np.int32)}
    for axes in ({}, {"fsdp": 2}, {"tensor": 2}, {"fsdp": 2, "tensor": 2}, {"tensor": 8}):
        mesh = sharding.make_mesh(**axes)
        assert sharding.host_rows(mesh, 16).tolist() == list(range(16))
        placed = sharding.to_devices(batch, mesh)["label"]
        np.testing.assert_array_equal(placed, batch["label"])
        where = sharding.batch_sharding(mesh).devices_indices_map((16,))
        for shard in placed.addressable_shards:
            np.testing.assert_array_equal(shard.data, batch["label"][where[shard.device]])


SETTINGS = [
    "--config.batch_size=16",
    "--config.eval_batch_size=360",
    "--config.model.dropout_rate=0.1",
]


def losses(workdir, processes, devices, *settings):
    job = tiny_runs.start(
        ["train", *tiny_runs.SETTINGS, *SETTINGS, f"--workdir={workdir}", *settings],
        processes,
        devices,
    )
    for code, out, err in tiny_runs.finish(job):
        assert code == 0, (out, err)
    records = read_metrics(workdir / "metrics.jsonl")
    assert records[-1]["eval/num_examples"] == 360
    return [[record["train/loss"] for record in records], records[-1]["eval/loss"]]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    return losses(tmp_path_factory.mktemp("alone") / "run", 1, 1)


@pytest.mark.parametrize(
    "mesh",
    [
        pytest.param(mesh, marks=() if mesh in OFTEN else pytest.mark.long, id=named(mesh))
        for mesh in MESHES
    ],
)
def test_the_losses_are_those_of_one_device(mesh, alone, tmp_path):
    """In real processes. All others: pytest -m long tests/training/test_meshes.py"""
    processes, devices, fsdp, tensor = mesh
    found = losses(
        tmp_path / "run", processes, devices,
        f"--config.mesh.fsdp={fsdp}", f"--config.mesh.tensor={tensor}",
    )  # fmt: skip
    np.testing.assert_allclose(found[0], alone[0], rtol=2e-5)
    assert found[1] == pytest.approx(alone[1], rel=2e-5)
