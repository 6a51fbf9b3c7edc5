"""vit-jax doctor: check the installation, devices, data, configurations and checkpoints.

example:
  vit-jax doctor
  vit-jax doctor --devices   # small collectives over all devices of the job
  vit-jax doctor --checkpoint=/runs/pets --config=configs/quickstart.py
  vit-jax doctor --data=folder:/data/pets --out=pets.html  # a page of the data

--out is a new page of the data set: images of every class, counts, sizes, unreadable files,
near-duplicates between the splits, and labels that look alike. Images are read for at most a
minute; for large data sets that is a random part, as the page says.

Under SLURM, on GKE and on Cloud TPU, run it like the job itself: it joins the other processes, or
says which are missing. Exits with 1 if anything is wrong.
"""

from __future__ import annotations

from pathlib import Path

from absl import flags as absl_flags

from vit_jax.cli import options
from vit_jax.errors import UsageError, counted, printable


def define(flags: absl_flags.FlagValues) -> None:
    absl_flags.DEFINE_bool("devices", False, "Run collectives.", flag_values=flags)
    options.define_checkpoint(flags)
    options.define_data(flags)
    absl_flags.DEFINE_string("out", None, "A new .html page of --data.", flag_values=flags)
    options.define_config(flags)
    options.define_processes(flags)


def main(flags: absl_flags.FlagValues, arguments: list[str]) -> int:
    config = options.read_config(flags) if flags.config else None
    if flags.set and not flags.config:
        raise UsageError("--config.KEY=VALUE changes a setting of --config=FILE; give both.")
    for name in ("out", "data_dir"):
        if flags[name].present and not flags.data:
            raise UsageError(f"--{name} is for --data=SPEC.")

    from vit_jax.doctor import checkpoints, data, data_page, machine

    page = Path(flags.out) if flags.out else None
    if page:
        data_page.check(page)
    wrong = 0

    def report(findings) -> None:
        nonlocal wrong
        for finding in findings:
            mark = {True: "ok", False: "WRONG", None: ""}[finding.ok]
            wrong += finding.ok is False
            print(f"  {mark:<6} {finding.name:<22} {printable(finding.text)}", flush=True)

    report(machine.installation())
    report(machine.holders())
    with options.processes(flags):
        import jax

        checks = [machine.devices]
        if flags.devices:
            checks.append(machine.collectives)
        if flags.checkpoint:
            checks.append(lambda: checkpoints.checkpoint(flags.checkpoint))
        if flags.data:
            checks.append(lambda: data.dataset(flags.data, flags.data_dir))
        if page and jax.process_index() == 0:
            checks.append(lambda: data_page.write(flags.data, flags.data_dir, page))
        if config is not None:
            checks.append(lambda: data.configuration(config))
        for check in checks:
            findings = list(check())  # every process takes part; one reports on the job
            if jax.process_index() == 0 or any(f.ok is False for f in findings):
                report(findings)
    print("no problems found" if not wrong else f"{counted(wrong, 'problem')} found", flush=True)
    return 1 if wrong else 0
