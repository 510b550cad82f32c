"""Every command in the documents is right: it parses, what it names is there, and it runs."""

import re
import shlex
from pathlib import Path

import pytest

from cmbert.bench import throughput
from tests.docs.documents import QUICKSTART, ROOT, commands, documents
from tests.docs.exceptions import INSTEAD, NOT_RUN, SMALLER
from tests.docs.grammar import faults, named_paths
from tests.docs.running import Shell, as_started, is_left_out, lines_to_run
from tests.docs.world import make_world

DOCUMENTS = documents()
COMMANDS = [command for path in DOCUMENTS for command in commands(path)]


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_commands_parse_and_name_what_is_there(path: Path) -> None:
    wrong = []
    for command in commands(path):
        wrong += [f"{command.where}: {fault}" for fault in faults(command)]
        wrong += [f"{command.where}: {name}: not here" for name in named_paths(command) if not (ROOT / name).exists()]
    assert not wrong, "\n".join(wrong)


PAGE = """Run `cmbert plan`, or `cmbert ledger --shw`; `python -m cmbert trian recipes/large/stage1.toml`.

    VARIABLE=1 data_tools verify DIR [--quick]   # a comment: && no command
    cmbert eval RUN --data held \\
        --by-postion && data_tools merge a b
    sbatch --nodes=1 slurm/stage1.sh recipes/larg/stage1.toml --resum never

```python
data_tools = "verify"
```

| what | command |
|---|---|
| plan | `torchrun --nproc-per-node 2 -m cmbert train recipes/base/stage1.toml --max-steps N` |
"""


def test_what_is_wrong_in_a_page_is_found(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text(PAGE, encoding="utf-8")
    found = {command.line: command for command in commands(path) if not command.is_inline}
    assert [command.line for command in commands(path)] == [3, 4, 4, 6, 1, 1, 1, 14]
    assert found[3].words == ("data_tools", "verify", "DIR", "[--quick]")
    assert found[3].variables == ("VARIABLE=1",)
    wrong = [(command.line, fault) for command in commands(path) for fault in faults(command)]
    assert wrong == [
        (4, "unknown option: --by-postion"),
        (4, "data_tools merge: error: the following arguments are required: --output"),
        (6, "unknown option: --resum"),
        (1, "unknown option: --shw"),
        (1, "no such command: cmbert trian recipes/large/stage1.toml"),
    ]
    assert [command.line for command in commands(path) if command.is_cell] == [14]
    missing = [name for command in commands(path) for name in named_paths(command) if not (ROOT / name).exists()]
    assert missing == ["recipes/larg/stage1.toml"]


def test_make_targets_and_extras_are_there() -> None:
    targets = set(re.findall(r"^([\w./$()-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    targets |= {".venv/ready"} if "$(READY)" in targets else set()
    extras = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.MULTILINE)
    for command in COMMANDS:
        if command.words[0] == "make":
            assert command.words[1] in targets, command.where
        for word in command.words if command.words[0] == "pip" else ():
            for extra in re.findall(r"\[(.*)\]", word):
                assert set(extra.split(",")) <= set(extras), command.where


def test_every_command_is_run_or_accounted_for() -> None:
    unfilled = [
        command.where
        for command in COMMANDS
        if command.has_placeholder and command.text in lines_to_run(command) and not is_left_out(command)
    ]
    assert not unfilled, "give each an entry in tests/docs/exceptions.py:\n" + "\n".join(unfilled)


def test_what_is_to_be_run_can_be_started() -> None:
    for command in COMMANDS:
        for line in lines_to_run(command):
            assert as_started(shlex.split(line)), command.where


def test_no_exception_is_stale() -> None:
    texts = {command.text for command in COMMANDS}
    assert not [text for text in INSTEAD if text not in texts]
    assert not [start for start in SMALLER if not any(text.startswith(start) for text in texts)]
    for entry in NOT_RUN:
        assert any(re.fullmatch(entry.pattern, text) for text in texts), entry.pattern
        assert (ROOT / entry.test).exists(), entry.test


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """A reader at the root of a shrunken repository."""
    pytest.importorskip("snownlp")
    return Shell(make_world(tmp_path_factory.mktemp("world")))


@pytest.mark.filterwarnings("ignore")
def test_the_steps_of_the_demo_run(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    """From text to the report of both stages: what `make demo` does, as the quickstart's page shows it."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    shell.run_the_beginning(QUICKSTART, last="cmbert report")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("path", DOCUMENTS, ids=name_of)
def test_commands_run(path: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(throughput, "LEAST_SECONDS", 0.01)  # of a benchmark's round: that it runs is all we ask
    shell.run_through(path)
