"""``bitcrown completion SHELL``: what a shell asks to complete commands and options.

Made from the parser itself, so there is no second list of options. Files are completed by the shell
wherever a word does not begin with a dash.
"""

from __future__ import annotations

import argparse
from typing import Any

from bitcrown.cli.exit_codes import DONE

_BASH = """# eval "$(bitcrown completion bash)"
_bitcrown() {{
  local word="${{COMP_WORDS[COMP_CWORD]}}" words
  COMPREPLY=()
  if [ "$COMP_CWORD" -eq 1 ]; then
    COMPREPLY=($(compgen -W "{commands}" -- "$word"))
    return
  fi
  case "${{COMP_WORDS[1]}}" in
{cases}
    *) words="" ;;
  esac
  case "$word" in
    -*) COMPREPLY=($(compgen -W "$words" -- "$word")) ;;
  esac
}}
complete -o default -F _bitcrown bitcrown"""
_FISH = "complete -c bitcrown"


def add_completion_command(commands: Any) -> None:
    parser = commands.add_parser("completion", help="completion of commands and options by a shell")
    parser.add_argument("shell", choices=("bash", "zsh", "fish"), help="put its output into eval")
    parser.set_defaults(run=lambda options: _completion(options, commands.choices))


def _completion(options: argparse.Namespace, commands: dict[str, argparse.ArgumentParser]) -> int:
    flags = {
        name: [
            flag
            for action in parser._actions
            for flag in action.option_strings
            if flag.startswith("--")
        ]
        for name, parser in commands.items()
    }
    if options.shell == "fish":
        for name, found in flags.items():
            print(f"{_FISH} -n __fish_use_subcommand -a {name}")
            for flag in found:
                print(f"{_FISH} -n '__fish_seen_subcommand_from {name}' -l {flag[2:]}")
        return DONE
    cases = "\n".join(f'    {name}) words="{" ".join(found)}" ;;' for name, found in flags.items())
    if options.shell == "zsh":
        print("autoload -U +X bashcompinit && bashcompinit")
    print(_BASH.format(commands=" ".join(flags), cases=cases))
    return DONE
