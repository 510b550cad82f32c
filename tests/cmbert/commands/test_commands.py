"""Every command is one file with `add` and `run`, and it is listed; what it needs it imports when it runs."""

import ast
import keyword
import pkgutil
from types import ModuleType

import pytest

import cmbert.cli
import cmbert.commands
import data_tools.cli
import data_tools.commands

PROGRAMS = [(cmbert.cli, cmbert.commands), (data_tools.cli, data_tools.commands)]
NO_COMMANDS = {"shared"}


@pytest.mark.parametrize(("program", "room"), PROGRAMS, ids=["cmbert", "data_tools"])
def test_every_command_is_a_file_with_add_and_run(program: ModuleType, room: ModuleType) -> None:
    files = {module.name for module in pkgutil.iter_modules(room.__path__)} - NO_COMMANDS
    assert files == {command.__name__.rpartition(".")[2] for command in program.COMMANDS}
    for command in program.COMMANDS:
        assert command.__file__ is not None
        with open(command.__file__, encoding="utf-8") as file:
            tree = ast.parse(file.read())
        defined = [node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
        assert [name for name in defined if not name.startswith("_")] == ["add", "run"], command


def module_of(name: str) -> str:
    """Return the file of a command: its name, which may be a word that Python keeps for itself."""
    return f"{name}_" if keyword.iskeyword(name) else name.replace("-", "_")


@pytest.mark.parametrize(("program", "room"), PROGRAMS, ids=["cmbert", "data_tools"])
def test_the_parser_has_the_listed_commands_in_order(program: ModuleType, room: ModuleType) -> None:
    (choices,) = (action.choices for action in program.build_parser()._actions if action.dest == "==SUPPRESS==")
    named = [module_of(name) for name in choices]
    assert named == [command.__name__.rpartition(".")[2] for command in program.COMMANDS]
    for name, parser in choices.items():
        if name != "bench":  # its kinds have the command
            assert parser.get_default("command").__module__ == f"{room.__name__}.{module_of(name)}"
