"""A study in one file: two learning rates."""

from matplotlib.figure import Figure

from vit_jax import config


def trials(dataset="digits"):
    found = {}
    for rate in (0.01, 0.1):
        c = config.load("configs/quickstart.py", {"pretrain": "None", "data.dataset": dataset})
        c.schedule.learning_rate = rate
        found[f"rate_{rate:g}"] = c
    return found


def draw(outcomes):
    figure = Figure()
    axes = figure.subplots()
    for name, outcome in outcomes.items():
        steps = [record["step"] for record in outcome.records]
        axes.plot(steps, [record["train/loss"] for record in outcome.records], label=name)
    axes.set(xlabel="step", ylabel="loss")
    axes.legend()
    return figure
