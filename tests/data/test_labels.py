"""Classes are matched by name, in one function."""

import numpy as np
import pytest

from vit_jax import data
from vit_jax.data.labels import match_classes
from vit_jax.data.relabel import with_classes
from vit_jax.data.remarks import check_labelled, withheld
from vit_jax.data.source import shared_records
from vit_jax.errors import UserError


@pytest.mark.parametrize(
    "ours, theirs, numbers, by",
    [
        ("abc", "abc", [0, 1, 2], "same"),
        ("abc", "cab", [2, 0, 1], "name"),
        ("abc", "cb", [2, 1], "name"),
        ("012", "012", [0, 1, 2], "same"),
        ("012", "20", [2, 0], "name"),
        ("abc", "012", [0, 1, 2], "number"),  # their names are not known
        ("abc", "20", [2, 0], "number"),
        ("012", "abc", [0, 1, 2], "number"),  # ours are not known
        (["caf\u00e9", "b"], ["b", "cafe\u0301"], [1, 0], "name"),
    ],
)
def test_classes_are_matched_by_name(ours, theirs, numbers, by):
    found = match_classes(ours, theirs, there="x[test]")
    assert found.by == by and found.numbers.dtype == np.int32
    assert found.numbers.tolist() == numbers


@pytest.mark.parametrize(
    "ours, theirs, message",
    [
        ("abc", "abd", "x.test. has the class 'd', which the model does not know .1 of 3"),
        ("abc", "abcd", "has the class 'd'"),
        ("abc", "03", "has the class '0'"),
        ("01", "abc", "has the class 'a'"),
        ("abc", ["00", "01"], "has the class '00'"),  # a name
        (["1", "2"], ["a", "b"], "has the class 'a'"),  # numbers that do not count from 0
        (["Cat"], ["cat"], "has the class 'cat'.*Did you mean 'Cat'"),
        (["crane", "b", "crane"], ["b", "crane"], "the model has two classes called 'crane'"),
    ],
)
def test_other_classes_are_refused(ours, theirs, message):
    """Also where there are as many."""
    with pytest.raises(UserError, match=message):
        match_classes(ours, theirs, there="x[test]")


def source(labels, names, spec="s"):
    images = np.zeros((len(labels), 2, 2, 3), np.uint8)
    return data.ArraySource(images, labels, names, spec=spec)


def test_a_source_with_renumbered_classes():
    inner = source([0, 1, 2, 0], ["a", "b", "c"])
    assert with_classes(inner, inner.class_names, "train") is inner
    mapped = with_classes(inner, ("c", "a", "z", "b"), "train")
    assert [mapped[i]["label"] for i in range(4)] == mapped.labels.tolist() == [1, 3, 0, 1]
    assert (mapped.num_classes, mapped.names()) == (4, inner.names())
    assert mapped.fingerprint != inner.fingerprint
    assert shared_records(mapped, inner) == 4
    assert mapped.find({inner.names()[2]}).tolist() == [2]
    withheld_too = with_classes(source([-1, 0], ["a", "b"]), ("b", "a"), "train")
    assert [withheld_too[i]["label"] for i in range(2)] == withheld_too.labels.tolist() == [-1, 1]
    with pytest.raises(UserError, match="record s/1 has the label 5, outside"):
        with_classes(source([0, 5], ["a", "b"]), ("b", "a"), "train")[1]


class Unknown(data.Source):
    """Labels that are known record by record only, as of TFDS."""

    def __init__(self, labels):
        self.given, self.spec = labels, "u"

    def __len__(self):
        return len(self.given)

    def __getitem__(self, index):
        return {"label": self.given[index], "name": f"u/{index}"}


@pytest.mark.parametrize("kind", [lambda labels: source(labels, ["a", "b"], "u"), Unknown])
def test_records_without_labels_are_named(kind):
    assert withheld(kind([-1, -1])) and not withheld(kind([0, 1]))
    check_labelled(kind([0, 1, 0]))
    with pytest.raises(UserError, match=r"u: the record u/1 has no label .-1 or none.; choose"):
        check_labelled(kind([0, -1, 1]))
