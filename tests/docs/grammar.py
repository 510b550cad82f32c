"""Hold a command line of a document against the real argparse parsers, also where the reader must fill something in."""

import argparse
import contextlib
import io
import re
from collections.abc import Iterator, Sequence

import cmbert.cli
import data_tools.cli
from tests.docs.documents import LAUNCHERS, OURS, Command

PARSERS = {"cmbert": cmbert.cli.build_parser, "data_tools": data_tools.cli.build_parser}


def our_part(command: Command) -> tuple[str, ...] | None:
    """Return a command of ours from "cmbert" or "data_tools" on, without what launches it; None if there is none."""
    words = command.words
    if words[0] in OURS:
        return words
    for number, word in enumerate(words):
        is_module = words[number - 1 : number] in (("-m",), ("--module",), ("slurm/run.sh",))
        if word in OURS and (is_module or words[0] in LAUNCHERS):
            return words[number:]
        if words[0] == "sbatch" and re.fullmatch(r"slurm/stage[12]\.sh", word) and number + 1 < len(words):
            return ("cmbert", "train", *words[number + 1 :])
        if words[0] == "sbatch" and word == "slurm/evaluate.sh":
            return ("cmbert", *words[number + 1 :])
    return None


def faults(command: Command) -> list[str]:
    """Return what is wrong with the command of ours in `command`, nothing if it parses."""
    words = our_part(command)
    if words is None:
        return []
    parser = PARSERS[words[0]]()
    parts = _subcommand(parser, words[1:])
    if parts is None:
        return [f"no such command: {' '.join(words[:3])}"]
    leaf, rest = parts
    known = {option for action in leaf._actions for option in action.option_strings}
    unknown = [word for word in rest if re.match(r"\[?--\w", word) and word.strip("[]").partition("=")[0] not in known]
    if unknown:
        return [f"unknown option: {', '.join(unknown)}"]
    is_elided = any("..." in word and not re.fullmatch(r"\w+\.\.\.\]*", word) for word in rest)
    if is_elided or (command.is_inline and _misses_only(leaf, rest)):
        return []
    message = _parse(parser, (words[1], *(_filled(word) for word in words[2:])))
    return [message] if message else []


def _subcommand(
    parser: argparse.ArgumentParser, words: Sequence[str]
) -> tuple[argparse.ArgumentParser, Sequence[str]] | None:
    """Follow the names of subcommands; return the last one's parser and the words after its name."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            if not words:
                return None
            if words[0] not in action.choices:
                return None
            return _subcommand(action.choices[words[0]], words[1:])
    return parser, words


def _misses_only(leaf: argparse.ArgumentParser, rest: Sequence[str]) -> bool:
    """Return whether a command in a sentence is only named, as in `cmbert ledger --show`: options, no arguments."""
    required = [a for a in leaf._actions if a.required]
    named = {word for word in rest if word.startswith("--")}
    values = [word for word in rest if not word.startswith("--")]
    return bool(required) and not values and not any(set(a.option_strings) & named for a in required)


def _filled(word: str) -> str:
    """Put something of the right kind into a placeholder: a number for N and its like, else the word as a name."""
    word = word.strip("[]").removesuffix("...").strip("[]")
    return "1" if re.fullmatch(r"[NIMS]", word) else word


def _parse(parser: argparse.ArgumentParser, words: Sequence[str]) -> str:
    """Return argparse's complaint, or nothing."""
    said = io.StringIO()
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            parser.parse_args(list(words))
        except SystemExit as stop:
            return said.getvalue().strip().splitlines()[-1] if stop.code else ""
    return ""


def named_paths(command: Command) -> Iterator[str]:
    """Yield the paths of this repository that a command names: recipes, scripts, DeepSpeed files, tests, modules."""
    for word in command.words:
        for part in re.split(r"[=,\s]", word):
            if re.match(r"(recipes|slurm|ds_configs|examples|tests|docs|cmbert|data_tools)/", part):
                if not part.startswith("slurm/logs/"):  # made by jobs
                    yield part
            elif part.startswith("tests."):
                yield part.replace(".", "/") + ".py"
            elif part in ("constraints.txt",):
                yield part
