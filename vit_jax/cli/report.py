"""vit-jax report: the page of a run, finished or not; several runs compared on one page.

example:
  vit-jax report /runs/pets
  vit-jax report runs/pets-2026-11-30 runs/pets-2026-11-30-2 --out=rates.html

For one run it rewrites RUN/report.html, as training does. For several it writes comparison.html
into this directory, or comparison-2.html if that exists, ...: curves, results, and the settings in
which they differ. An existing --out is not overwritten.
"""

from __future__ import annotations

import os
from pathlib import Path

from absl import flags as absl_flags

from vit_jax import files
from vit_jax.cli import options
from vit_jax.errors import UsageError, UserError


def define(flags: absl_flags.FlagValues) -> None:
    absl_flags.DEFINE_string("out", None, "The page, a new file.", flag_values=flags)


def main(flags: absl_flags.FlagValues, arguments: list[str]) -> None:
    if not arguments:
        raise UsageError("give a run: `vit-jax report RUN...`.")
    from vit_jax.pages import compare, report

    if flags.out and os.path.lexists(flags.out):
        raise UserError(f"--out={flags.out} exists and is not overwritten; choose another file.")
    if flags.out and not flags.out.endswith((".html", ".htm")):
        raise UserError(f"--out={flags.out} must end in .html.")
    if len(arguments) == 1 and not flags.out:
        print(report.write_report(compare.check_run(arguments[0])))
        return
    if len(arguments) == 1:
        text = report.render(compare.check_run(arguments[0]))
    else:
        text = compare.render(arguments)
    place = Path(flags.out) if flags.out else options.free(Path("comparison.html"))
    files.write_text(place, text)
    print(place)
