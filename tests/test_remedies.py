"""What a message tells people to type exists: the command, its options and what they are given."""

import argparse
import ast
import re
import shlex
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import cmbert.cli
import data_tools.cli
from cmbert.checkpoint.files import require_checkpoint
from cmbert.data.shards.manifest import read_manifest
from cmbert.errors import CheckpointError, ConfigError, ShardError
from cmbert.tokenizer import load_tokenizer
from cmbert.transfer.tasks.task import find_task

ROOT = Path(__file__).parents[1]
PARSERS = {"cmbert": cmbert.cli.build_parser, "data_tools": data_tools.cli.build_parser}
VALUE = "1"  # what stands for a value: a number, and a path as good as any
OF_OTHERS = {"--local", "--error-unmatch", "--only", "--long"}  # --local_rank of launchers; git's, pip's, zstd's


def texts_of(path: Path) -> Iterator[tuple[int, str]]:
    """Yield line and text of every string of a program that is no docstring, VALUE in place of what is filled in."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    parts = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in ast.walk(node)}
    docstrings = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            shown = [part.value if isinstance(part, ast.Constant) else VALUE for part in node.values]
            yield node.lineno, "".join(map(str, shown))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and not {id(node)} & (parts | docstrings):
            yield node.lineno, node.value


def all_texts() -> list[tuple[str, str]]:
    files = [path for package in PARSERS for path in sorted((ROOT / package).rglob("*.py"))]
    return [(f"{path.relative_to(ROOT)}:{line}", text) for path in files for line, text in texts_of(path)]


TEXTS = all_texts()
TYPED = r"`((?:cmbert|data_tools) [^`]+)`|^((?:cmbert|data_tools) [a-z-]+ \S.*)"
COMMANDS = [(where, quoted or whole) for where, text in TEXTS for quoted, whole in re.findall(TYPED, text)]


def options_of(parser: argparse.ArgumentParser) -> set[str]:
    found = set()
    for action in parser._actions:
        found |= set(action.option_strings)
        if isinstance(action, argparse._SubParsersAction):
            found |= set().union(*(options_of(command) for command in action.choices.values()))
    return found


def commands_of(parser: argparse.ArgumentParser) -> set[str]:
    return {name for a in parser._actions if isinstance(a, argparse._SubParsersAction) for name in a.choices}


@pytest.mark.parametrize(("where", "command"), COMMANDS, ids=[where for where, _ in COMMANDS])
def test_a_command_in_a_message_is_one_that_its_parser_takes(where: str, command: str) -> None:
    """One without arguments names a command; one with any can be typed once its CAPITALS are filled in."""
    program, *words = shlex.split(re.sub(r"\b[A-Z][A-Z_.]+\b", VALUE, command))
    parser = PARSERS[program]()
    assert words[0] in commands_of(parser)
    if words[1:]:
        parser.parse_args(words)


def test_every_option_in_a_text_exists() -> None:
    known = set().union(*(options_of(parser()) for parser in PARSERS.values())) | OF_OTHERS
    unknown = {(where, option) for where, text in TEXTS for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", text)
               if option not in known}  # fmt: skip
    assert not unknown


def test_messages_name_no_file_of_a_clone() -> None:
    """Whoever installed the wheel has none, unless the message says so."""
    files = r"constraints\.txt|\b(?:recipes|ds_configs|slurm|examples)/[\w/]+\.\w+"
    shown = {(where, text) for where, text in TEXTS if re.search(files, text) and "clone" not in text}
    assert {where.partition(":")[0] for where, _ in shown} <= {
        "cmbert/commands/bench.py",  # the default recipe: without it the message says where recipes are
        "cmbert/config/schema.py",  # the default DeepSpeed file, likewise
        "cmbert/config/deepspeed.py",  # ds_configs/README.md: a document
    }


def typed(error: type[Exception], call: Callable[[], object]) -> argparse.Namespace:
    """Return what the command in an error's text parses to, its CAPITALS filled in."""
    with pytest.raises(error) as found:
        call()
    (command,) = re.findall(r"`([^`]+)`", str(found.value))
    program, *words = shlex.split(re.sub(r"\b(TEXT|TOKENIZER|SHARDS)\b", VALUE, command))
    return PARSERS[program]().parse_args(words)


def test_text_where_shards_should_be(tmp_path: Path) -> None:
    text = tmp_path / "my text"
    text.mkdir()
    (text / "a.txt").write_text("今天", encoding="utf-8")
    options = typed(ShardError, lambda: read_manifest(text))
    assert [str(path) for path in options.inputs] == [str(text)]
    assert options.output != text, "nobody is to preprocess into the text"
    for path in (text / "a.txt", tmp_path / "nothing"):
        options = typed(ShardError, lambda path=path: read_manifest(path))
        assert str(path) in map(str, [options.output, *options.inputs])


def test_no_tokenizer(tmp_path: Path) -> None:
    assert str(typed(ConfigError, lambda: load_tokenizer(tmp_path / "new one")).output) == str(tmp_path / "new one")
    assert typed(ConfigError, lambda: load_tokenizer(tmp_path)).output != tmp_path, "something lies there"


def test_an_export_or_a_young_run_where_a_checkpoint_should_be(tmp_path: Path) -> None:
    (tmp_path / "resolved.toml").write_text("", encoding="utf-8")
    options = typed(CheckpointError, lambda: require_checkpoint(tmp_path))
    assert str(options.recipe) == str(tmp_path / "resolved.toml")
    (tmp_path / "config.json").write_text("{}", encoding="utf-8")
    (tmp_path / "README.md").write_text("## Stage 1: first\n\n## Stage 2: 第二\n", encoding="utf-8")
    with pytest.raises(
        CheckpointError, match=r"weights alone.*; name the run that it was made of \('第二' by its card\)"
    ):
        require_checkpoint(tmp_path)


@pytest.mark.parametrize("name", [path.stem for path in sorted((ROOT / "recipes" / "tasks").glob("*.toml"))])
def test_shipped_tasks_go_by_name(name: str) -> None:
    assert find_task(name).name == name
    with pytest.raises(ConfigError, match=f"no such file; {name} is shipped, without .toml"):
        find_task(f"recipes/of/a/clone/{name}.toml")


def test_the_wheel_has_the_shipped_tasks() -> None:
    with (ROOT / "pyproject.toml").open("rb") as file:
        shipped = tomllib.load(file)["tool"]["setuptools"]["package-data"]
    setup = (ROOT / "setup.py").read_text(encoding="utf-8")
    for package, folder in (("cmbert.recipes.tasks", "recipes/tasks"), ("cmbert.ds_configs", "ds_configs")):
        assert f'"{package}": "{folder}"' in setup
        assert shipped[package] == [f"*{path.suffix}" for path in [next((ROOT / folder).glob("*.[tj]*"))]]
