"""What the documents tell a reader to type: every command line in code blocks, inline code and table cells."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
QUICKSTART = ROOT / "recipes" / "quickstart" / "README.md"
LAUNCHERS = ("torchrun", "deepspeed", "mpirun", "mpiexec", "sbatch", "srun")
OURS = ("cmbert", "data_tools")
OTHERS = ("python", "make", "pip", "scontrol", "scancel", "squeue", "tensorboard", "tail", "source", "wandb", "$EDITOR")
PROGRAMS = (*OURS, *LAUNCHERS, *OTHERS)
PLACEHOLDER = re.compile(r"\.\.\.|…|\b[A-Z][A-Z0-9]*\b|[\[\]⟦]|\|")
VARIABLE = re.compile(r"[A-Z_]+=\S*$")
NOT_SHELL = ("python", "toml", "json")


@dataclass(frozen=True)
class Command:
    """One command line of one document."""

    document: str
    """Path in the repository."""
    line: int
    """Counted from 1."""
    words: tuple[str, ...]
    """As a shell splits it: continued lines joined, prompt, comment and leading VARIABLE=value removed."""
    variables: tuple[str, ...]
    """The VARIABLE=value before it."""
    is_inline: bool
    """Within a sentence, where a reader may be told of a command without its arguments, or in a cell of a table."""
    is_cell: bool
    """Alone in a cell of a table."""

    @property
    def where(self) -> str:
        """Return "file:line: command"."""
        return f"{self.document}:{self.line}: {self.text}"

    @property
    def text(self) -> str:
        """Return the words on one line, quoted where a shell needs it."""
        return " ".join(word if re.fullmatch(r"[^\s'\"\\;&]+", word) else shlex.quote(word) for word in self.words)

    @property
    def has_placeholder(self) -> bool:
        """Return whether the reader must put something in: RUN, N, ..., [--quick]."""
        return any(PLACEHOLDER.search(word.partition("=")[2] if "=" in word else word) for word in self.words)


def documents() -> list[Path]:
    """Return every document whose commands are tested, what others build on first: the steps of `make demo`, text."""
    found = [QUICKSTART, *(ROOT / name for name in ("README.md", "README.zh.md", "CONTRIBUTING.md"))]
    found += [ROOT / "recipes" / name / "README.md" for name in ("base", "large")]
    found += sorted(path for path in (ROOT / "recipes").rglob("README.md") if path not in found)
    first = ROOT / "docs" / "data_tools.md"
    found += [first, *sorted(path for path in (ROOT / "docs").glob("*.md") if path != first)]
    return [*found, *(ROOT / name / "README.md" for name in ("slurm", "ds_configs", "examples"))]


def commands(path: Path) -> list[Command]:
    """Return every command of a document, in order."""
    name = path.relative_to(ROOT).as_posix() if path.is_relative_to(ROOT) else path.name
    found = []
    for line, text, place in _candidates(path):
        for part in _split(text):
            variables = [word for word in part if VARIABLE.match(word)][: _leading_variables(part)]
            words = tuple(part[len(variables) :])
            is_command = bool(words) and (words[0] in PROGRAMS or words[0].startswith("slurm/"))
            is_inline = place != "block"
            if is_command and (not is_inline or len(words) > 1 or words[0].endswith(".sh")):
                found.append(Command(name, line, words, tuple(variables), is_inline, place == "cell"))
    return found


def blocks(path: Path) -> Iterator[tuple[int, str, list[str]]]:
    """Yield first line, language and lines of every code block, fenced or indented (language "")."""
    language, block, first, is_fenced, before = "", [], 0, False, ""
    for number, line in enumerate([*path.read_text(encoding="utf-8").splitlines(), ""], start=1):
        is_indented = line.startswith("    ") and (block or not before.strip())
        if line.startswith("```"):
            if is_fenced:
                yield first, language, block
            is_fenced, language, block, first = not is_fenced, line[3:].strip(), [], number + 1
        elif is_fenced:
            block.append(line)
        elif is_indented:
            first = first if block else number
            block.append(line[4:])
        elif block:
            yield first, "", block
            block = []
        if not is_fenced and not line.startswith("```"):
            language = ""
        before = line


def _candidates(path: Path) -> Iterator[tuple[int, str, str]]:
    """Yield (line, text, "block", "cell" or "sentence") of all that may be a command."""
    in_blocks: set[int] = set()
    for first, language, block in blocks(path):
        in_blocks |= set(range(first, first + len(block)))
        number = 0
        while language not in NOT_SHELL and number < len(block):
            start, text = number, block[number]
            while text.endswith("\\") and number + 1 < len(block):
                number += 1
                text = text[:-1] + " " + block[number].strip()
            yield first + start, text.strip().removeprefix("$ "), "block"
            number += 1
    lines = path.read_text(encoding="utf-8").splitlines()
    prose = "\n".join("" if number in in_blocks else line for number, line in enumerate(lines, start=1))
    for match in re.finditer(r"(?<!`)`([^`]+)`(?!`)", prose):
        around = prose[: match.start()].rstrip(" ")[-1:] + prose[match.end() :].lstrip(" ")[:1]
        place = "cell" if around == "||" else "sentence"
        yield prose.count("\n", 0, match.start()) + 1, " ".join(match[1].split()), place


def _split(text: str) -> list[list[str]]:
    """Return the words of each command of a line, at && and ;."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars="&;")
    lexer.whitespace_split = True
    try:
        words = list(lexer)
    except ValueError:  # an apostrophe: prose
        return []
    parts: list[list[str]] = [[]]
    for word in words:
        if word and set(word) <= {"&", ";"}:
            parts.append([])
        else:
            parts[-1].append(word)
    return parts


def _leading_variables(words: list[str]) -> int:
    return next((index for index, word in enumerate(words) if not VARIABLE.match(word)), len(words))
