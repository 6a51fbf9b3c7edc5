"""What libtpu's compiler estimates: its text read by hand, refusals, and real compilations.

The compilations need libtpu, in the version that jax[tpu] names, and no TPU:
pip install 'jax[tpu]' && pytest -m compile
"""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from vit_jax.bench import hlo, kernels, tpu, tpu_worker
from vit_jax.cli import main
from vit_jax.data import workers
from vit_jax.errors import UserError

ROOT = Path(__file__).parents[2]

#: A training step in small: one layer is a loop of 12 turns. Frames 1 to 3 are around the model.
HLO = """HloModule jit_train_step, is_scheduled=true, num_partitions=1

FileNames
1 "/there/vit.py"

FunctionNames
1 "make_train_step.<locals>.train_step"
2 "make_train_step.<locals>.gradients"
3 "VisionTransformer.encode"
4 "EncoderBlock.__call__"
5 "SelfAttention.__call__"
6 "Dense.__call__"
7 "MLP.__call__"
8 "LayerNorm.__call__"
9 "plain.<locals>.attend"
10 "VisionTransformer.classify"
11 "PatchEmbedding.__call__"

FileLocations
1 {file_name_id=1 function_name_id=1 line=1 end_line=1 column=1 end_column=2}
2 {file_name_id=1 function_name_id=2 line=1 end_line=1 column=1 end_column=2}
3 {file_name_id=1 function_name_id=3 line=1 end_line=1 column=1 end_column=2}
4 {file_name_id=1 function_name_id=4 line=1 end_line=1 column=1 end_column=2}
5 {file_name_id=1 function_name_id=5 line=1 end_line=1 column=1 end_column=2}
6 {file_name_id=1 function_name_id=6 line=1 end_line=1 column=1 end_column=2}
7 {file_name_id=1 function_name_id=7 line=1 end_line=1 column=1 end_column=2}
8 {file_name_id=1 function_name_id=8 line=1 end_line=1 column=1 end_column=2}
9 {file_name_id=1 function_name_id=9 line=1 end_line=1 column=1 end_column=2}
10 {file_name_id=1 function_name_id=10 line=1 end_line=1 column=1 end_column=2}
11 {file_name_id=1 function_name_id=11 line=1 end_line=1 column=1 end_column=2}

StackFrames
1 {file_location_id=1 parent_frame_id=1}
2 {file_location_id=2 parent_frame_id=2}
3 {file_location_id=3 parent_frame_id=3}
4 {file_location_id=4 parent_frame_id=4}
5 {file_location_id=5 parent_frame_id=5}
6 {file_location_id=6 parent_frame_id=6}
7 {file_location_id=9 parent_frame_id=6}
8 {file_location_id=7 parent_frame_id=5}
9 {file_location_id=6 parent_frame_id=9}
10 {file_location_id=8 parent_frame_id=5}
11 {file_location_id=10 parent_frame_id=3}
12 {file_location_id=11 parent_frame_id=3}


%turned (p: f32[8,4]) -> f32[4,8] {
  %p = f32[8,4]{1,0:T(8,128)} parameter(0)
  ROOT %t = f32[4,8]{1,0:T(8,128)} transpose(%p), dimensions={1,0}, metadata={op_name="x"}
}

%joined (q: f32[8,4]) -> f32[8,8] {
  %q = f32[8,4]{1,0} parameter(0)
  %least = f32[] constant(-inf)
  %wide = f32[8,8]{1,0} pad(%q, %least), padding=0_0x0_4
  ROOT %m = f32[8,8]{1,0} maximum(%wide, %wide)
}

%relu (r: f32[8,4]) -> f32[8,4] {
  %r = f32[8,4]{1,0} parameter(0)
  %zero = f32[] constant(0)
  ROOT %n = f32[8,4]{1,0} maximum(%r, %r), backend_config={"estimated_cycles":"999"}
}

%body (a: (s32[], f32[8,4])) -> (s32[], f32[8,4]) {
  %a = (s32[], f32[8,4]) parameter(0)
  %b = f32[8,4]{1,0} get-tuple-element(%a), index=1
  %qkv = f32[8,4]{1,0:T(8,128)} fusion(%b), kind=kOutput, calls=%relu, metadata={op_name="jit(train_step)/jvp()/dot_general" stack_frame_id=6}, backend_config={"window_config":{"estimated_cycles":"100"}}
  %kernel.1 = (bf16[8,4]{1,0:T(8,128)(2,1)}, bf16[8,4]{1,0}) custom-call(%qkv, %qkv), custom_call_target="tpu_custom_call", operand_layout_constraints={bf16[8,4]{1,0}, bf16[8,4]{1,0}}, metadata={op_name="jit(train_step)/jvp()/pallas_call" stack_frame_id=7}, backend_config={"custom_call_config":{"body":"ab="}}
  %scores = f32[8,4]{1,0} reduce(%b, %b), to_apply=%relu, metadata={op_name="jit(train_step)/jvp()/reduce_sum" stack_frame_id=7}, backend_config={"estimated_cycles":"10"}
  %hidden = f32[8,4]{1,0} fusion(%b), kind=kLoop, calls=%relu, metadata={op_name="jit(train_step)/jvp()/max" stack_frame_id=8}, backend_config={"estimated_cycles":"1000"}
  %norm = f32[8,4]{1,0} fusion(%b), kind=kLoop, calls=%relu, metadata={op_name="jit(train_step)/jvp()/rsqrt" stack_frame_id=10}, backend_config={"estimated_cycles":"20"}
  %bias = f32[2]{0} fusion(%b), kind=kLoop, calls=%relu, metadata={op_name="jit(train_step)/transpose(jvp())/reduce_sum" stack_frame_id=9}, backend_config={"estimated_cycles":"3"}
  %both = (f32[2]{0}, f32[8,4]{1,0}) fusion(%b), kind=kLoop, calls=%relu, metadata={op_name="jit(train_step)/transpose(jvp())/reduce_sum" stack_frame_id=9}, backend_config={"estimated_cycles":"4"}
  %add = f32[8,4]{1,0} fusion(%b, %b), kind=kLoop, calls=%relu, metadata={op_name="jit(train_step)/jvp()/add" stack_frame_id=4}, backend_config={"estimated_cycles":"5"}
  %turn = f32[4,8]{1,0} fusion(%b), kind=kLoop, calls=%turned, metadata={op_name="jit(train_step)/jvp()/transpose" stack_frame_id=8}, backend_config={"estimated_cycles":"7"}
  ROOT %out = (s32[], f32[8,4]) tuple(%b, %b)
}

%condition (c: (s32[], f32[8,4])) -> pred[] {
  %c = (s32[], f32[8,4]) parameter(0)
  ROOT %less = pred[] compare(%c, %c), direction=LT
}

ENTRY %main (x: f32[8,4]) -> f32[8,4] {
  %x = f32[8,4]{1,0} parameter(0)
  %patches = f32[8,4]{1,0} fusion(%x), kind=kLoop, calls=%relu, metadata={op_name="jit(train_step)/jvp()/dot_general" stack_frame_id=12}, backend_config={"estimated_cycles":"30"}
  %start = (s32[], f32[8,4]) tuple(%x, %x)
  %loop = (s32[], f32[8,4]) while(%start), condition=%condition, body=%body, backend_config={"known_trip_count":{"n":"12"}}
  %join = f32[8,8]{1,0} fusion(%x), kind=kLoop, calls=%joined, metadata={op_name="x" stack_frame_id=6}, backend_config={"estimated_cycles":"8"}
  %logits = f32[8,4]{1,0} fusion(%x), kind=kLoop, calls=%relu, metadata={op_name="jit(train_step)/jvp()/dot_general" stack_frame_id=11}, backend_config={"estimated_cycles":"40"}
  %other = f32[8,4]{1,0} copy(%x), backend_config={"estimated_cycles":"6"}
  ROOT %update = f32[8,4]{1,0} fusion(%x), kind=kLoop, calls=%relu, metadata={op_name="jit(train_step)/sub" stack_frame_id=1}, backend_config={"estimated_cycles":"50"}
}
"""  # noqa: E501


def test_cycles_by_hand():
    found = hlo.read(HLO)
    parts = hlo.parts(found, lambda one: 2000)
    assert parts == {
        "projections": 12 * 100,
        "attention": 12 * (2000 + 10),
        "mlp": 12 * (1000 + 4),  # a sum that also writes the activations is not a bias gradient
        "norms": 12 * 20,
        "bias_gradients": 12 * 3,
        "other": 12 * 5,  # the residual
        "copies": 12 * 7 + 8 + 6,
        "input": 30,
        "head": 40,
        "optimizer": 50,
    }
    assert tuple(parts) == hlo.PARTS
    (kernel,) = (one for one in found if one.cycles is None)
    assert kernel.name == "kernel.1" and kernel.times == 12
    assert kernel.bytes == 4 * 2 * 8 * 4 and kernel.signature == 4 * ("bf16[8,4]",)
    assert kernel.frames == (
        "attend", "SelfAttention.__call__", "EncoderBlock.__call__", "VisionTransformer.encode",
        "gradients", "train_step",
    )  # fmt: skip


def test_a_loop_of_unknown_length_is_refused():
    with pytest.raises(ValueError, match="qkv is in a loop of unknown length"):
        hlo.read(HLO.replace("known_trip_count", "unknown"))


def test_functions_that_cycles_are_attributed_by_exist():
    """Renaming one would send its cycles to "other"."""
    from vit_jax.models import ablations, functions, layers, stem, vit
    from vit_jax.objectives import classification, mixing
    from vit_jax.training import step

    places = (ablations, functions, layers, stem, vit, classification, mixing, step)
    text = "\n".join(Path(place.__file__).read_text() for place in places)
    for name in (
        "LayerNorm", "GroupNorm", "MLP", "SelfAttention", "PatchEmbedding", "PositionEmbedding",
        "HybridStem", "VisionTransformer", "Dense",
    ):  # fmt: skip
        assert re.search(rf"^class {name}\b", text, re.MULTILINE), name
    for name in (
        "patches", "embed", "encode", "classify", "normalise", "mixup", "cutmix", "batch_loss",
        "gradients", "train_step",
    ):  # fmt: skip
        assert re.search(rf"^ *def {name}\(", text, re.MULTILINE), name


ANALYSIS = "Schedule analysis:\n\ttotal scheduled bundles:    {}\n\tempty scheduled bundles:    9\n"


def test_a_kernel_takes_its_arithmetic_or_its_bytes(tmp_path):
    (kernel,) = (one for one in hlo.read(HLO) if one.cycles is None)
    for name, count in (("kernel.1", 1383), ("kernel.10", 5), ("a_kernel.1", 7)):
        file = tmp_path / f"179-{name}-71-schedule-analysis_final_bundles.txt"
        file.write_text(ANALYSIS.format(count))

    def cycles(grids, directory=tmp_path, bytes_per_cycle=1.0, cores=1):
        scheduled = kernels.schedules([kernel], directory)[kernel.name]
        cost = kernels.cost_of(
            kernel, grids, scheduled, bytes_per_cycle=bytes_per_cycle, cores=cores
        )
        assert cost.bytes == 256 and cost.times == 12
        return cost.cycles

    grids = {kernel.signature: kernels.Grid(8, False)}
    assert cycles(grids) == 8 * 1383
    assert cycles(grids, cores=2) == 8 * 1383
    assert cycles({kernel.signature: kernels.Grid(8, True)}, cores=2) == 4 * 1383
    assert cycles(grids, bytes_per_cycle=0.01) == 25600
    assert cycles({}) == 256 == cycles(grids, tmp_path / "nothing")


def test_equal_kernels_are_scheduled_once(tmp_path):
    """Those of other layers; not one of another name, or of other types."""
    (kernel,) = (one for one in hlo.read(HLO) if one.cycles is None)
    file = tmp_path / f"179-{kernel.name}-71-schedule-analysis_final_bundles.txt"
    file.write_text(ANALYSIS.format(1383))
    stem = kernel.name.partition(".")[0]
    others = [
        kernel._replace(name=f"{stem}.77"),
        kernel._replace(name="backward.78"),
        kernel._replace(name=f"{stem}.79", operands="f32[1]"),
    ]
    found = kernels.schedules([*others, kernel], tmp_path)
    assert found == {
        f"{stem}.77": 1383, "backward.78": None, f"{stem}.79": None, kernel.name: 1383
    }  # fmt: skip


def pallas_program():
    """A function with a kernel of 8 steps in a loop, and its argument."""
    import jax
    import jax.numpy as jnp
    from jax.experimental import pallas as pl

    def kernel(x, y):
        y[...] = jnp.exp(x[...])

    def call(x):
        spec = pl.BlockSpec((1, 128, 256), lambda i: (i, 0, 0))
        out = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return pl.pallas_call(kernel, out_shape=out, grid=(8,), in_specs=[spec], out_specs=spec)(x)

    def run(x):
        return jax.lax.scan(lambda x, _: (jax.jit(call)(x) * 2, None), x, length=3)[0]

    return run, (8, 128, 256)


def test_the_grid_of_a_kernel_is_found_inside_loops_and_calls():
    import jax
    import jax.numpy as jnp

    run, shape = pallas_program()
    jaxpr = jax.make_jaxpr(run)(jnp.zeros(shape, jnp.bfloat16)).jaxpr
    assert kernels.grids(jaxpr) == {2 * ("bf16[8,128,256]",): kernels.Grid(8, False)}


def test_clocks_follow_from_peaks():
    assert {name: round(chip.clock / 1e9, 2) for name, chip in tpu.CHIPS.items()} == {
        "v5e": 1.50, "v5p": 1.75, "v6e": 1.75,
    }  # fmt: skip


COLLECTIVES = """HloModule jit_step, num_partitions=4

%first (p: f32[8,4]) -> f32[64,4] {
  %p = f32[8,4]{1,0} parameter(0)
  ROOT %all-gather.5 = f32[64,4]{1,0} all-gather(%p), channel_id=7, replica_groups={{0,1,2,3}}, dimensions={0}
}

%piece (q: f32[8,4]) -> f32[64,4] {
  %q = f32[8,4]{1,0} parameter(0)
  ROOT %all-gather.6 = f32[64,4]{1,0} all-gather(%q), channel_id=7, replica_groups={{0,1,2,3}}, dimensions={0}
}

ENTRY %main (x: f32[8,4]) -> f32[8,4] {
  %x = f32[8,4]{1,0} parameter(0)
  %all-gather-start.1 = (f32[8,4]{1,0}, f32[32,4]{1,0}) all-gather-start(%x), channel_id=3, replica_groups={{0,1,2,3}}, dimensions={0}
  %a = f32[8,4]{1,0} fusion(%x), kind=kLoop, calls=%f, backend_config={"estimated_cycles":"70"}
  %all-gather-done.1 = f32[32,4]{1,0} all-gather-done(%all-gather-start.1)
  %start = f32[64,4]{1,0} fusion(%x), kind=kCustom, calls=%first
  %b = f32[8,4]{1,0} fusion(%x), kind=kLoop, calls=%f, backend_config={"estimated_cycles":"11"}
  %c = f32[8,4]{1,0} fusion(%x), kind=kCustom, calls=%piece, backend_config={"estimated_cycles":"5"}
  %done = f32[64,4]{1,0} fusion(%x), kind=kCustom, calls=%piece
  ROOT %all-reduce.2 = f32[8,4]{1,0} all-reduce(%b), replica_groups={{0,1},{2,3}}, to_apply=%sum
}
"""  # noqa: E501


def test_overlap_of_computation_and_collectives():
    streamed, gather, reduce = tpu_worker.exchanges(COLLECTIVES)
    assert gather == {
        "name": "all-gather-start.1", "kind": "all-gather", "bytes": 4 * 32 * 4, "times": 1,
        "overlapped_cycles": 70,
    }  # fmt: skip
    assert streamed["name"] == "all-gather.5" and streamed["bytes"] == 4 * 64 * 4
    assert streamed["overlapped_cycles"] == 11 + 5
    assert reduce["bytes"] == 4 * 8 * 4 and reduce["overlapped_cycles"] == 0


REQUEST = tpu.Request("v5e", "", "train", "B/16", 224, 128, "bfloat16")


def test_references_are_of_the_same_work_only():
    row = {"cycles": 606e6}
    found = tpu.references(REQUEST, row)
    assert [(one["peer"], one["ratio"]) for one in found] == [
        ("big_vision", pytest.approx(2.0)), ("vision_transformer", pytest.approx(606 / 371)),
    ]  # fmt: skip
    assert all(one["libtpu"] == "0.0.42.1" for one in found)
    dropout = REQUEST._replace(options=(("dropout_rate", "0.1"),))
    assert tpu.references(dropout, row)[0]["cycles"] == 447e6
    for other in (
        REQUEST._replace(batch=64), REQUEST._replace(image_size=384),
        REQUEST._replace(options=(("scan", "True"),)), REQUEST._replace(topology="2x2"),
        REQUEST._replace(dtype="float32"), REQUEST._replace(chip="v5p"),
    ):  # fmt: skip
        assert tpu.references(other, row) == []


@pytest.mark.parametrize(
    "words, code, said",
    [
        (["--compile_for=v6x"], 1, "no chip 'v6x'; there are v5e, v5p, v6e. Did you mean 'v6e'?"),
        (["--compile_for="], 2, "--compile_for takes v5e, v5p, v6e"),
        (["--compile_for=v5e", "--rounds=3"], 2, "--rounds has no meaning with --compile_for"),
        (["--compile_for=v5e", "--seconds=3"], 2, "--seconds has no meaning"),
        (["--compile_for=v5e", "--plot=x.png"], 2, "--plot has no meaning"),
        (["--compile_for=v5e", "--data=digits"], 2, "--data has no meaning"),
        (["--compile_for=v5e", "--peers=timm"], 2, "--peers=timm has no meaning"),
        (
            ["--compile_for=v5e", "--peers=big_vision"],
            2,
            "needs a checkout: --peers=big_vision=DIR",
        ),
        (["--compile_for=v5e", "--peers=big_vision=/no/such"], 2, "needs a checkout"),
        (["--compile_for=v5e", "--tasks=latency"], 2, "--tasks=latency has no meaning"),
        (["--compile_for=v5e", "--dump=/no/such/place"], 2, "/no/such/place: its parent directory"),
        (["--compile_for=v5e", "--mesh.fsdp=2"], 2, "--mesh.AXIS needs several chips"),
        (["--dump=x"], 2, "--dump needs --compile_for"),
        (["--mesh.fsdp=2"], 2, "--mesh.fsdp needs --compile_for"),
    ],
)
def test_refusals(words, code, said, capsys):
    assert main(["bench", *words]) == code
    assert said in capsys.readouterr().err


def test_without_the_compiler_it_says_what_to_install(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=re.escape("pip install 'vit_jax[tpu]'")):
        tpu.bench([REQUEST])


def test_a_compilation_ends_with_the_command(tmp_path, monkeypatch):
    """Which names itself to it; how a process ends with another is scenario 14."""
    commands = []

    def run(command, **settings):
        commands.append(command)
        return subprocess.CompletedProcess(command, 1, stderr="no")

    monkeypatch.setattr(subprocess, "run", run)
    with pytest.raises(UserError, match="code 1: no"):
        tpu.compile_in_process(REQUEST, tmp_path)
    (command,) = commands

    class Ends(Exception):
        pass

    def end_with_parent(parent):
        raise Ends(parent)

    monkeypatch.setattr(workers, "end_with_parent", end_with_parent)
    with pytest.raises(Ends, match=f"^{os.getpid()}$"):
        tpu_worker.main(command[command.index("vit_jax.bench.tpu_worker") + 1 :])


def test_out_of_memory_quotes_the_compilers_figures():
    said = tpu_worker.refusal(
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO "
        "temporaries (22.44G) exceeds available HBM (15.75G).\nmore"
    )
    assert said.startswith("it does not fit: Ran out of memory on HBM") and "22.44G" in said
    assert "\n" not in said and said.endswith("=products.")


def test_files_of_a_dump(tmp_path):
    (tmp_path / "llo").mkdir()
    (tmp_path / tpu.HLO).write_text("HloModule")
    for name in ("k.1-71-schedule-analysis_final_bundles", "k.1-72-final_bundles", "z-72-final_x"):
        (tmp_path / "llo" / f"179-{name}.txt").write_text("bundles")
    request = REQUEST._replace(topology="2x2")
    tpu.keep(request, {"kernels": [{"name": "k.1"}]}, tmp_path, tmp_path / "out")
    (directory,) = (tmp_path / "out").iterdir()
    assert directory.name == "v5e-2x2_B-16_train_128_bfloat16"
    assert {file.name for file in directory.iterdir()} == {
        tpu.HLO, "k.1-71-schedule-analysis_final_bundles.txt", "k.1-72-final_bundles.txt",
    }  # fmt: skip


BIG_VISION = """
import flax.linen as nn
import big_vision.utils

class _Model(nn.Module):
    num_classes: int
    dropout: float

    @nn.compact
    def __call__(self, image, *, train=False):
        x = nn.Dropout(self.dropout)(image.mean((1, 2)), not train)
        return nn.Dense(self.num_classes)(x), {}

def Model(num_classes, *, dropout, **more):
    assert more == dict(
        width=64, depth=2, patch_size=(8, 8), mlp_dim=128, num_heads=4, pool_type="tok",
        dtype_mm="bfloat16",
    )
    return _Model(num_classes, dropout)
"""
VISION_TRANSFORMER = """
from typing import Any
import flax.linen as nn
from vit_jax import models_resnet

class VisionTransformer(nn.Module):
    num_classes: int
    patches: Any
    hidden_size: int
    transformer: Any

    @nn.compact
    def __call__(self, inputs, *, train):
        assert self.patches.size == (8, 8) and self.transformer["num_layers"] == 2
        return nn.Dense(self.num_classes)(inputs.mean((1, 2)) * models_resnet.ONE)
"""
CHECKOUTS = {
    "big_vision": {"big_vision/__init__.py": "", "big_vision/models/__init__.py": "",
                   "big_vision/models/vit.py": BIG_VISION},
    "vision_transformer": {"vit_jax/models_resnet.py": "ONE = 1",
                           "vit_jax/models_vit.py": VISION_TRANSFORMER},
}  # fmt: skip
LOWER_PEER = """
import sys
from vit_jax import models
from vit_jax.bench import tpu_peers
from vit_jax.runtime import sharding
name, checkout = sys.argv[1:]
config = models.get_config("debug", num_classes=10, dtype="bfloat16", dropout_rate=0.1)
mesh = sharding.make_mesh()
for train in (True, False):
    step, arguments = tpu_peers.step_of(name, checkout, config, mesh, 4, train=train)
    state, out = step.trace(*arguments).out_info if train else (None, step.trace(*arguments).out_info)
    print(out.shape)
config = models.replace(config, classifier="gap")
try:
    tpu_peers.step_of(name, checkout, config, mesh, 4, train=True)
except ValueError as error:
    print(error)
"""  # noqa: E501


@pytest.mark.parametrize("name", tpu.PEERS)
def test_the_step_of_a_peer(name, tmp_path):
    """Of checkouts that have the two names which are used of them."""
    for file, text in CHECKOUTS[name].items():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text(text)
    done = subprocess.run(
        [sys.executable, "-c", LOWER_PEER, name, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    loss, logits, refusal = done.stdout.splitlines()
    assert (loss, logits) == ("()", "(4, 10)")
    assert f"--peers={name} has no debug with these settings" in refusal


def test_a_directory_that_is_not_a_checkout_is_refused(tmp_path):
    from vit_jax import models
    from vit_jax.bench import tpu_peers

    config = models.get_config("debug", dtype="bfloat16")
    with pytest.raises(UserError, match=r"--peers=vision_transformer=.* cannot be used"):
        tpu_peers.module_of("vision_transformer", str(tmp_path), config)


# --- compilations ---------------------------------------------------------------------------------


@pytest.fixture
def libtpu():
    if importlib.util.find_spec("libtpu") is None:
        pytest.skip("needs libtpu: pip install 'jax[tpu]'")


SMALL = ["--variant=debug", "--image_size=32", "--batch=8", "--num_classes=10"]
KEYS = {
    "chip", "topology", "mesh", "variant", "image_size", "batch", "task", "cycles", "kernel_cycles",
    "images_per_second", "share_of_peak", "temp_bytes", "argument_bytes", "parts", "collectives",
    "references", "jax", "libtpu",
}  # fmt: skip


@pytest.mark.compile
@pytest.mark.parametrize("chip", tpu.CHIPS)
def test_the_step_of_a_chip(chip, tmp_path, libtpu, capsys):
    file, dump = tmp_path / "rows.json", tmp_path / "dump"
    words = [f"--compile_for={chip}", f"--json={file}", f"--dump={dump}"]
    assert main(["bench", *SMALL, *words]) == 0
    assert "estimated by the compiler, not measured" in capsys.readouterr().out
    train, inference = json.loads(file.read_text())
    for row in (train, inference):
        assert set(row) >= KEYS and row["chip"] == chip
        assert sum(row["parts"].values()) == row["cycles"] > 1000
        assert row["parts"]["other"] < 0.05 * row["cycles"]
        assert 0 <= row["kernel_cycles"] < row["cycles"]
        clock = tpu.CHIPS[chip].clock
        assert row["images_per_second"] == pytest.approx(8 * clock / row["cycles"])
        assert 0 < row["share_of_peak"] < 1 and row["collectives"] == []
    always = {"attention", "mlp", "projections", "norms", "input", "head"}
    assert {part for part, cycles in inference["parts"].items() if cycles} >= always
    assert inference["parts"]["optimizer"] == inference["parts"]["bias_gradients"] == 0
    assert train["parts"]["optimizer"] > 0 and train["cycles"] > inference["cycles"]
    # Weights and two moments of Adam.
    assert train["argument_bytes"] > 2.5 * inference["argument_bytes"]
    text = (dump / f"{chip}_debug_train_8_bfloat16" / tpu.HLO).read_text()
    total = sum(map(int, re.findall(r'"estimated_cycles":"(\d+)"', text)))
    assert total == train["cycles"] - train["kernel_cycles"]  # no loop


@pytest.mark.compile
def test_a_loop_over_the_layers_costs_about_the_same(tmp_path, libtpu):
    rows = []
    for options in ([], ["--model=scan=True"]):
        file = tmp_path / "rows.json"
        words = ["--compile_for=v5e", "--tasks=inference", f"--json={file}", *options]
        assert main(["bench", *SMALL, "--model=num_layers=6", *words]) == 0
        rows += json.loads(file.read_text())
    plain, scanned = (row["parts"]["mlp"] for row in rows)
    assert scanned == pytest.approx(plain, rel=0.5)


@pytest.mark.compile
def test_a_mesh_of_a_topology(tmp_path, libtpu, capsys):
    file = tmp_path / "rows.json"
    words = ["--compile_for=v5e:2x2", "--mesh.fsdp=2", "--tasks=train", f"--json={file}"]
    assert main(["bench", *SMALL, *words]) == 0
    (row,) = json.loads(file.read_text())
    assert row["chips"] == 4 and row["mesh"] == {"data": 2, "fsdp": 2, "tensor": 1}
    kinds = {one["kind"] for one in row["collectives"]}
    assert "all-gather" in kinds and kinds & {"all-reduce", "reduce-scatter"}
    assert all(one["bytes"] > 0 for one in row["collectives"])
    assert "4 chips: data 2, fsdp 2" in capsys.readouterr().out


@pytest.mark.compile
def test_a_step_too_large_for_the_chip_is_refused(libtpu, capsys):
    words = ["--variant=debug", "--image_size=1024", "--model=patch_size=8", "--batch=64"]
    assert main(["bench", "--compile_for=v5e", "--tasks=train", *words]) == 1
    said = capsys.readouterr().err
    assert "does not fit" in said and re.search(r"\d+\.\d+G", said)


@pytest.mark.compile
@pytest.mark.parametrize(
    "words, said",
    [
        (["--compile_for=v5e:3x5"], "there is no topology v5e:3x5"),
        (["--compile_for=v5e:2x2", "--mesh.fsdp=3"], "does not cover 4 devices"),
        (["--compile_for=v5e", "--variant=debgu"], "debug"),
    ],
)
def test_refusals_of_the_compilation(words, said, libtpu, capsys):
    assert main(["bench", *SMALL, *words]) == 1
    assert said in capsys.readouterr().err


PROGRAM = """
import json, sys
from pathlib import Path
import jax, jax.numpy as jnp
from jax.experimental import topologies
sys.path.insert(0, sys.argv[2])
import test_tpu
from vit_jax.bench import kernels, tpu_worker
from vit_jax.runtime import sharding
run, shape = test_tpu.pallas_program()
device = topologies.get_topology_desc(topology_name="v5e:2x2", platform="tpu").devices[0]
where = sharding.batch_sharding(sharding.make_mesh(devices=[device]))
x = jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=where)
traced = jax.jit(run).trace(x)
text = traced.lower(lowering_platforms=("tpu",)).compile().as_text()
grids = kernels.grids(traced.jaxpr.jaxpr)
print(json.dumps(tpu_worker.estimate(text, grids, Path(sys.argv[1]), "v5e")))
"""


@pytest.mark.compile
def test_a_kernel_in_a_loop(tmp_path, libtpu):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path), str(Path(__file__).parent)],
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "TPU_SKIP_MDS_QUERY": "1",
            "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
            "LIBTPU_INIT_ARGS": kernels.DUMP.format(tmp_path / "llo"),
            "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]),
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    (kernel,) = found["kernels"]
    assert kernel["steps"] == 8 and kernel["times"] == 3
    assert kernel["bytes"] == 2 * 2 * 8 * 128 * 256
    bytes_alone = kernel["bytes"] / (819e9 / tpu.CHIPS["v5e"].clock)
    # exp of 128 x 256 numbers is 32 registers of 1024, and each takes a few bundles.
    assert 32 < kernel["bundles"] < 2000
    assert kernel["cycles"] == pytest.approx(max(bytes_alone, 8 * kernel["bundles"]), abs=1)
    assert found["kernel_cycles"] == 3 * kernel["cycles"] <= found["parts"]["attention"]
    assert sum(found["parts"].values()) == found["cycles"] > found["kernel_cycles"]
