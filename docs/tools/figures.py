"""The pictures of README.md and docs/questions.md, a function each, on scikit-learn's digits.

  python docs/tools/figures.py              # all; some take minutes
  python docs/tools/figures.py norm patches # some

Each prints its numbers and writes docs/images/NAME.png. What is trained is the paper's model in
miniature, by the package's own functions: `models.as_functions`, and Adam with a cosine schedule.
"""

import functools
import os
import sys
from pathlib import Path
from typing import NamedTuple

import cv2
import jax
import jax.numpy as jnp
import numpy as np
import optax

from vit_jax import models
from vit_jax.data.kinds.digits import open_digits
from vit_jax.inspection import embeddings, walk
from vit_jax.inspection.figures import overlay
from vit_jax.interop import load
from vit_jax.models import adapt, cost
from vit_jax.numerics import plain
from vit_jax.pages import paper
from vit_jax.pages.figures import hide_axes, import_matplotlib, new_figure
from vit_jax.runtime.logbook import read_metrics

IMAGES = Path(__file__).parent.parent / "images"
VIT = dict(patch_size=4, hidden_size=64, num_layers=3, mlp_dim=128, num_heads=4)


def digits(split, size=16, permutation=None):
    """Images (n, size, size, 3) in [-1, 1] and labels; a permutation (64,) moves the 8x8 pixels."""
    source = open_digits("", None, {}).splits[split]
    images = source.images.astype(np.float32) / 127.5 - 1
    if permutation is not None:
        images = images.reshape(-1, 64, 3)[:, permutation].reshape(-1, 8, 8, 3)
    return np.asarray(images.repeat(size // 8, 1).repeat(size // 8, 2)), source.labels


def config_of(variant="debug", size=16, **changes):
    shape = VIT if variant == "debug" else {}
    return models.get_config(variant, num_classes=10, image_size=size, **shape | changes)


def accuracy(apply, params, images, labels):
    """Percent."""
    return 100 * float((jnp.argmax(apply(params, images), -1) == labels).mean())


def mean_loss(params, images, labels, apply):
    logits = apply(params, images)
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


@functools.cache
def updates_of(apply, steps, rate, warmup, frozen, watched):
    """The optimizer, and one update as a compiled function."""
    schedule = optax.warmup_cosine_decay_schedule(0, rate, warmup, steps)
    optimizer = optax.adam(lambda count: schedule(count + 1))

    @jax.jit
    def step(params, state, images, labels):
        loss, gradients = jax.value_and_grad(mean_loss)(params, images, labels, apply)
        moves = {k: jnp.zeros_like(g) if k in frozen else g for k, g in gradients.items()}
        updates, state = optimizer.update(moves, state)
        norm = jnp.linalg.norm(gradients[watched])
        return optax.apply_updates(params, updates), state, loss, norm

    return optimizer, step


class Record(NamedTuple):
    """What `train` notes: of each step its loss and the norm of a gradient; (step, accuracy)."""

    losses: list[float]
    norms: list[float]
    curve: list[tuple[int, float]]


def train(apply, params, data, *, steps=800, rate=1.5e-3, warmup=100, batch=64, seed=0,
          frozen=(), watched="head/bias", test=None):  # fmt: skip
    """Adam with a cosine schedule; parameters in `frozen` stay as they are.

    Args:
      watched: the parameter whose gradient is noted.
      test: images and labels that the accuracy is noted on, every twenty steps and at the end.

    Returns:
      The parameters and a Record.
    """
    images, labels = data
    optimizer, step = updates_of(apply, steps, rate, warmup, tuple(frozen), watched)
    state, rng, record = optimizer.init(params), np.random.default_rng(seed), Record([], [], [])
    epochs = steps * batch // len(labels) + 2
    order = np.concatenate([rng.permutation(len(labels)) for _ in range(epochs)])
    for i in range(steps):
        if test and i % 20 == 0:
            record.curve.append((i, accuracy(apply, params, *test)))
        rows = order[i * batch : (i + 1) * batch]
        params, state, loss, norm = step(params, state, images[rows], labels[rows])
        record.losses.append(float(loss))
        record.norms.append(float(norm))
    if test:
        record.curve.append((steps, accuracy(apply, params, *test)))
    return params, record


@functools.cache
def functions(config):
    init, apply = models.as_functions(config)
    return jax.jit(init), jax.jit(apply, static_argnames="return_intermediates")


def build(config, seed=0):
    """Parameters, and apply."""
    init, apply = functions(config)
    return init(jax.random.key(seed)), apply


def save(figure, name):
    figure.savefig(IMAGES / f"{name}.png", dpi=150)


def panels(columns, width=5.4, height=2.5):
    figure, axes = new_figure(1, columns, width, height)
    for cell in axes.flat:
        cell.spines[["top", "right"]].set_visible(False)
    return figure, axes[0]


def class_token():
    """How the class token is trained: what reaches it, and what it comes to look at."""
    config = config_of()
    data, test = digits("train"), digits("test")
    figure, (left, right) = panels(2)
    untrained, apply = build(config)
    for frozen, label in (((), "trained"), (("class_token",), "kept at zero")):
        params, record = train(
            apply, untrained, data, frozen=frozen, watched="class_token", test=test
        )
        norms = record.norms
        print(f"class token {label}: {record.curve[-1][1]:.1f}%; its gradient at step 1 "
              f"{norms[0]:.1e}, at 2 {norms[1]:.1e}, largest {max(norms):.2f}")  # fmt: skip
        left.plot(*zip(*record.curve, strict=True), label=label)
        if not frozen:
            trained = params
            right.semilogy(range(2, 801), norms[1:], lw=0.8)
    left.set(xlabel="step", ylabel="test accuracy (%)", ylim=(0, 102))
    left.legend(title="class token", frameon=False)
    right.set(xlabel="step", ylabel="gradient norm", title="of the class token")
    save(figure, "class_token")

    figure, axes = new_figure(3, 6, 5.4, 3.0)
    for row, params in ((1, untrained), (2, trained)):
        _, out = apply(params, test[0][:6], return_intermediates=("attention",))
        maps = np.asarray(out["attention"])[-1].mean(axis=1)[:, 0, 1:].reshape(-1, 4, 4)
        for i in range(6):
            axes[0, i].imshow(test[0][i] / 2 + 0.5)
            axes[row, i].imshow(maps[i], cmap="magma", vmin=0, vmax=0.25)
    for cell in axes.flat:
        hide_axes(cell)
    for row, name in enumerate(("image", "at first", "trained")):
        axes[row, 0].set_ylabel(name, fontsize=11)
    save(figure, "class_token_attention")


def bias():
    """A ViT and a ResNet on few and many digits, as they are and with their pixels shuffled."""
    permutation = np.random.default_rng(0).permutation(64)
    sizes = (50, 200, 1437)
    figure, axes = panels(2)
    titles = ((None, "digits"), (permutation, "pixels shuffled"))
    for cell, (moved, title) in zip(axes, titles, strict=True):
        test = digits("test", permutation=moved)
        images, labels = digits("train", permutation=moved)
        for variant, style in (("debug", "o-"), ("debug-resnet", "s--")):
            rows = []
            for size in sizes:
                found = []
                for seed in range(2):
                    some = np.random.default_rng(seed).permutation(len(labels))[:size]
                    params, apply = build(config_of(variant), seed)
                    params, _ = train(apply, params, (images[some], labels[some]),
                                      steps=200, batch=50, warmup=50, seed=seed)  # fmt: skip
                    found.append(accuracy(apply, params, *test))
                mean, deviation = np.mean(found), np.std(found)
                rows.append((mean, deviation))
                print(f"bias: {title}, {variant}, {size} images: {mean:.1f} ± {deviation:.1f}")
            means, deviations = np.array(rows).T
            label = "ViT" if variant == "debug" else "ResNet"
            cell.errorbar(sizes, means, deviations, fmt=style, label=label, capsize=3)
        cell.set(xscale="log", xlabel="training images", title=title, ylim=(30, 101))
        cell.set_xticks(sizes, map(str, sizes))
        cell.minorticks_off()
    axes[0].set_ylabel("test accuracy (%)")
    axes[0].legend(frameon=False, loc="lower right")
    save(figure, "bias")


def positions():
    """Position embeddings at other sizes, without any fine-tuning."""
    config = config_of()
    params, apply = build(config)
    params, _ = train(apply, params, digits("train"))
    path = "position_embedding/0/embedding"
    sizes = (8, 16, 24, 32, 48, 64)
    print(f"positions: at 16 pixels {accuracy(apply, params, *digits('test')):.1f}%")
    rng, rows = np.random.default_rng(0), {"interpolated": [], "corner": [], "none": []}
    for size in sizes:
        grid = (size // 4, size // 4)
        larger = config_of(size=size)
        _, at_size = functions(larger)
        old = np.asarray(params[path])
        made = adapt.resize_position_embedding(old, grid)
        # As if positions had been numbered: the old ones in a corner, the rest untrained.
        corner = rng.normal(0, 0.02, made.shape).astype(np.float32)
        corner[:, 0] = old[:, 0]
        least = min(grid[0], 4)
        inside = corner[0, 1:].reshape(*grid, -1)
        inside[:least, :least] = old[0, 1:].reshape(4, 4, -1)[:least, :least]
        for name, value in (("interpolated", made), ("corner", corner), ("none", 0 * made)):
            rows[name].append(accuracy(at_size, params | {path: value}, *digits("test", size)))
    for name, values in rows.items():
        print(f"positions: {name} at {sizes}: {[round(v, 1) for v in values]}")
    figure, (left, right) = panels(2)
    left.set_axis_off()
    resized = params | {path: adapt.resize_position_embedding(old, (12, 12))}
    tiles = (
        (0.0, embeddings.position_similarity(config, params)[1, 1], "4x4 grid"),
        (0.55, embeddings.position_similarity(config_of(size=48), resized)[4, 4], "12x12 grid"),
    )
    for x, tile, name in tiles:
        inner = left.inset_axes((x, 0.25, 0.45, 0.5))
        inner.imshow(tile, vmin=-1, vmax=1)
        inner.set_title(name, fontsize=10)
        hide_axes(inner)
    left.text(0.5, 0.08, "similarity to one position", ha="center", transform=left.transAxes)
    labels = {"interpolated": "interpolated", "corner": "not resized", "none": "none"}
    for (name, values), style in zip(rows.items(), ("o-", "s--", "^:"), strict=True):
        right.plot(sizes, values, style, label=labels[name])
    right.set(xlabel="pixels (trained at 16)", ylabel="test accuracy (%)", ylim=(0, 102))
    right.legend(frameon=False, fontsize=9)
    save(figure, "positions")


def forward(params, images, *, depth, norm_first=True):
    """Eq. 1 to 4 with the norm before each branch, or after each sum as in Transformers of 2017."""

    def dense(name, x):
        kernel = params[f"{name}/kernel"]
        return jnp.tensordot(x, kernel, 1) + params[f"{name}/bias"]

    def norm(name, x):
        return plain.norm(x, params[f"{name}/scale"], params[f"{name}/bias"], 1e-6)

    b, size = images.shape[:2]
    kernel = params["patch_embedding/kernel"]
    p, n = kernel.shape[0], size // kernel.shape[0]
    x = images.reshape(b, n, p, n, p, 3).transpose(0, 1, 3, 2, 4, 5).reshape(b, n * n, -1)
    z = x @ kernel.reshape(x.shape[-1], -1) + params["patch_embedding/bias"]
    token = jnp.broadcast_to(params["class_token"], (b, 1, z.shape[-1]))
    z = jnp.concatenate([token, z], 1) + params["position_embedding/0/embedding"]
    for i in range(depth):
        for branch in ("attention", "mlp"):
            name = f"blocks/{i}/{branch}"
            x = norm(f"{name}_norm", z) if norm_first else z
            if branch == "attention":
                y = dense(f"{name}/out", plain.attention(dense(f"{name}/qkv", x)))
            else:
                y = dense(f"{name}/dense2", jax.nn.gelu(dense(f"{name}/dense1", x)))
            z = z + y if norm_first else norm(f"{name}_norm", z + y)
    y = norm("encoder_norm", z)[:, 0] if norm_first else z[:, 0]
    return dense("head", y)


def norm():
    """The norm before each branch, or after each sum: gradients before training, and accuracy."""
    depth, rates, seeds = 12, (3e-4, 1e-3, 3e-3), 3
    data, test = digits("train"), digits("test")
    config = config_of(num_layers=depth)
    images, labels = (part[:256] for part in data)
    params, _ = build(config)
    # The head is zero at first, so that no gradient passes it; a random one shows the rest.
    kernel = 0.1 * jax.random.normal(jax.random.key(1), params["head/kernel"].shape)
    params = params | {"head/kernel": kernel}
    figure, (left, right) = panels(2)
    for norm_first, style, label in ((True, "o-", "before (ViT)"), (False, "s--", "after")):
        run = jax.jit(functools.partial(forward, depth=depth, norm_first=norm_first))
        gradients = jax.jit(jax.grad(mean_loss), static_argnums=3)(params, images, labels, run)
        norms = [
            float(jnp.linalg.norm(gradients[f"blocks/{i}/mlp/dense1/kernel"])) for i in range(depth)
        ]
        left.semilogy(range(1, depth + 1), norms, style, label=label)
        print(f"norm {label}: gradient by block {[float(f'{x:.3g}') for x in norms]}")
        found = np.zeros((len(rates), seeds))
        for i, seed in np.ndindex(found.shape):
            untrained, _ = build(config, seed)
            trained, _ = train(run, untrained, data, steps=400, rate=rates[i], seed=seed)
            found[i, seed] = accuracy(run, trained, *test)
        (line,) = right.semilogx(rates, found.mean(1), style, label=label)
        right.vlines(rates, found.min(1), found.max(1), color=line.get_color())
        print(f"norm {label}: accuracy at {rates}, a row for each: {found.round(1).tolist()}")
    left.set(xlabel="block", ylabel="gradient norm", xticks=range(2, depth + 1, 2))
    right.set(xlabel="learning rate", ylabel="test accuracy (%)", ylim=(0, 102))
    right.set_xticks(rates, [f"{rate:g}" for rate in rates])
    right.minorticks_off()
    left.legend(title="norm", frameon=False)
    save(figure, "norm")


def data_size():
    """ImageNet after pre-training on more and more images, from Table 5 of the paper."""
    sizes = {paper.IN: 1.3, paper.IN21K: 14, paper.JFT: 303}
    column = paper.TABLE_5_COLUMNS.index(paper.IN)
    figure, (cell,) = panels(1, 5.4, 2.9)
    for variant, style in (("B/32", "o:"), ("B/16", "o-"), ("L/32", "s:"), ("L/16", "s-")):
        values = [paper.TABLE_5[name][variant][column] for name in sizes]
        cell.plot(list(sizes.values()), values, style, label=variant)
    cell.set(xscale="log", xlabel="pre-training images (millions)", ylabel="ImageNet top-1 (%)")
    cell.set_xticks(list(sizes.values()), ["1.3", "14", "303"])
    cell.minorticks_off()
    cell.legend(frameon=False)
    save(figure, "data_size")


def patches():
    """What patches cost: MACs of B at 224 pixels, and the share of attention's products."""
    sizes = (56, 32, 28, 16, 14, 8, 4, 2, 1)
    base = models.get_config("B/16", num_classes=1000)
    macs, shares = [], []
    for size in sizes:
        config = models.replace(base, patch_size=(size, size))
        tokens = config.num_tokens
        macs.append(cost.forward_macs(config) / 1e9)
        shares.append(100 * 12 * 2 * tokens * tokens * 768 / 1e9 / macs[-1])
        print(f"patches: {size}x{size}, {tokens} tokens, {macs[-1]:.3g} GMACs, "
              f"{shares[-1]:.0f}% of them in attention")  # fmt: skip
    figure, (left, right) = panels(2)
    left.loglog(sizes, macs, "o-")
    left.set(xlabel="patch (pixels)", ylabel="GMACs per image", title="B at 224 pixels")
    right.plot(sizes, shares, "o-")
    right.set(xlabel="patch (pixels)", ylabel="share of attention (%)", xscale="log")
    for cell in (left, right):
        cell.set_xticks((1, 4, 16, 56), ("1", "4", "16", "56"))
        cell.minorticks_off()
    save(figure, "patches")


def patches_of_digits():
    """Accuracy by patch size; prints only."""
    data, test = digits("train"), digits("test")
    for size in (16, 8, 4):
        params, apply = build(config_of(patch_size=size))
        params, _ = train(apply, params, data, steps=400)
        print(f"patches: digits, patches of {size}: {accuracy(apply, params, *test):.1f}%")


def embedding():
    """E: its filters as images, before and after training."""
    config = config_of(patch_size=8)
    params, apply = build(config)
    kernels = {"at first": np.asarray(params["patch_embedding/kernel"])}
    params, _ = train(apply, params, digits("train"))
    kernels["trained"] = np.asarray(params["patch_embedding/kernel"])
    figure, axes = new_figure(2, 7, 5.4, 1.9)
    for row, (name, kernel) in zip(axes, kernels.items(), strict=True):
        images, share = embeddings.filter_components(kernel)
        print(f"E {name}: {share[:7].sum():.0%} of the variance in seven components")
        for i, cell in enumerate(row):
            cell.imshow(images[i].mean(-1), cmap="gray")
            hide_axes(cell)
        row[0].set_ylabel(name)
    save(figure, "embedding")


def families():
    """Figure 5 from Table 6's numbers: accuracy against the cost of pre-training."""
    columns = [paper.TABLE_6_COLUMNS.index(name) for name in paper.TABLE_7_COLUMNS]
    figure, (cell,) = panels(1, 5.4, 3.2)
    families = (("ViT", "o"), ("hybrid", "^"), ("ResNet", "s"))
    for family, marker in families:
        points = []
        for (variant, epochs), values in paper.TABLE_6.items():
            mine = "hybrid" if "+" in variant else "ResNet" if variant.startswith("R") else "ViT"
            if mine == family:
                mean = float(np.mean([values[i] for i in columns]))
                points.append((cost.TABLE_6[variant, epochs], mean))
        cell.plot(*zip(*sorted(points), strict=True), marker, label=family)
        print(f"families: {family}: {[(x, round(y, 2)) for x, y in sorted(points)]}")
    cell.set(xscale="log", xlabel="pre-training (exaFLOPs)", ylabel="mean of five data sets (%)")
    cell.legend(frameon=False, loc="lower right")
    save(figure, "families")


def overview():
    """README.md's picture: what configs/quickstart.py leaves in QUICKSTART (/tmp/quickstart)."""
    run = Path(os.environ.get("QUICKSTART", "/tmp/quickstart"))
    config, params = load.read(str(run))
    size = config.image_size[0]
    pixels = open_digits("", None, {}).splits["test"].images[1:7]
    pixels = np.stack([cv2.resize(image, (size, size)) for image in pixels])
    looked = walk.attention_stats(config, params, pixels / np.float32(127.5) - 1)
    _, apply = functions(config)
    probabilities = np.asarray(jax.nn.softmax(apply(params, pixels / np.float32(127.5) - 1)))

    import_matplotlib()
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.4, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    top, bottom = figure.subfigures(2, 1, height_ratios=(1.25, 1))
    left, right = top.subfigures(1, 2, width_ratios=(1.3, 1))
    cell, done = left.subplots(), 0
    for stage, label in ((run / "pretrain", "pre-training"), (run, "fine-tuning")):
        records = [r for r in read_metrics(stage / "metrics.jsonl") if "eval/accuracy" in r]
        curve = {done + r["step"]: 100 * r["eval/accuracy"] for r in records}
        cell.plot(list(curve), list(curve.values()), "o-", ms=3, label=label)
        done = max(curve)
        print(f"overview: {label}, step {done}: {curve[done]:.1f}%")
    cell.set(xlabel="step", ylabel="test accuracy (%)")
    cell.spines[["top", "right"]].set_visible(False)
    cell.legend(frameon=False)
    similarity = embeddings.position_similarity(config, params)
    rows, columns = config.grid
    right.suptitle("position embeddings", fontsize=10)
    for (i, j), tile in np.ndenumerate(right.subplots(rows, columns)):
        tile.imshow(similarity[i, j], vmin=-1, vmax=1)
        hide_axes(tile)
    bottom.suptitle("predictions, and the attention behind them (rollout)", fontsize=10)
    axes = bottom.subplots(2, 6)
    for i, image in enumerate(pixels):
        best = int(probabilities[i].argmax())
        axes[0, i].set_title(f"{best}: {100 * probabilities[i, best]:.0f}%", fontsize=10)
        axes[0, i].imshow(image)
        axes[1, i].imshow(overlay(image, looked.rollout[i], config.stride[0] / 2))
        hide_axes(axes[0, i])
        hide_axes(axes[1, i])
    save(figure, "overview")


FIGURES = (
    class_token,
    bias,
    data_size,
    positions,
    norm,
    patches,
    patches_of_digits,
    embedding,
    families,
    overview,
)


if __name__ == "__main__":
    IMAGES.mkdir(exist_ok=True)
    wanted = sys.argv[1:] or [f.__name__ for f in FIGURES]
    for function in FIGURES:
        if function.__name__ in wanted:
            function()
