"""What a run is said to need before it starts: counted in full, given to the new state in full."""

import types

import jax
import numpy as np
import pytest
from often import often
from small_run import MESH, ONE, prepared

from vit_jax import config as configuration, data, models
from vit_jax.bench import peak_memory
from vit_jax.cli import main
from vit_jax.errors import UserError
from vit_jax.runtime import host_memory, sharding
from vit_jax.runtime.pace import Clock, steps_ahead
from vit_jax.training import memory, optim, plan, run, state
from vit_jax.training.setup import compile_train_step


@pytest.mark.parametrize(
    "axes, settings",
    often(
        (MESH, dict(optimizer__name="adam", polyak_decay="0.99")),
        (ONE, dict(optimizer__name="adam", accumulation_steps="4", model__remat="full")),
        weekly=[
            (ONE, dict(optimizer__name="adam")),
            (MESH, dict(optimizer__name="sgd", optimizer__accumulator_dtype="bfloat16")),
        ],
    ),
    ids=["polyak on a mesh", "accumulation", "adam", "sgd on a mesh"],
)
def test_every_byte_of_the_state_becomes_the_new_state(axes, settings):
    setup = prepared(axes, **settings)
    analysis = compile_train_step(setup).memory_analysis()
    assert analysis.alias_size_in_bytes == memory.state_bytes(setup)


def test_needed_memory_counts_every_part():
    setup = prepared()
    analysis = types.SimpleNamespace(
        argument_size_in_bytes=1000,
        output_size_in_bytes=900,
        alias_size_in_bytes=800,
        temp_size_in_bytes=70,
    )
    compiled = types.SimpleNamespace(memory_analysis=lambda: analysis)
    batch = 64 * (16 * 16 * 3 + 4)
    assert memory.batch_bytes(setup) == batch
    held = 3 + data.batches_ahead(setup.config.data.num_threads)
    fixed, copies = 1100 + held * batch, 2 * memory.state_bytes(setup)
    at_the_end = fixed + memory.state_bytes(setup)
    assert memory.needed_bytes(setup, compiled) == at_the_end
    setup.config.checkpoint_every_steps = 9  # of 10: while it computes
    assert memory.needed_bytes(setup, compiled) == fixed + copies + 70
    assert memory.needed_bytes(setup, compiled, kept=True) == fixed + copies + 140
    unknown = types.SimpleNamespace(memory_analysis=lambda: None)
    assert memory.needed_bytes(setup, unknown) is None
    assert memory.expected_bytes(setup, unknown) is None


def test_batches_in_flight_are_those_counted(monkeypatch):
    made, at_most = [], 0
    to_devices = sharding.to_devices

    def count(batch, mesh):
        nonlocal at_most
        made.append(batch["label"][0])
        at_most = max(at_most, len(made) - steps)
        return to_devices(batch, mesh)

    steps = 0  # done
    monkeypatch.setattr(sharding, "to_devices", count)
    batches = run.training_batches(prepared(), 0, Clock(64, 0))
    next(batches)
    for step in range(6):  # the loop: asks for a step, takes the next batch, waits
        next(batches)
        steps = max(0, step + 1 - steps_ahead())
    batches.close()
    assert at_most == 1 + memory.BATCHES_AHEAD + steps_ahead()


@pytest.mark.parametrize(
    "overrides", [peak_memory.RUNS[2], peak_memory.RUNS[3]], ids=["kept", "returned to the system"]
)
@pytest.mark.long
def test_the_estimate_is_within_a_tenth_of_the_peak(overrides):
    found = peak_memory.measure(overrides)
    assert found["estimate"] == pytest.approx(found["peak"], rel=0.1)


def test_a_step_that_does_not_fit_names_settings_that_do():
    setup = prepared()
    compiled = compile_train_step(setup)
    needed = memory.needed_bytes(setup, compiled)
    memory.check_fits(setup, needed, needed)
    with pytest.raises(UserError, match=r"accumulation_steps=\d+, which keeps the global batch"):
        memory.check_fits(setup, needed, int(0.6 * needed))
    full = prepared(accumulation_steps="64", model__remat="full")
    with pytest.raises(UserError, match=r"use more devices, or --config\.mesh\.fsdp"):
        memory.check_fits(full, needed, needed - 1)
    with pytest.raises(UserError, match=r"split it over 2 devices with --config\.mesh\.fsdp=2"):
        memory.check_state_fits(setup, memory.state_bytes(setup) - 1)
    with pytest.raises(UserError, match=r"there are 0.0 GiB; end other programs"):
        memory.check_state_fits(setup, 0)


def test_the_limit_can_be_lowered():
    config = configuration.default()
    whole = memory.device_memory(config)
    config.memory_limit_gib = 0.25
    assert memory.device_memory(config) == 2**28
    config.memory_limit_gib = 1e6
    assert memory.device_memory(config) == pytest.approx(whole, rel=0.2)


def test_the_measured_peak_is_that_of_the_fullest_device(monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    assert memory.measured_memory(2**29) == {}  # CPUs report none
    devices = [
        types.SimpleNamespace(memory_stats=lambda peak=peak: {"peak_bytes_in_use": peak})
        for peak in (2**30, 3 * 2**30)
    ]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    found = memory.measured_memory(2**29)
    assert found == {"train/peak_memory_gib": 3.0, "train/estimated_memory_gib": 0.5}
    assert memory.measured_memory(None) == {}


def test_on_a_cpu_memory_is_that_of_the_process():
    setup = prepared()
    compiled = compile_train_step(setup)
    # First: a process that asks a program what it takes for the first time grows by that.
    needed = jax.local_device_count() * memory.needed_bytes(setup, compiled)
    now = host_memory.resident_bytes()
    rest = memory.expected_bytes(setup, compiled) - now
    assert rest == pytest.approx(needed + memory.COMPILED, abs=2**20)
    found = memory.measured_memory(now)
    assert found["train/peak_memory_gib"] * 2**30 >= now
    assert found["train/estimated_memory_gib"] * 2**30 == now


@pytest.mark.parametrize("polyak", [False, True])
def test_weights_that_a_run_begins_with_do_not_stay_beside_its_state(polyak):
    mesh = sharding.make_mesh()
    params = sharding.params_to_devices({"head/kernel": np.ones((64, 8), np.float32)}, mesh)
    make, _ = state.initialise(dict, params, optim.sgd(), mesh, polyak=polyak, consume=True)
    now = make()
    assert params["head/kernel"].is_deleted()
    assert (np.asarray(now.params["head/kernel"]) == 1).all()


@pytest.mark.parametrize(
    "settings, message",
    [
        (dict(accumulation_steps="0"), r"accumulation_steps=0 must be a whole number, 1 or more"),
        (dict(batch_size="-8"), r"batch_size=-8 must be a whole number, 1 or more"),
        (dict(batch_size="12"), r"does not divide by 8 devices x 1 accumulation steps; 8 would"),
        (
            dict(schedule__decay="staircase", schedule__boundaries_percent="(60, 30)"),
            r"boundaries_percent=\(60, 30\) must increase",
        ),
        (
            dict(schedule__decay="staircase", schedule__boundaries_percent="(30, 30)"),
            r"boundaries_percent=\(30, 30\) must increase",
        ),
        (
            dict(schedule__decay="staircase", schedule__boundaries_percent="(30, 100)"),
            r"must be a list, each a number in \(0, 100\)",
        ),
    ],
)
def test_invalid_settings_are_refused_with_advice(settings, message):
    with pytest.raises(UserError, match=message):
        prepared(dict(data=8), **settings)


@pytest.mark.parametrize(
    "axes, message",
    [
        (dict(fsdp=3), r"does not cover 8 devices .*choose sizes whose product divides 8"),
        (dict(data=3), r"set config.mesh.data=-1"),
        (dict(data=-1, fsdp=-1), r"only one of them can be -1, and data and fsdp are"),
        (dict(tensor=0), r"config.mesh.tensor=0 must be positive"),
        (dict(data=-1, tensor=-2), r"config.mesh.tensor=-2 must be positive"),
    ],
)
def test_an_invalid_mesh_names_a_valid_one(axes, message):
    with pytest.raises(UserError, match=message):
        sharding.make_mesh(**axes)
    with pytest.raises(UserError, match=r"1 device .*product divides 1"):
        sharding.make_mesh(fsdp=3, devices=jax.devices()[:1])


def test_the_plan_prints_the_rates_of_a_staircase():
    found = prepared(
        total_steps="100",
        schedule__decay="staircase",
        schedule__boundaries_percent="(30, 60)",
        schedule__learning_rate="0.5",
    )
    rows = dict(plan.plan(found))
    assert "from 0.5 to 0.05 at step 31, 0.005 at step 61" in rows["schedule"]
    assert float(found.plan.schedule(30)) == pytest.approx(0.5)
    assert float(found.plan.schedule(31)) == pytest.approx(0.05)


@pytest.mark.parametrize("variant", ["debug-resnet", "debug-hybrid", "debug-axial"])
def test_small_models_of_every_family(variant):
    config = models.get_config(variant, num_classes=10)
    params = models.abstract_params(config)
    assert config.image_size == (32, 32)
    assert sum(leaf.size for leaf in params.values()) < 300_000
    names = " ".join(params)
    assert ("attention" in names) == (variant != "debug-resnet")
    assert ("stage" in names or "stem" in names) == (variant != "debug-axial")


@pytest.mark.parametrize("attention", ["fused", "cudnn"])
def test_attention_that_cannot_be_is_said_before_the_first_stage(tmp_path, capsys, attention):
    """Pre-training would otherwise run to its end first."""
    words = ["train", "--config=configs/quickstart.py", f"--workdir={tmp_path / 'run'}"]
    assert main([*words, f"--config.model.attention={attention}"]) == 1
    assert (
        f"model.attention='{attention}' is not supported: the device is not"
        in capsys.readouterr().err
    )
    assert not (tmp_path / "run").exists()
