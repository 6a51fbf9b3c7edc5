"""vit-jax completion: shell completion for bash and zsh.

example:
  source <(vit-jax completion bash)     # in ~/.bashrc
  source <(vit-jax completion zsh)      # in ~/.zshrc

Commands, their flags, and settings (--config.KEY=) are completed; values are
completed as file names. The script is generated once and does not run Python.
"""

from __future__ import annotations

import importlib

from absl import flags as absl_flags

from vit_jax import cli, settings
from vit_jax.errors import UsageError

SHELLS = ("bash", "zsh")
ZSH = "autoload -Uz compinit bashcompinit && compinit -u && bashcompinit\n"
SCRIPT = """\
_vit_jax() {{
  local word=${{COMP_WORDS[COMP_CWORD]}} words=""
  if ((COMP_CWORD == 1)); then
    words="{commands} --help --version"
  elif [[ $word == --config.* ]]; then
    case ${{COMP_WORDS[1]}} in {configured}) words="{settings}" ;; esac
  elif [[ $word == -* ]]; then
    case ${{COMP_WORDS[1]}} in
{flags}
    esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$word"))
  if [[ ${{#COMPREPLY[@]}} == 1 && ${{COMPREPLY[0]}} == *[=.] ]]; then compopt -o nospace; fi
}}
complete -o default -F _vit_jax vit-jax
"""


def define(flags: absl_flags.FlagValues) -> None:
    del flags


def main(flags: absl_flags.FlagValues, arguments: list[str]) -> None:
    if len(arguments) != 1 or arguments[0] not in SHELLS:
        raise UsageError(f"name the shell: vit-jax completion {' or '.join(SHELLS)}.")
    print((ZSH if arguments[0] == "zsh" else "") + script(), end="")


def script() -> str:
    """The completion function for bash, and for zsh through bashcompinit."""
    rows, configured = [], []
    for name in cli.COMMANDS:
        flags = flags_of(name)
        words = [f"--{key}" if flags[key].boolean else f"--{key}=" for key in sorted(flags)]
        if "set" in flags:
            configured.append(name)
            words.append("--config.")
        rows.append(f'      {name}) words="{" ".join([*words, "--help"])}" ;;')
    return SCRIPT.format(
        commands=" ".join(cli.COMMANDS),
        configured="|".join(configured),
        settings=" ".join(f"--config.{key}=" for key in settings.SETTINGS),
        flags="\n".join(rows),
    )


def flags_of(name: str) -> absl_flags.FlagValues:
    """The flags of a command."""
    flags = absl_flags.FlagValues()
    importlib.import_module(f"vit_jax.cli.{name}").define(flags)
    return flags
