"""`vit_jax.train`: what `vit-jax train` does, from a program or a notebook."""

from __future__ import annotations

from pathlib import Path

from vit_jax import config as configuration
from vit_jax.errors import UserError
from vit_jax.training import own_data, run


def train(
    what: str | Path,
    workdir: str | Path = "",
    *,
    recipe: str = "paper",
    new: bool = False,
    **settings,
) -> Path:
    """Trains to the end, from wherever an earlier call stopped; returns the run's directory.

    Args:
      what: data, such as "folder:/data/pets", or a config file, such as "quickstart.py".
      workdir: of the run; if `what` is data, the default is ./runs/NAME-DATE.
      recipe, new: only if `what` is data, as the flags of `vit-jax train`.
      settings: those of the configuration: `total_steps=100`, `**{"schedule.decay": "cosine"}`.

    Raises:
      UserError: the configuration, the data or the directory is not usable.
      Preempted: asked to stop; the state is saved, and the same call continues.
    """
    what = str(what)
    given = {key: own_data.as_text(value) for key, value in settings.items()}
    if what.partition(":")[0].endswith(".py"):
        if not workdir or recipe != "paper" or new:
            raise UserError(f"{what} is a config: it needs a workdir, and takes no recipe or new.")
        config = configuration.load(what, given)
    else:
        chosen = own_data.recipe(what, given, recipe)
        config, note = chosen.config(), "workdir:"
        if not workdir:
            workdir, note = own_data.find_workdir(config, what, new=new)
        own_data.show(chosen, workdir, note)
    run.train(config, workdir)
    return Path(workdir).expanduser()
