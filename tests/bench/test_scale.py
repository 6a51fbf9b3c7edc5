"""The predictions are arithmetic; here it is done again by hand."""

import math
from pathlib import Path

import numpy as np
import pytest

from vit_jax import data
from vit_jax.bench import index, scale
from vit_jax.data import ArraySource
from vit_jax.models import cost

PARAMS = cost.num_params(cost.pretraining_config("L/16"))


def test_traffic_of_each_way_to_split():
    config = cost.pretraining_config("L/16")

    def sent(**axes):
        return scale.traffic(config, scale.abstract_mesh(axes))

    assert sent(data=1) == dict.fromkeys(("gather", "scatter", "sum", "activations"), 0)
    assert sent(data=256)["sum"] == pytest.approx(2 * 255 / 256 * 4 * PARAMS)
    fsdp = sent(fsdp=256)
    # 99.8% of the parameters are kernels that divide by 256.
    assert fsdp["gather"] == pytest.approx(2 * 2 * PARAMS, rel=0.01)
    assert fsdp["scatter"] == pytest.approx(4 * PARAMS, rel=0.01)
    assert fsdp["sum"] == 0
    # Splitting further moves nothing from one place to another for free.
    both = sent(data=16, fsdp=16)
    assert both["sum"] == pytest.approx(2 * 15 / 16 * 4 * PARAMS / 16, rel=0.03)
    tensor = sent(data=64, tensor=4)
    rows = 4096 / 64 * 197
    assert tensor["activations"] == 24 * 4 * rows * 1024 * 4 * 2 * 3 / 4
    assert tensor["sum"] < 0.35 * sent(data=64)["sum"]


def test_bandwidth_is_that_of_the_wire_in_between():
    v5e, h100 = scale.CHIPS["v5e"], scale.CHIPS["H100"]

    def gigabytes(chip, axis, **axes):
        rate = scale.bandwidth(chip, scale.abstract_mesh(axes), axis)
        return rate / scale.LINK_EFFICIENCY / 1e9

    assert gigabytes(v5e, "data", data=256) == 200
    assert gigabytes(v5e, "data", data=16, fsdp=16) == 100
    assert gigabytes(h100, "fsdp", data=64, fsdp=8) == 450  # NVLink
    assert gigabytes(h100, "data", data=64, fsdp=8) == 50  # one card for each ring
    assert gigabytes(h100, "data", data=512) == 400  # the eight cards of a host share one ring
    assert gigabytes(h100, "data", data=8) == 450
    assert gigabytes(h100, "fsdp", data=2, fsdp=4) == 450


def test_a_step_by_hand():
    chip = scale.CHIPS["v5e"]
    step = scale.predict_step("L/16", chip, dict(data=256))
    macs = cost.forward_macs(cost.pretraining_config("L/16"))
    assert step.compute == pytest.approx(6 * macs * 4096 / (256 * 197e12 * chip.mfu))
    assert step.update == pytest.approx(28 * PARAMS / 819e9)
    assert step.gradients == pytest.approx(2 * 255 / 256 * 4 * PARAMS / 160e9)
    assert step.activations == 0
    assert step.overlapped == pytest.approx(max(step.compute, step.gradients) + step.update)
    assert step.serial == pytest.approx(step.compute + step.gradients + step.update)


def test_state_is_twelve_bytes_per_parameter_and_is_split():
    config = cost.pretraining_config("L/16")
    assert scale.state_per_device(config, scale.abstract_mesh(dict(data=8))) == 12 * PARAMS
    split = scale.state_per_device(config, scale.abstract_mesh(dict(data=8, fsdp=16)))
    assert split == pytest.approx(12 * PARAMS / 16, rel=0.03)  # norms and biases are whole


def test_the_best_interval_is_the_best():
    failure = 3600 * 100
    best = scale.goodput(2.0, failure, 300, 10)
    assert best.interval == pytest.approx(math.sqrt(2 * 2.0 * failure))
    for factor in (0.5, 0.8, 1.25, 2):
        other = scale.goodput(2.0, failure, 300, 10, interval=factor * best.interval)
        assert other.share < best.share
    # By hand: 2 s in every 1,202, and 300 + 600 + 10 of every 360,000.
    assert best.share == pytest.approx(1 - 2 / 1202 - 910 / 360_000)
    assert scale.goodput(0.001, 3600, 300, 60).interval == 60  # not faster than it is written
    assert scale.goodput(1, 10, 300, 1).share == 0


def test_cost_fits_the_papers_core_days():
    """Table 2: H/14 took 2,500 TPUv3-core-days, at 61.5 TFLOP/s for a core."""
    core = scale.CHIPS["v5e"]._replace(peak=61.5e12)
    assert scale.chip_hours("H/14", 14, core, 0.32) / 24 == pytest.approx(2500, rel=0.03)
    assert scale.chip_hours("L/16", 14, core, 1.0) == 2 * scale.chip_hours("L/16", 7, core, 1.0)


def test_the_tables_have_a_row_for_each_case():
    tables = scale.table_steps(), scale.table_input(), scale.table_goodput(), scale.table_cost()
    assert [len(table) - 2 for table in tables] == [2 * len(scale.MACHINES), 4, 4, 6]
    page = (Path(__file__).parents[2] / "docs" / "scale.md").read_text()
    for table in tables:
        assert len({row.count("|") for row in table}) == 1
        assert "\n".join(table) in page, "run python -m vit_jax.bench.scale for docs/scale.md"


def test_the_index_is_written_and_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(index, "HOSTS", 4)
    monkeypatch.setattr(index, "BATCH", 16)
    index.write(tmp_path, shards=4, records=4000)
    source = data.open_source(f"tfds:{index.NAME}", data_dir=str(tmp_path))
    assert len(source) == 4000 and source.num_classes == cost.JFT_CLASSES
    assert source[3999]["label"] == 1
    assert len(list(index.measure(tmp_path, shards=4))) == 8


class Long(ArraySource):
    """As long as JFT-300M; remembers what was asked for."""

    def __init__(self):
        super().__init__(np.zeros((1, 8, 8, 3), np.uint8), [0], ["a"])
        self.asked = []

    def __len__(self):
        return cost.JFT_IMAGES

    def __getitem__(self, number):
        self.asked.append(int(number))
        return super().__getitem__(0)


@pytest.mark.parametrize("step", [0, 1_000_000])
def test_starting_at_a_step_reads_only_its_own_records(step):
    source = Long()
    transform = data.make_transform(size=(8, 8), train=True, name="inception_crop")
    batches = data.train_batches(
        source, transform, batch_size=64, seed=0, start_step=step, num_threads=1
    )
    next(batches)
    batches.close()
    # The batch and what is read ahead; spread over all of the set.
    assert 64 <= len(source.asked) <= 16 * 64
    assert max(source.asked) - min(source.asked) > 0.9 * cost.JFT_IMAGES
