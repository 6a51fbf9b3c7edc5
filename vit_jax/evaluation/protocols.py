"""The table of evaluators. Each is a function in its own file with its own options.

`def NAME(forward, data, *, option=default, ...) -> Result`: see forward.py, data_sets.py and
result.py. Config keys, flags, `--help` and the reference of docs/evaluation.md follow from the
signature and the docstring, see options.py.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from vit_jax.data.source import Source
from vit_jax.errors import UserError
from vit_jax.evaluation import classification, fewshot, knn, objectnet, probe, real
from vit_jax.evaluation.data_sets import DataSets
from vit_jax.evaluation.forward import Forward
from vit_jax.evaluation.result import Result

Evaluator = Callable[..., Result]
EVALUATORS: dict[str, Evaluator] = {
    "classification": classification.classification,
    "fewshot": fewshot.fewshot,
    "knn": knn.knn,
    "probe": probe.probe,
    "real": real.real,
    "objectnet": objectnet.objectnet,
}
#: Those that read the training and the evaluation split of every data set.
FROM_FEATURES = (fewshot.fewshot, knn.knn, probe.probe)


def evaluate(
    evaluator: Evaluator, forward: Forward, data: DataSets, options: Mapping[str, object]
) -> Result:
    """Runs an evaluator.

    Raises:
      UserError: it returns something else.
    """
    found = evaluator(forward, data, **options)
    if not isinstance(found, Result):
        raise UserError(
            f"The evaluator {evaluator.__name__} returns {type(found).__name__} instead of a "
            "vit_jax.evaluation.result.Result."
        )
    return found


def sources(evaluator: Evaluator, data: DataSets, options: Mapping[str, object]) -> list[Source]:
    """Opens the data of an evaluator, to check them before slow work.

    Raises:
      UserError: a data set does not exist, or is not for this evaluator.
    """
    if evaluator is classification.classification:
        return classification.sources(data, options)
    if evaluator is objectnet.objectnet:
        root = objectnet.root_of(data.one_spec())
        return [objectnet.open_objectnet(root, objectnet.class_map(root))]
    if evaluator is real.real:
        return [real.open_real(data, str(options["real_labels"]))[0]]
    if evaluator in FROM_FEATURES:
        return [part for spec in data.specs for part in data.training_and_evaluation(spec)]
    return data.parts()
