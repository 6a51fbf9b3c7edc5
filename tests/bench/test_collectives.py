"""What each way of splitting a model says on the wire, on eight devices.

These tests hold the rule table of vit_jax/sharding.py to what it is for: a rule that is lost, or a
reshape in the model that undoes a split, shows up here as a collective that should not be there.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from often import often

from vit_jax import config as configuration, models
from vit_jax.bench import collectives, scale
from vit_jax.data import ArraySource
from vit_jax.runtime import sharding
from vit_jax.training import memory
from vit_jax.training.setup import abstract_batch, jit_train_step, set_up

LAYERS, BATCH, TOKENS = 2, 1024, 17
MODEL = dict(
    variant="debug", image_size=16, patch_size=4, hidden_size=64, num_layers=LAYERS, mlp_dim=256,
    num_heads=8, num_classes=16, representation_size="hidden",
)  # fmt: skip
PARAMS = {  # what is split, f32: every kernel
    "patch": 48 * 64, "qkv": 64 * 192, "out": 64 * 64, "dense1": 64 * 256, "dense2": 256 * 64,
    "pre_logits": 64 * 64, "head": 64 * 16,
}  # fmt: skip


def prepared(*, devices=8, **axes):
    config = configuration.default()
    config.model.update(MODEL)
    config.batch_size, config.total_steps = BATCH, 10
    config.optimizer = configuration.ConfigDict({"name": "adam"})
    source = ArraySource(np.zeros((16, 16, 16, 3), np.uint8), range(16))
    mesh = sharding.make_mesh(**axes, devices=jax.devices()[:devices])
    return set_up(config, sources=(source, source), mesh=mesh)


@functools.cache
def step_of(**axes):
    setup = prepared(**axes)
    state, batch = setup.program.abstract_state, abstract_batch(setup)
    return jit_train_step(setup).lower(state, batch).compile()


@functools.cache
def collectives_of(**axes):
    return collectives.read(step_of(**axes).as_text())


def param_bytes(setup):
    return 4 * sum(math.prod(leaf.shape) for leaf in setup.program.abstract_state.params.values())


def test_one_device_says_nothing():
    assert collectives_of(devices=1) == []


def test_data_parallel_is_one_sum_of_the_gradients():
    setup, found = prepared(), collectives_of()
    assert [(one.kind, len(one.group)) for one in found] == [("all-reduce", 8)]
    # The gradients, and the loss: a scalar or two.
    assert 0 <= found[0].size - param_bytes(setup) <= 64
    assert collectives.moved_bytes(found[0]) == 2 * 7 / 8 * found[0].size


def test_fsdp_gathers_each_kernel_and_sums_each_gradient_once():
    setup, found = prepared(data=1, fsdp=8), collectives_of(data=1, fsdp=8)
    gathered = sorted(one.size for one in found if one.kind == "all-gather")
    # In float32 the backward pass uses what the forward pass gathered.
    layer = [PARAMS[name] for name in ("qkv", "out", "dense1", "dense2")]
    expected = [PARAMS["patch"], PARAMS["pre_logits"], PARAMS["head"], *LAYERS * layer]
    assert gathered == sorted(4 * size for size in expected)
    # On CPU a reduce-scatter is an all-reduce of which each device keeps its part.
    reduced = sum(one.size for one in found if one.kind in ("all-reduce", "reduce-scatter"))
    assert reduced == pytest.approx(param_bytes(setup), rel=0.02)
    assert {one.kind for one in found} <= {"all-gather", "all-reduce", "reduce-scatter"}


def test_fsdp_never_holds_more_than_one_whole_kernel():
    setup = prepared(data=1, fsdp=8)
    for one in collectives_of(data=1, fsdp=8):
        assert one.largest <= 4 * max(PARAMS.values()), one
        if one.kind == "all-gather":
            assert one.size < param_bytes(setup) / 4, one


def test_tensor_parallel_sums_activations_four_times_per_layer_and_gathers_no_kernel():
    found = collectives_of(data=1, tensor=8)
    activation = 4 * BATCH * TOKENS * MODEL["hidden_size"]
    big = [one for one in found if one.largest == activation]
    assert {one.kind for one in big} == {"all-reduce"}
    assert sum(one.times for one in big) == 4 * LAYERS  # two forward, two backward
    others = [one for one in found if one.largest != activation]
    # The classes of the head are split: logits and what comes back of them.
    assert all(one.largest <= 4 * BATCH * MODEL["hidden_size"] for one in others), others


@pytest.mark.parametrize(
    "axes", often(dict(data=2, fsdp=2, tensor=2), weekly=[dict(data=2, fsdp=4)]), ids=str
)
def test_groups_are_those_of_the_mesh(axes):
    found = collectives_of(**axes)
    sizes = list(axes.values()) + [1] * (3 - len(axes))
    ids = np.arange(8).reshape(sizes)
    possible = set()  # the devices that differ from device 0 along some of the axes only
    for mask in range(8):
        index = tuple(slice(None) if mask >> axis & 1 else 0 for axis in range(3))
        possible.add(tuple(sorted(np.atleast_1d(ids[index]).reshape(-1).tolist())))
    groups = {tuple(sorted(one.group)) for one in found if one.kind != "collective-permute"}
    assert groups <= possible
    gathers = [one.group for one in found if one.kind == "all-gather" and one.size > 4096]
    assert {len(group) for group in gathers} == {axes["fsdp"]}


def test_memory_falls_as_the_state_is_split():
    whole, split = prepared(devices=1), prepared(data=1, fsdp=8)
    assert memory.state_bytes(split) < 0.2 * memory.state_bytes(whole)
    # What XLA is given besides is this device's part of the batch.
    batch = BATCH * (16 * 16 * 3 + 4)
    for setup, axes, share in ((whole, dict(devices=1), 1), (split, dict(data=1, fsdp=8), 8)):
        given = step_of(**axes).memory_analysis().argument_size_in_bytes
        assert given == memory.state_bytes(setup) + batch // share


@pytest.mark.parametrize("scan", [False, True])
def test_a_scan_over_the_layers_counts_every_turn(scan):
    setup = prepared(data=1, tensor=8)
    model = models.replace(setup.program.model, scan=scan)
    _, apply = models.as_functions(model)
    params = setup.program.abstract_state.params
    images = jax.ShapeDtypeStruct(
        (BATCH, 16, 16, 3), jnp.float32, sharding=sharding.batch_sharding(setup.program.mesh)
    )
    hlo = jax.jit(apply).lower(params, images).compile().as_text()
    activation = 4 * BATCH * TOKENS * MODEL["hidden_size"]
    sums = [one for one in collectives.read(hlo) if one.size == activation]
    assert sum(one.times for one in sums) == 2 * LAYERS


def test_a_loop_of_unknown_length_is_refused():
    mesh = sharding.make_mesh()
    split = NamedSharding(mesh, PartitionSpec("data"))

    def body(x):
        return x + x.sum()

    f = jax.jit(lambda x: jax.lax.while_loop(lambda x: x.max() < 100, body, x))
    hlo = f.lower(jax.ShapeDtypeStruct((8,), jnp.float32, sharding=split)).compile().as_text()
    with pytest.raises(ValueError, match="loop of unknown length"):
        collectives.read(hlo)


COUNTED = """HloModule jit_f, num_partitions=2

%body (a: (s32[], f32[8])) -> (s32[], f32[8]) {
  %a = (s32[]{:T(128)}, f32[8]{0}) parameter(0)
  %one = s32[]{:T(128)} constant(1)
  %i = s32[]{:T(128)} get-tuple-element(%a), index=0
  %x = f32[8]{0} get-tuple-element(%a), index=1
  %r = f32[8]{0} all-reduce(%x), replica_groups={{0,1}}, to_apply=%sum
  %next = s32[]{:T(128)} add(%i, %one), metadata={op_name="while/body/add"}
  ROOT %t = (s32[]{:T(128)}, f32[8]{0}) tuple(%next, %r)
}

%condition (c: (s32[], f32[8])) -> pred[] {
  %limit = s32[]{:T(128)} constant(24)
  %c = (s32[]{:T(128)}, f32[8]{0}) parameter(0)
  %j = s32[]{:T(128)} get-tuple-element(%c), index=0
  ROOT %lt = pred[]{:T(512)} compare(%j, %limit), direction=LT, metadata={op_name="while/cond/lt"}
}

ENTRY %main (b: (s32[], f32[8])) -> (s32[], f32[8]) {
  %b = (s32[]{:T(128)}, f32[8]{0}) parameter(0)
  ROOT %while = (s32[]{:T(128)}, f32[8]{0}) while(%b), condition=%condition, body=%body
}
"""


def test_trip_counts_are_read_from_the_counter_of_a_loop():
    (one,) = collectives.read(COUNTED)
    assert one.times == 24
    for text in (
        COUNTED.replace("direction=LT", "direction=NE"),
        COUNTED.replace("constant(1)", "constant(2)"),
        COUNTED.replace("get-tuple-element(%c), index=0", "get-tuple-element(%c), index=1"),
        COUNTED.replace("constant(24)", "parameter(1)"),
    ):
        with pytest.raises(ValueError, match="loop of unknown length"):
            collectives.read(text)


# One line in each notation that XLA prints groups and asynchronous pairs in.
@pytest.mark.parametrize(
    "line, kind, size, group",
    [
        ("%a = f32[8,2]{1,0} all-reduce(%x), replica_groups={{0,2},{1,3}}",
         "all-reduce", 64, (0, 2)),
        ("%a = bf16[8]{0:T(8,128)(2,1)S(1)} all-gather(%x), replica_groups=[2,2]<=[4]",
         "all-gather", 16, (0, 1)),
        ("%a = f32[8]{0} all-gather(%x), replica_groups=[2,2]<=[2,2]T(1,0), dimensions={0}",
         "all-gather", 32, (0, 2)),
        ("%a = (f32[4]{0}, /*index=1*/s8[3]{0}) all-reduce(%x, %y), replica_groups={}",
         "all-reduce", 19, (0, 1, 2, 3)),
        ("%a = (f32[2]{0}, f32[8]{0}) all-gather-start(%x), replica_groups={{0,1,2,3}}",
         "all-gather", 32, (0, 1, 2, 3)),
        ("%a = f32[8]{0} all-reduce-start(%x), replica_groups={{0,1,2,3}}",
         "all-reduce", 32, (0, 1, 2, 3)),
        ("%a = f32[2]{0} reduce-scatter(%x), replica_groups=mesh['a'=2,'b'=2] {'b'}",
         "reduce-scatter", 8, (0, 1)),
        ("%a = f32[2]{0} all-to-all(%x), replica_groups=mesh['a'=2,'b'=2], "
         "device_ids=([2,2]T(1,0)) {'b'}, use_global_device_ids=true", "all-to-all", 8, (0, 2)),
        ("%a = (f32[2]{0}, f32[2]{0}, u32[], u32[]) collective-permute-start(%x), "
         "source_target_pairs={{0,1},{1,0}}", "collective-permute", 8, (0, 1)),
    ],
)  # fmt: skip
def test_notations_of_replica_groups(line, kind, size, group):
    hlo = f"HloModule m, num_partitions=4\n\nENTRY %main (x: f32[2]) -> f32[2] {{\n  {line}\n}}\n"
    (one,) = collectives.read(hlo)
    assert (one.kind, one.size, one.group, one.times) == (kind, size, group, 1)


def test_a_ring_moves_what_the_formulas_say():
    def moved(kind, size):
        one = collectives.Collective(kind, size, size, (0, 1, 2, 3), 3, "x")
        return collectives.moved_bytes(one) / 3

    assert moved("all-reduce", 8) == moved("reduce-scatter", 2) + moved("all-gather", 8) == 12
    assert moved("collective-permute", 8) == 8
    total = collectives.totals([collectives.Collective("all-reduce", 8, 8, (0, 1), 5, "x")] * 2)
    assert total == {"all-reduce": (10, 80, 80.0)}


@pytest.mark.parametrize(
    "axes, kinds",
    [
        (dict(), {"all-reduce": ("sum", 1)}),
        # On CPU: kernels are gathered once in float32, not twice in bfloat16, and a reduce-scatter
        # is an all-reduce, which sends twice as much.
        (dict(data=1, fsdp=8), {"all-gather": ("gather", 1), "all-reduce": ("scatter", 2)}),
        (dict(data=1, tensor=8), {"all-reduce": ("activations", 1)}),
    ],
    ids=str,
)
def test_the_formula_of_the_traffic_is_what_the_compiler_makes(axes, kinds):
    setup, found = prepared(**axes), collectives.totals(collectives_of(**axes))
    sent = scale.traffic(setup.program.model, setup.program.mesh, BATCH)
    for kind, (purpose, factor) in kinds.items():
        assert found[kind].moved == pytest.approx(factor * sent[purpose], rel=0.04)
