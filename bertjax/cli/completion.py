"""`bertjax completion`: a script that completes commands, options, shipped configurations and configuration keys.

The script is made from the table of commands and the configuration sections; it starts no Python while completing.
"""

import argparse
from collections.abc import Iterable
from typing import Any

from bertjax.cli import arguments as cli
from bertjax.cli.arguments import Command

# What the first argument of a command is, by its metavar; the script completes others as files.
_KINDS = {
    "CONFIG": "config", "CONFIG|MODEL": "config", "[NAME]": "name", "KIND": "kind", "SHELL": "shell",
    "MODEL": "folder", "RUN": "folder", "OUT": "folder",
}  # fmt: skip
_SCRIPT = """\
# {how}
_bertjax_files() {{  # files that match a pattern (default: all), and folders with a slash
    local name
    while IFS= read -r name; do
        if [[ -d $name ]]; then COMPREPLY+=("$name/"); _bertjax_open=1
        elif [[ -z $1 || $name == $1 ]]; then COMPREPLY+=("$name"); fi
    done < <(compgen -f -- "$cur")
}}

_bertjax() {{
    local cur=${{COMP_WORDS[COMP_CWORD]}} prev= first= second= command= at word
    local _bertjax_open= flags= kind= keys= stage=0
    [[ $COMP_CWORD -gt 0 ]] && prev=${{COMP_WORDS[COMP_CWORD-1]}}
    COMPREPLY=()
    for ((at = 1; at < COMP_CWORD; at++)); do
        word=${{COMP_WORDS[at]}}
        if [[ $word == -* ]]; then
            [[ " {valued} " == *" $word "* ]] && ((at++))
        elif [[ -z $first ]]; then first=$word
        else second=${{second:-$word}}; fi
    done
    if [[ -z $first ]]; then
        COMPREPLY=($(compgen -W "{commands} --help --version" -- "$cur"))
        return
    fi
    command=$first
    case $first in
{groups}
    help) [[ -z $second ]] && COMPREPLY=($(compgen -W "{commands}" -- "$cur")); return ;;
    esac
    case $command in
{cases}
    *) return ;;
    esac
    if [[ $cur == -* ]]; then
        COMPREPLY=($(compgen -W "$flags --help" -- "$cur"))
        return
    fi
    case "$command $prev" in
{values}
    esac
    if [[ -n $second && -n $keys ]]; then
        [[ $cur == *=* || $prev == "=" ]] && return
        if [[ $cur == stages.*.* ]]; then  # stages are also named: stages.qa.steps
            stage=${{cur#stages.}}; stage=${{stage%%.*}}
        fi
        COMPREPLY=($(compgen -W "{keys}" -S = -- "${{cur/#stages.$stage./stages.0.}}"))
        COMPREPLY=("${{COMPREPLY[@]/#stages.0./stages.$stage.}}")
        _bertjax_open=1
    else
        case $kind in
        config) COMPREPLY=($(compgen -W "{configs}" -- "$cur")); _bertjax_files '*.y*ml' ;;
        name) COMPREPLY=($(compgen -W "{configs}" -- "$cur")) ;;
        kind) [[ -z $second ]] && COMPREPLY=($(compgen -W "{kinds}" -- "$cur")) || _bertjax_files ;;
        shell) COMPREPLY=($(compgen -W "bash zsh" -- "$cur")) ;;
        folder) _bertjax_files '-' ;;
        *) _bertjax_files ;;
        esac
    fi
    [[ -n $_bertjax_open ]] && type compopt >/dev/null 2>&1 && compopt -o nospace 2>/dev/null
    return 0
}}
complete -F _bertjax bertjax
"""
_ZSH = "autoload -U +X compinit && compinit\nautoload -U +X bashcompinit && bashcompinit\n"
_HOW = {
    "bash": 'bash: eval "$(bertjax completion bash)" in ~/.bashrc',
    "zsh": 'zsh: eval "$(bertjax completion zsh)" in ~/.zshrc',
}


@cli.command(
    "completion",
    "print a script that completes bertjax commands in a shell",
    cli.option("shell", metavar="SHELL", choices=("bash", "zsh"), help="bash or zsh"),
    examples=('eval "$(bertjax completion bash)"', "bertjax completion bash > ~/.bertjax-completion"),
)
def completion(arguments: argparse.Namespace) -> int:
    return cli.print_result(completion_script(arguments.shell, arguments.commands.values()))


def completion_script(shell: str, commands: Iterable[Command]) -> str:
    """Return the script for `bash` or `zsh`, which loads the script for bash."""
    from bertjax.config.loading.shipped import shipped_configs

    listed = list(commands)
    groups: dict[str, list[str]] = {}
    for command in listed:
        first, _, second = command.name.partition(" ")
        groups.setdefault(first, []).extend([second] if second else [])
    script = _SCRIPT.format(
        how=_HOW[shell],
        commands=" ".join([*groups, "help"]),
        groups="\n".join(_group_case(first, seconds) for first, seconds in groups.items() if seconds),
        cases="\n".join(_command_case(command) for command in listed),
        values="\n".join(filter(None, map(_value_cases, listed))),
        configs=" ".join(shipped_configs()),
        keys=" ".join(override_keys()),
        kinds="classify tag qa pretrain t5",
        valued=" ".join(
            dict.fromkeys(
                flag
                for command in listed
                for names, settings in command.options
                for flag in names
                if flag.startswith("-") and _takes_value(settings)
            )
        ),
    )
    return (_ZSH if shell == "zsh" else "") + script.rstrip("\n")


def override_keys() -> list[str]:
    """Dotted keys of a configuration; those of stages with the index of the first one."""
    from bertjax.config.loading.introspect import key_paths
    from bertjax.config.schema.run import Config, Stage

    sections = {path.rsplit(".", 1)[0] for path in key_paths(Config) if "." in path}
    keys = [path for path in key_paths(Config) if path not in sections and "." in path]
    stage = [f"stages.0.{path}" for path in key_paths(Stage)]
    inner = {path.rsplit(".", 1)[0] for path in stage}
    return list(dict.fromkeys([*keys, *(path for path in stage if path not in inner)]))


def _group_case(first: str, seconds: list[str]) -> str:
    words = f'COMPREPLY=($(compgen -W "{" ".join(seconds)}" -- "$cur")); return'
    return f'    {first}) [[ -z $second ]] && {{ {words}; }}; command="$first $second" ;;'


def _command_case(command: Command) -> str:
    flags = " ".join(flag for names, _ in command.options for flag in names if flag.startswith("-"))
    positional = [settings["metavar"] for names, settings in command.options if not names[0].startswith("-")]
    kind = _KINDS.get(positional[0], "file") if positional else ""
    keys = "yes" if command.overrides else ""
    return f"    '{command.name}') flags='{flags}' kind='{kind}' keys='{keys}' ;;"


def _takes_value(settings: dict[str, Any]) -> bool:
    return settings.get("action") != "store_true"


def _value_cases(command: Command) -> str:
    """Lines that complete the values of options: choices, files or folders."""
    lines = []
    for names, settings in command.options:
        if not names[0].startswith("-") or not _takes_value(settings):
            continue
        pattern = " | ".join(f"'{command.name} {name}'" for name in names)
        if choices := settings.get("choices"):
            lines.append(f'    {pattern}) COMPREPLY=($(compgen -W "{" ".join(choices)}" -- "$cur")); return ;;')
        else:
            lines.append(
                f"    {pattern}) _bertjax_files; [[ -n $_bertjax_open ]] && compopt -o nospace 2>/dev/null; return ;;"
            )
    return "\n".join(lines)
