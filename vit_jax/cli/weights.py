"""vit-jax weights: list published weights, and which are on this machine; download one.

example:
  vit-jax weights
  vit-jax weights get B/16-imagenet21k
  vit-jax train folder:/data/pets         # begins with what is here

`weights` lists names, size, the licence on their hub page, the paper's accuracy on ImageNet after
fine-tuning them at 384 pixels (Table 5), and whether they are on this machine; – if unknown.
`weights get NAME` downloads one into ~/.cache/vit_jax/weights (VIT_JAX_CACHE), or the cache of the
Hugging Face hub, and resumes a partial download. Every command then accepts the name:
--checkpoint=NAME, --config.init_from=NAME.
"""

from __future__ import annotations

from absl import flags as absl_flags

from vit_jax.errors import UsageError, UserError, nearest


def define(flags: absl_flags.FlagValues) -> None:
    del flags


def main(flags: absl_flags.FlagValues, arguments: list[str]) -> None:
    if not arguments:
        print("\n".join(table()))
        return
    action, *names = arguments
    if action != "get" or len(names) != 1:
        raise UsageError("usage: `vit-jax weights`, or `vit-jax weights get NAME`.")
    print(get(names[0]))


def table() -> list[str]:
    """The lines of the list."""
    from vit_jax.interop import load, published

    rows = [("name", "pixels", "classes", "MB", "licence", "ImageNet", "here")]
    for name, entry in published.PUBLISHED.items():
        accuracy = published.TABLE_5.get(name)
        rows.append(
            (
                name,
                str(entry.image_size),
                f"{entry.num_classes:,}",
                f"{entry.megabytes:,}",
                published.licence(entry) or "–",
                f"{accuracy:.2f}%" if accuracy else "–",
                "yes" if load.at_hand(name) else "no",
            )
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def get(name: str) -> str:
    """Downloads published weights; prints their path.

    Raises:
      UserError: no such name, or it cannot be downloaded.
    """
    from vit_jax.interop import load, published

    if name not in published.PUBLISHED:
        raise UserError(
            f"There are no published weights {name!r}.{nearest(name, published.PUBLISHED)} "
            "`vit-jax weights` lists them."
        )
    if (place := load.at_hand(name)) is not None:
        return f"{name} exists: {place}"
    entry = published.PUBLISHED[name]
    print(
        f"{name}: about {entry.megabytes:,} MB from {' or '.join(entry.sources)}",
        flush=True,
    )
    return f"{name}: {load.fetched(name)}"
