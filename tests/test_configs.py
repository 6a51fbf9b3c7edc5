"""Every shipped configuration: its hyper-parameters are the paper's, and one step of it traces."""

import runpy

import jax
import jax.numpy as jnp
import pytest

from vit_jax import config as configuration, data, models
from vit_jax.data import specs
from vit_jax.data.kinds import vtab
from vit_jax.errors import UserError
from vit_jax.training.setup import abstract_batch, set_up

JFT, I21K, IMAGENET = "jft", "imagenet21k", "imagenet"
EXAMPLES = {  # classes and training examples
    "tfds:jft": (18_291, 303_000_000),
    "tfds:imagenet21k": (21_843, 14_197_122 - 102_400),
    "tfds:imagenet2012": (1000, 1_281_167),
    "tfds:cifar10": (10, 50_000),
    "tfds:cifar100": (100, 50_000),
    "tfds:oxford_iiit_pet": (37, 3_680),
    "tfds:oxford_flowers102": (102, 1_020),
}

# Table 3: variant, data, epochs, base learning rate, decay, weight decay, dropout
TABLE_3 = [
    ("B/16", JFT, 7, 8e-4, "linear", 0.1, 0.0),
    ("B/32", JFT, 7, 8e-4, "linear", 0.1, 0.0),
    ("L/32", JFT, 7, 6e-4, "linear", 0.1, 0.0),
    ("L/16", JFT, 7, 4e-4, "linear", 0.1, 0.0),
    ("L/16", JFT, 14, 4e-4, "linear", 0.1, 0.0),
    ("H/14", JFT, 14, 3e-4, "linear", 0.1, 0.0),
    ("R50x1", JFT, 7, 1e-3, "linear", 0.1, None),
    ("R50x2", JFT, 7, 1e-3, "linear", 0.1, None),
    ("R101x1", JFT, 7, 8e-4, "linear", 0.1, None),
    ("R152x1", JFT, 7, 6e-4, "linear", 0.1, None),
    ("R152x2", JFT, 7, 6e-4, "linear", 0.1, None),
    ("R50+B/16", JFT, 7, 8e-4, "linear", 0.1, 0.0),
    ("R50+B/32", JFT, 7, 8e-4, "linear", 0.1, 0.0),
    ("R50+L/32", JFT, 7, 2e-4, "linear", 0.1, 0.0),
    ("R50+L/16", JFT, 7, 4e-4, "linear", 0.1, 0.0),
    ("R50+L/16", JFT, 14, 4e-4, "linear", 0.1, 0.0),
    ("B/16", I21K, 90, 1e-3, "linear", 0.03, 0.1),
    ("B/32", I21K, 90, 1e-3, "linear", 0.03, 0.1),
    ("L/16", I21K, 30, 1e-3, "linear", 0.03, 0.1),
    ("L/16", I21K, 90, 1e-3, "linear", 0.03, 0.1),
    ("L/32", I21K, 30, 1e-3, "linear", 0.03, 0.1),
    ("L/32", I21K, 90, 1e-3, "linear", 0.03, 0.1),
    ("B/16", IMAGENET, 300, 3e-3, "cosine", 0.3, 0.1),
    ("B/32", IMAGENET, 300, 3e-3, "cosine", 0.3, 0.1),
    ("L/16", IMAGENET, 300, 3e-3, "cosine", 0.3, 0.1),
    ("L/32", IMAGENET, 300, 3e-3, "cosine", 0.3, 0.1),
]

# Table 4: data, steps, learning rates swept, share of the training set held out to choose
TABLE_4 = [
    ("imagenet", 20_000, {0.003, 0.01, 0.03, 0.06}, "99%"),
    ("cifar100", 10_000, {0.001, 0.003, 0.01, 0.03}, "98%"),
    ("cifar10", 10_000, {0.001, 0.003, 0.01, 0.03}, "98%"),
    ("pets", 500, {0.001, 0.003, 0.01, 0.03}, "90%"),
    ("flowers", 500, {0.001, 0.003, 0.01, 0.03}, "90%"),
]


class Pretend(data.Source):
    """A data set of the right size: real ones of these sizes cannot be had in a test."""

    def __init__(self, spec):
        self.spec, self.fingerprint = spec, "none"
        self.num_classes, self.size = EXAMPLES[spec.split("[")[0]]
        self.class_names = tuple(map(str, range(self.num_classes)))

    def __len__(self):
        return self.size

    def origins(self):
        return []  # of 300 million records


@pytest.fixture
def setup_of(monkeypatch):
    """Prepares a config with data sets of the paper's sizes and without a checkpoint."""
    monkeypatch.setattr(specs, "open_source", lambda spec, **_: Pretend(spec))

    def prepare(config):
        configuration.check(config)
        return set_up(shallow(config))

    return prepare


def shallow(config):
    """The configuration with two layers, or units per stage, of those that its variant has."""
    config = config.copy_and_resolve_references()
    model = models.get_config(config.model.variant)
    if isinstance(model, models.ResNetConfig):
        config.model.depths = tuple(min(depth, 2) for depth in model.depths)
    elif config.model.num_layers is None:
        config.model.num_layers = min(model.num_layers, 2)
    return config


TRACED = set()
#: Of the paper's rows, one of each kind; the rest: pytest -m long tests/test_configs.py
ROWS_TRACED = (
    ("B/16", IMAGENET, 300), ("H/14", JFT, 14), ("R50x1", JFT, 7), ("R50+B/32", JFT, 7),
    ("L/16", I21K, 90),
)  # fmt: skip


def trace_one_step(setup):
    """One training step by shapes only, at full width. Each program once, whatever its data."""
    c, model = setup.config, setup.program.model
    key = (
        models.replace(model, num_classes=1, labels=()),
        *(c.optimizer.name, c.loss.name, str(c.objective)),
        *(bool(c.mixup_alpha), c.polyak_decay is None, c.accumulation_steps > 1),
    )
    if key in TRACED:
        return
    TRACED.add(key)
    before = setup.program.abstract_state
    after, metrics = jax.eval_shape(setup.program.train_step, before, abstract_batch(setup))
    same = jax.tree.map(lambda a, b: (a.shape, a.dtype) == (b.shape, b.dtype), before, after)
    assert all(jax.tree.leaves(same))
    assert metrics["train/loss"].shape == ()


@pytest.mark.parametrize("target", ["mean_colour", "downsized", "pixels"])
def test_masked_patches(setup_of, target):
    """B.1.2: B/16, batch 4096, Adam at 2e-4, 10k warm-up steps, cosine, 1M steps."""
    c = configuration.load(f"configs/masked_patch.py:B/16,jft,target={target}")
    setup = setup_of(c)
    assert (c.batch_size, c.schedule.learning_rate, c.schedule.decay) == (4096, 2e-4, "cosine")
    assert (setup.plan.total_steps, setup.plan.warmup_steps) == (1_000_000, 10_000)
    outputs = {"mean_colour": 512, "downsized": 8192, "pixels": 768}[target]
    kernel = setup.program.abstract_state.params["objective/dense_0/kernel"]
    assert kernel.shape == (768, outputs)
    trace_one_step(setup)
    assert dict(c.objective) == {"name": "masked_patches", "target": target}


table_3 = pytest.mark.parametrize("row", TABLE_3, ids=lambda row: f"{row[0]}-{row[1]}-{row[2]}")


@table_3
def test_table_3(row, setup_of):
    variant, dataset, epochs, rate, decay, weight_decay, dropout = row
    c = configuration.load(f"configs/pretrain.py:{variant},{dataset},{epochs}")
    setup = setup_of(c)
    assert c.batch_size == 4096
    assert dict(c.optimizer) == {
        "name": "adam", "beta1": 0.9, "beta2": 0.999, "weight_decay": weight_decay
    }  # fmt: skip
    assert (c.schedule.learning_rate, c.schedule.decay) == (rate, decay)
    assert (setup.plan.warmup_steps, setup.program.model.image_size) == (10_000, (224, 224))
    assert getattr(setup.program.model, "dropout_rate", None) == dropout
    assert c.gradient_clip_norm == (1.0 if dataset == IMAGENET else None)
    assert c.loss.name == "sigmoid_cross_entropy"
    examples = EXAMPLES[c.data.dataset][1]
    assert setup.plan.total_steps == round(epochs * examples / 4096)
    if decay == "linear":
        assert float(setup.plan.schedule(setup.plan.total_steps)) == pytest.approx(1e-5)
    if hasattr(setup.program.model, "representation_size"):
        assert setup.program.model.representation_size == setup.program.model.hidden_size
    if row[:3] in ROWS_TRACED:
        trace_one_step(setup)


@pytest.mark.long
@table_3
def test_every_row_of_table_3_traces(row, setup_of):
    variant, dataset, epochs, *_ = row
    trace_one_step(
        setup_of(configuration.load(f"configs/pretrain.py:{variant},{dataset},{epochs}"))
    )


def test_the_default_epochs_are_the_papers():
    def epochs(argument):
        return configuration.load(f"configs/pretrain.py:{argument}").total_epochs

    assert [epochs(a) for a in ("B/16,jft", "H/14,jft", "L/16,imagenet21k", "B/32,imagenet")] == [
        7.0, 14.0, 90.0, 300.0
    ]  # fmt: skip


@pytest.mark.parametrize("variant", ["B/16", "R50+B/32"])
@pytest.mark.parametrize("row", TABLE_4, ids=lambda row: row[0])
def test_table_4(row, variant, setup_of):
    dataset, steps, sweep, held_out = row
    c = configuration.load(f"configs/finetune.py:{variant},{dataset}")
    setup = setup_of(c)
    assert (c.batch_size, setup.plan.total_steps, setup.program.model.image_size) == (
        512,
        steps,
        (384, 384),
    )
    assert (c.optimizer.name, c.optimizer.momentum, c.optimizer.weight_decay) == ("sgd", 0.9, 0.0)
    assert c.optimizer.accumulator_dtype == "bfloat16"
    assert (c.schedule.decay, c.gradient_clip_norm) == ("cosine", 1.0)
    assert c.schedule.learning_rate in sweep
    assert set(c.sweep.learning_rates) == sweep  # what `vit-jax sweep` reads
    assert c.sweep.held_out_percent == 100 - float(held_out.rstrip("%"))
    assert setup.program.model.representation_size is None
    assert c.polyak_decay is None
    dev = configuration.load(f"configs/finetune.py:{variant},{dataset},dev=true")
    assert dev.data.train_split == f"train[:{held_out}]"
    assert dev.data.eval_split == f"train[{held_out}:]"
    trace_one_step(setup)


def test_patches_of_14_take_what_they_divide_of_384_pixels(setup_of):
    setup = setup_of(configuration.load("configs/finetune.py:H/14,pets"))
    assert setup.program.model.image_size == (378, 378)


@pytest.mark.parametrize(
    ("variant", "size", "grid"), [("L/16", 512, (32, 32)), ("H/14", 518, (37, 37))]
)
def test_table_2_runs_at_higher_resolution_with_polyak(variant, size, grid, setup_of):
    c = configuration.load(f"configs/finetune.py:{variant},imagenet,{size}")
    setup = setup_of(c)
    assert (setup.program.model.grid, c.polyak_decay) == (grid, 0.9999)
    trace_one_step(setup)


@pytest.mark.parametrize("file", ["quickstart.py", "from_scratch_small.py:digits"])
def test_small_configs(file):
    c = configuration.load(f"configs/{file}")
    for stage in (c, c.pretrain) if c.pretrain is not None else (c,):
        configuration.check(stage)
        trace_one_step(set_up(stage))


ABLATIONS = runpy.run_path("configs/ablation.py")["ROWS"]


TRACED_ABLATIONS = (
    "table7/R50x1-sgd",
    "table8/relative",
    "fig8/patch-56",
    "fig9/gap-3e-4",
    "fig13/Axial-B/32",
    "fig13/Axial-R50x1",
)


@pytest.mark.parametrize("row", ABLATIONS)
def test_ablations(row, setup_of):
    """Every row of Tables 7 and 8 and Figures 8, 9 and 13 is a model that can be trained."""
    c = configuration.load(f"configs/ablation.py:{row}")
    setup = setup_of(c)
    for key, value in ABLATIONS[row].items():
        if key not in ("sgd", "linear_head", "learning_rate", "variant"):
            found = getattr(setup.program.model, key)
            assert value in (found, found[0] if isinstance(found, tuple) else None)
    assert setup.program.model.variant == ABLATIONS[row]["variant"]
    assert c.schedule.learning_rate == ABLATIONS[row].get("learning_rate", c.schedule.learning_rate)
    if row in TRACED_ABLATIONS:
        trace_one_step(setup)


def test_table_7_sgd_is_bit():
    c = configuration.load("configs/ablation.py:table7/R152x2-sgd")
    assert c.optimizer.to_dict() == {
        "name": "sgd", "weight_decay": 1e-4, "accumulator_dtype": "float32"
    }  # fmt: skip
    assert c.schedule.learning_rate == pytest.approx(0.48)
    edges = [round(40 * percent / 100, 9) for percent in c.schedule.boundaries_percent]
    assert edges == [10, 23, 30, 37]
    adam = configuration.load("configs/ablation.py:table7/R152x2-adam")
    assert (adam.optimizer.name, adam.schedule.learning_rate) == ("adam", 6e-4)


# size class: steps, warm-up, where the rate is divided by ten, mixup
@pytest.mark.parametrize(
    "argument, rule, size",
    [
        ("R50x1,tfds:oxford_iiit_pet", (500, 100, [200, 300, 400], 0.0), 384),
        ("R50x1,tfds:cifar10", (10_000, 500, [3000, 6000, 9000], 0.1), 128),
        ("R152x4,tfds:imagenet2012", (20_000, 500, [6000, 12_000, 18_000], 0.1), 384),
        ("R50x1,folder:/x,0,30000", (10_000, 500, [3000, 6000, 9000], 0.1), 384),
    ],
)
def test_bit_hyperrule(argument, rule, size):
    c = configuration.load(f"configs/bit_hyperrule.py:{argument}")
    configuration.check(c)
    steps, warmup, edges, mixup = rule
    assert (c.total_steps, c.schedule.warmup_steps, c.mixup_alpha) == (steps, warmup, mixup)
    assert [round(steps * p / 100) for p in c.schedule.boundaries_percent] == edges
    assert (c.model.image_size, c.batch_size, c.schedule.learning_rate) == (size, 512, 0.003)
    assert c.augment.resize == {128: 160, 384: 448}[size]


def test_few_shot_trains_on_a_part_and_watches_another_set():
    c = configuration.load("configs/few_shot.py:B/32,jft,9000000")
    configuration.check(c)
    assert c.data.train_split == "train[:9000000]" and c.data.eval_split == "validation"
    assert (c.schedule.learning_rate, c.optimizer.weight_decay) == (8e-4, 0.1)
    assert c.evaluators.fewshot.data == "tfds:imagenet2012"
    assert c.evaluators.fewshot.shots == (5, 10)
    held = configuration.load("configs/few_shot.py:B/32,imagenet21k,9000000")
    assert held.data.eval_split == "train[:102400]"  # not among what is trained on
    assert held.data.train_split == "train[102400:9102400]"
    own = configuration.load("configs/few_shot.py:B/32,digits,500,digits")
    assert own.data.train_split == "train[:500]" and own.data.eval_split == "test"
    assert configuration.load("configs/few_shot.py").data.train_split == "train"


@pytest.mark.parametrize("task", vtab.TASKS)
def test_vtab(task):
    """Section 4.1 and BiT: one set of hyper-parameters, with flips and crops where they may be."""
    c = configuration.load(f"configs/vtab.py:B/16,{task}")
    configuration.check(c)
    assert (c.total_steps, c.batch_size, c.schedule.learning_rate) == (2500, 512, 0.01)
    assert (c.model.image_size, c.schedule.decay, c.gradient_clip_norm) == (384, "cosine", 1.0)
    assert (c.data.train_split, c.data.eval_split) == ("train800val200", "test")
    no_flip = ("dsprites_orientation", "dsprites_location", "smallnorb_azimuth")
    no_crop = ("clevr_count", "clevr_distance", "dmlab", "kitti_distance", "dsprites_location")
    assert c.augment.flip == (task not in no_flip)
    assert c.augment.name == ("resize_flip" if task in no_crop else "resize_crop")
    data.make_transform(size=(384, 384), train=True, **c.augment.to_dict())
    dev = configuration.load(f"configs/vtab.py:B/16,{task},dev=true")
    assert (dev.data.train_split, dev.data.eval_split) == ("train800", "val200")


def test_own_data_takes_the_row_of_small_sets():
    c = configuration.load("configs/finetune.py:B/32,folder:/data/x,224")
    assert (c.data.dataset, c.total_steps, c.model.image_size) == ("folder:/data/x", 500, 224)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("configs/finetune.py:B/16,cifar", "Did you mean 'cifar10'"),
        ("configs/pretrain.py:B/16,imagenet21", "Did you mean 'imagenet21k'"),
        ("configs/pretrain.py:X/16,jft", "variant='X/16' has no entry"),
    ],
)
def test_unknown_rows(source, message):
    with pytest.raises(UserError, match=message):
        configuration.load(source)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("model.variant", "B16", "There is no variant 'B16'. Did you mean 'B/16'"),
        ("model.image_size", "30", "not divisible by the patch size 4; .* to 28 or 32"),
        ("batch_size", "100", "does not divide by 8 devices x 1 accumulation steps; 96 would"),
        ("augment.name", "pad_crp", "Did you mean 'pad_crop'"),
        ("augment.padding", "2", "padding"),
        ("augment.size", "(3, 3)", "augment.size is a setting that pad_crop does not read"),
        ("eval_preprocess.size", "(3, 3)", "size is a setting that resize does not read"),
        ("augment", "{}", "config.augment.name must be set"),
        ("loss", "None", "config.loss=None must be a section"),
        ("evaluators", "None", "config.evaluators=None must be a section"),
        ("schedule", "{}", "config.schedule.boundaries_percent is missing; begin with vit_jax"),
        ("optimizer.momentun", "0.5", "optimizer.momentun is a setting that sgd does not read"),
        ("loss.name", "softmax", "config.loss.name='softmax' does not exist"),
        ("schedule.decay", "cos", "Did you mean 'cosine'"),
        ("schedule.warmup_steps", "100000", "does not fit a run"),
        ("mesh.fsdp", "3", "does not cover 8 devices"),
        ("compute_dtype", "float16", "must be auto, float32 or bfloat16"),
        ("data.dataset", "folder:/nowhere", "nowhere"),
        ("data.train_split", "train", "belong together"),
        ("init_from", "/nowhere", "There is no checkpoint at '/nowhere'"),
        ("model.num_classes", "3", "less than the 10 classes"),
    ],
)
def test_bad_settings_are_one_line_before_anything_runs(key, value, message):
    c = configuration.load("configs/quickstart.py", {key: value})
    c.pretrain = None
    with pytest.raises(UserError, match=message) as error:
        set_up(c)
    assert "\n" not in str(error.value)


def test_dtypes_of_a_state_are_float32():
    c = configuration.load("configs/quickstart.py", {"compute_dtype": "bfloat16"})
    state = set_up(c).program.abstract_state
    assert {leaf.dtype for leaf in state.params.values()} == {jnp.dtype("float32")}
    assert models.get_config("B/16").dtype == "float32"
