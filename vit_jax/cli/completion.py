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

#: What differs: where the words of the line are, and how candidates are handed over. Settings and
#: flags that take a value get no space after them.
SHELLS = {
    "bash": (
        "",
        'local line=("${COMP_WORDS[@]}") number=$COMP_CWORD word=${COMP_WORDS[COMP_CWORD]}',
        """\
  COMPREPLY=($(compgen -W "$list" -- "$word"))
  if [[ ${#COMPREPLY[@]} == 1 && ${COMPREPLY[0]} == *[=.] ]]; then compopt -o nospace; fi""",
        "complete -o default -F _vit_jax vit-jax",
    ),
    "zsh": (
        "autoload -Uz compinit && compinit -u\n",
        """local -a line=("${words[@]:1}") all open closed
  local number=$((CURRENT - 1)) word=${words[CURRENT]}""",
        """\
  all=(${=list}) open=(${(M)all[@]:#*[=.]}) closed=(${all[@]:#*[=.]})
  compadd -S '' -- "${open[@]}"; compadd -- "${closed[@]}"
  if [[ -z $list || $word == *=* ]]; then compset -P '*='; _files; fi""",
        "compdef _vit_jax vit-jax",
    ),
}
SCRIPT = """\
{start}_vit_jax() {{
  {line}
  local list=""
  if ((number == 1)); then
    list="{commands} --help --version"
  elif [[ $word == --config.* ]]; then
    case ${{line[1]}} in {configured}) list="{settings}" ;; esac
  elif [[ $word == -* ]]; then
    case ${{line[1]}} in
{flags}
    esac
  fi
{end}
}}
{attach}
"""


def define(flags: absl_flags.FlagValues) -> None:
    del flags


def main(flags: absl_flags.FlagValues, arguments: list[str]) -> None:
    if len(arguments) != 1 or arguments[0] not in SHELLS:
        raise UsageError(f"name the shell: vit-jax completion {' or '.join(SHELLS)}.")
    print(script(arguments[0]), end="")


def script(shell: str) -> str:
    """The completion function of a shell."""
    rows, configured = [], []
    for name in cli.COMMANDS:
        flags = flags_of(name)
        words = [f"--{key}" if flags[key].boolean else f"--{key}=" for key in sorted(flags)]
        if "set" in flags:
            configured.append(name)
            words.append("--config.")
        rows.append(f'      {name}) list="{" ".join([*words, "--help"])}" ;;')
    start, line, end, attach = SHELLS[shell]
    return SCRIPT.format(
        start=start,
        line=line,
        end=end,
        attach=attach,
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
