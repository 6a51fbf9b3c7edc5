"""The accuracy of the class that a model knows least: an evaluator in one file of its own."""

from vit_jax.evaluation.classification import classify
from vit_jax.evaluation.data_sets import DataSets
from vit_jax.evaluation.forward import Forward
from vit_jax.evaluation.result import Result


def worst_class(forward: Forward, data: DataSets, *, at_least: int = 1) -> Result:
    """The class with the lowest accuracy, and how low it is.

    Args:
      at_least: classes with fewer examples do not count.
    """
    source = data.open()
    rows = [row for row in classify(forward, source, data).classes if row["examples"] >= at_least]
    worst = min(rows, key=lambda row: row["correct"] / row["examples"])
    accuracy = worst["correct"] / worst["examples"]
    return Result(
        record={"data": source.spec, "class": worst["class"], "accuracy": accuracy},
        table=[f"worst class of {source.spec}: {worst['class']}, {100 * accuracy:.2f}%"],
        metrics={"accuracy": accuracy},
    )
