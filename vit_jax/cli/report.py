"""vit-jax report: the page of a run, also while it goes; several runs compared on one page.

example:
  vit-jax report /runs/pets
  vit-jax report runs/pets-2026-11-30 runs/pets-2026-11-30-2 --out=rates.html

Of one run it writes RUN/report.html anew, as training does while it goes. Of several it writes
comparison.html into this directory, or beside one that is there: their curves over each other,
their results, and the settings in which they differ. An --out that exists is left as it is.
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
        raise UsageError("a run is needed: `vit-jax report RUN...`.")
    from vit_jax.pages import compare, report

    if flags.out and os.path.lexists(flags.out):
        raise UserError(f"--out={flags.out} exists and is left as it is; name another file.")
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
