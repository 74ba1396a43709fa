"""The verb `completion`: a script that completes verbs, options and their choices in bash, zsh or fish (ours).

It is made from the parser itself, so that it cannot go out of date: `eval "$(dualslm completion bash)"`.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping

from dualslm.errors import visible

SHELLS = ("bash", "zsh", "fish")

# `compgen -f` completes files, which most arguments are
BASH = """\
_dualslm() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" before="${{COMP_WORDS[COMP_CWORD-1]}}" verb="" one
  for one in "${{COMP_WORDS[@]:1:COMP_CWORD-1}}"; do
    case "$one" in -*) ;; *) verb="$one"; break ;; esac
  done
  local words=""
  case "$verb:$before" in
{values}
  esac
  if [ -z "$words" ]; then
    case "$verb" in
{verbs}
      *) words="{top}" ;;
    esac
    case "$verb:$word" in :*|*:-*) ;; *) words="" ;; esac
  fi
  COMPREPLY=($(compgen -W "$words" -- "$word"))
  [ -n "$verb" ] && case "$word" in -*) ;; *) COMPREPLY+=($(compgen -f -- "$word")) ;; esac
}}
complete -o filenames -F _dualslm dualslm
"""


def add_completion(parser: argparse.ArgumentParser, whole: Callable[[], argparse.ArgumentParser]) -> None:
    """Adds the options of `completion`.

    Args:
        parser: parser of the verb.
        whole: function that gives the parser of the whole command line.
    """
    parser.add_argument("shell", choices=SHELLS, help='for example: eval "$(dualslm completion bash)"')

    def show(args: argparse.Namespace) -> int:
        made = {"bash": bash, "zsh": lambda parser: ZSH + bash(parser), "fish": fish}[args.shell](whole())
        print(visible(made), end="")
        return 0

    parser.set_defaults(verb=show)


ZSH = "autoload -Uz bashcompinit && bashcompinit\n"  # zsh runs bash's completion functions through this


def verbs_of(parser: argparse.ArgumentParser) -> Mapping[str, argparse.ArgumentParser]:
    """The parser of each verb, by its name."""
    (found,) = (action for action in parser._actions if isinstance(action, argparse._SubParsersAction))
    return dict(found.choices)


def options_of(parser: argparse.ArgumentParser) -> dict[str, list[str]]:
    """The options of a parser that its help shows, each with its choices."""
    return {
        name: [str(one) for one in action.choices or ()]
        for action in parser._actions
        if action.help != argparse.SUPPRESS
        for name in action.option_strings
        if name.startswith("--")
    }


def bash(parser: argparse.ArgumentParser) -> str:
    """The script for bash."""
    verbs = verbs_of(parser)
    values, names = [], []
    for verb, own in verbs.items():
        options = options_of(own)
        positional = [str(one) for action in own._actions if not action.option_strings for one in action.choices or ()]
        names.append(f'      {verb}) words="{" ".join([*options, *positional])}" ;;')
        values += [f'    {verb}:{name}) words="{" ".join(some)}" ;;' for name, some in options.items() if some]
    top = " ".join([*verbs, *options_of(parser)])
    return BASH.format(values="\n".join(values), verbs="\n".join(names), top=top)


def fish(parser: argparse.ArgumentParser) -> str:
    """The script for fish."""
    verbs = verbs_of(parser)
    lines = [f"complete -c dualslm -n __fish_use_subcommand -f -a '{' '.join(verbs)}'"]
    for verb, own in verbs.items():
        for name, choices in options_of(own).items():
            more = f" -x -a '{' '.join(choices)}'" if choices else ""
            lines.append(f"complete -c dualslm -n '__fish_seen_subcommand_from {verb}' -l {name.lstrip('-')}{more}")
    return "\n".join(lines) + "\n"
