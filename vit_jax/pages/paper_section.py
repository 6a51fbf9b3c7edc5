"""The paper's numbers beside those of a run or an evaluation, as a section of their pages."""

from __future__ import annotations

import re
from collections.abc import Mapping
from html import escape
from pathlib import Path

from vit_jax import files
from vit_jax.config import flatten
from vit_jax.pages import paper
from vit_jax.pages.paper import IN21K, Known, Match

#: Published weights by parts of their names, in this order; those of other papers have no row.
PUBLISHED = {
    r"augreg": "ImageNet-21k (AugReg)",
    r"-bit-|bit_models": "another data set (BiT)",
    r"^\S+-imagenet(21k)?$|vit_models/imagenet21k|google/vit-(base|large|huge)-patch": IN21K,
}


def section(workdir: Path, evaluation: Mapping[str, object]) -> str:
    """A table of results in `evaluation` that the paper reports too; "" if no row corresponds.

    workdir: of a run, or of an evaluation; its files identify the model.
    """
    found = [
        (data, ours, match)
        for data, ours, known in facts(workdir, evaluation)
        for match in paper.matches(known, data)
    ]
    if not found:
        return ""
    vtab = any(data.lower().startswith("vtab") for data, _, _ in found)
    heads = ["data", "here", "paper", "difference", "of", "BiT-L", "Noisy Student"]
    heads += ["VIVI", "S4L"] if vtab else []
    rows = "".join(_row(data, ours, match, vtab) for data, ours, match in found)
    notes = (
        "Variant, data set and image size are those of the paper's row. BiT-L and Noisy Student "
        "are other models, as Table 2 quotes them."
        + (" VIVI and S4L are in Figure 2 only, without numbers." if vtab else "")
    )
    return (
        "<section><h2>Beside the paper</h2><div class=scroll><table class=wide><thead><tr>"
        + "".join(f"<th scope=col>{head}</th>" for head in heads)
        + f"</tr></thead><tbody>{rows}</tbody></table></div><p class=facts>{notes}</p></section>"
    )


def _row(data: str, ours: float, match: Match, vtab: bool) -> str:
    cell = match.cell
    digits = 1 if cell.table == "9" else 2
    deviation = f" ± {cell.deviation:.2f}" if cell.deviation is not None else ""
    of = f"Table {cell.table}, {cell.variant}{f', {match.condition}' if match.condition else ''}"
    cells = [
        f"{ours:.2f}%",
        f"{cell.value:.{digits}f}%{deviation}",
        f"{ours - cell.value:+.{digits}f}",
        of,
        *paper.others(data),
        *(("–", "–") if vtab else ()),
    ]
    name = data.removeprefix("vtab:")
    return (
        f"<tr><th scope=row>{escape(name)}</th>"
        + "".join(f"<td>{escape(text)}</td>" for text in cells)
        + "</tr>"
    )


def facts(workdir: Path, evaluation: Mapping[str, object]) -> list[tuple[str, float, Known]]:
    """(the data's name in tables, percent, the model) for results of an evaluation."""
    found = []
    for name, record in evaluation.items():
        if isinstance(record, Mapping):
            checkpoint = str(record.get("checkpoint") or workdir)
            known = model_of(checkpoint, record)
            measured = paper.measured({name: record})
            found += [(data, value, known) for data, value in measured.items()]
    return found


def model_of(checkpoint: str, record: Mapping[str, object]) -> Known:
    """Facts about a checkpoint: a workdir, a published name, or anything else.

    record: of its evaluation, which may have "variant" and "image_size".
    """
    directory = Path(checkpoint).expanduser()
    model = _json(directory / "model" / "config.json") or _json(directory / "config.json")
    if model.get("format") != "vit_jax":
        model = {}
    size = record.get("image_size") or model.get("image_size") or (0, 0)
    sides = set(size) if isinstance(size, list | tuple) else {size}
    shape = str(record.get("variant") or model.get("variant") or "")
    if not is_as_published(model, shape):
        shape = ""
    embedding = (
        str(model.get("position_embedding", "1d")),
        str(model.get("position_embedding_at", "stem")),
    )
    side = sides.pop() if len(sides) == 1 else 0
    known = Known(shape, side if isinstance(side, int) else 0, embedding=embedding)
    return origin(checkpoint, known)


def is_as_published(model: Mapping[str, object], variant: str) -> bool:
    """Whether a model's configuration, as far as known, matches its variant's row."""
    row = paper.TABLE_1.get(variant.rpartition("+")[2].partition("/")[0])
    keys = ("num_layers", "hidden_size", "mlp_dim", "num_heads")
    same = all(
        model.get(key, value) == value for key, value in zip(keys, row or (), strict=bool(row))
    )
    return same and model.get("classifier", "token") == "token"


def origin(checkpoint: str, known: Known) -> Known:
    """`known`, with the pre-training data of a checkpoint, if its name or its run says so."""
    config = flatten(_json(Path(checkpoint).expanduser() / "config.json"))
    if "data.dataset" not in config:
        for pattern, data in PUBLISHED.items():
            if re.search(pattern, checkpoint):
                return known._replace(pretrained=data)
        return known
    before = {
        key.removeprefix("pretrain."): value
        for key, value in config.items()
        if key.startswith("pretrain.")
    }
    source = str(config.get("init_from") or "")
    if not before and source:
        before = flatten(_json(Path(source).expanduser() / "config.json"))
        if "data.dataset" not in before:
            return origin(source, known)
    if not before:
        return known._replace(pretrained="nothing")
    if before.get("init_from") or before.get("pretrain"):
        return known._replace(pretrained="several data sets")
    if before.get("objective.name", "classification") != "classification":
        return known._replace(pretrained="no labels")
    data = str(before["data.dataset"])
    epochs = before.get("total_epochs")
    return known._replace(
        pretrained=paper.PRETRAINING.get(":".join(data.split(":")[:2]), data),
        epochs=int(epochs) if isinstance(epochs, float | int) else None,
        optimizer=str(before.get("optimizer.name") or ""),
    )


def _json(file: Path) -> dict:
    found = files.read_json(file) if file.is_file() else None
    return found if isinstance(found, dict) else {}
