"""The house: its floors, one home per library, small files and rooms, no torch on the ground."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FLOORS = (  # bottom to top; a room imports only from floors below its own
    "cmbert.standard_streams",
    "cmbert.errors",
    "cmbert.environment",
    "cmbert.seeding",
    "cmbert.machine",
    "cmbert.progress",
    "cmbert.files",
    "cmbert.cli_values",
    "cmbert.html",
    "cmbert.config",
    "cmbert.vocabulary",
    "cmbert.tokenizer",
    "cmbert.data.shards",
    "data_tools.defaults",
    "data_tools.storage",
    "data_tools.outputs",
    "data_tools.runner",
    "data_tools.input",
    "data_tools.encoding",
    "data_tools.clean.config",
    "data_tools.clean.text",
    "data_tools.clean.duplicates",
    "data_tools.clean",
    "data_tools.tokenizer",
    "data_tools.preprocessing",
    "data_tools.bench",
    "data_tools.commands",
    "data_tools.cli",
    "data_tools.__main__",
    "cmbert.schedule",
    "cmbert.memory",
    "cmbert.data",
    "cmbert.wide_products",
    "cmbert.accel",
    "cmbert.model",
    "cmbert.cluster",
    "cmbert.zero",
    "cmbert.checkpoint",
    "cmbert.evaluate",
    "cmbert.runs",
    "cmbert.train",
    "cmbert.export",
    "cmbert.transfer",
    "cmbert.transfer.embedding",
    "cmbert.transfer.tasks",
    "cmbert.transfer.finetune",
    "cmbert.bench",
    "cmbert.plan",
    "cmbert.report",
    "cmbert.ablation",
    "cmbert.commands",
    "cmbert.cli",
    "cmbert.__main__",
)
STRANGERS = (  # rooms that stay apart although one lies below the other
    ("cmbert.model", "cmbert.data"),
    ("cmbert", "data_tools"),
    ("cmbert", "recipes"),
    ("cmbert", "tests"),
    ("data_tools", "recipes"),
    ("data_tools", "tests"),
    ("data_tools", "torch"),
    ("data_tools", "deepspeed"),
    ("data_tools", "transformers"),
)
HF_CODE = "cmbert/export/hf_code/"  # shipped inside exported folders, never imported here
ONE_HOME = {
    "deepspeed": ("cmbert/zero/engine.py",),
    "flash_attn": ("cmbert/accel.py",),
    "apex": ("cmbert/accel.py",),
    "wandb": ("cmbert/runs/metrics.py",),
    "tensorboard": ("cmbert/runs/board.py",),
    "numba": ("cmbert/machine/compiled.py",),
    "sentence_transformers": ("cmbert/transfer/",),
    "scipy": ("cmbert/evaluate/", "cmbert/transfer/"),
    "onnx": ("cmbert/export/onnx.py",),
    "onnxruntime": ("cmbert/export/onnx.py",),
    "transformers": ("cmbert/export/", "cmbert/transfer/", "cmbert/bench/"),
}
MAX_FILE_LINES, MAX_FUNCTION_LINES, MAX_ROOM_LINES, MAX_ROOM_FILES = 300, 60, 2_500, 15


def files_in(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def module_of(path: Path) -> str:
    return name_of(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def room_of(module: str) -> str:
    """Return the room of a module or of a name in it: the innermost one."""
    rooms = [room for room in FLOORS if within(module, room)]
    assert rooms, f"{module}: no floor has this room"
    return max(rooms, key=len)


PACKAGES = files_in("cmbert", "data_tools")
PROGRAMS = files_in("recipes", "examples")  # they use both packages; nobody imports them
TESTS = files_in("tests")


@pytest.mark.parametrize("path", [path for path in PACKAGES if path.name != "__init__.py"], ids=name_of)
def test_a_room_imports_only_from_floors_below(path: Path) -> None:
    room = room_of(module_of(path))
    ours = [name for name in imports(path) if within(name, "cmbert") or within(name, "data_tools")]
    for name in ours:
        assert room_of(name) == room or FLOORS.index(room_of(name)) < FLOORS.index(room), f"{room} imports {name}"


@pytest.mark.parametrize("path", PACKAGES, ids=name_of)
def test_strangers_and_homes(path: Path) -> None:
    name, modules = name_of(path), imports(path)
    for room, stranger in STRANGERS:
        if within(module_of(path), room):
            assert not [module for module in modules if within(module, stranger)]
    for library, homes in ONE_HOME.items():
        if any(within(module, library) for module in modules):
            assert name.startswith(homes), f"{library} has one home"
    if path.name == "__init__.py":
        assert not path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", [*PROGRAMS, *TESTS], ids=name_of)
def test_programs_are_never_imported(path: Path) -> None:
    assert not [module for module in imports(path) if within(module, "recipes") or within(module, "examples")]


@pytest.mark.parametrize("path", [*PACKAGES, *PROGRAMS, *TESTS], ids=name_of)
def test_files_and_functions_stay_small(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= MAX_FILE_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < MAX_FUNCTION_LINES, f"{node.name} is too long"


@pytest.mark.parametrize("room", sorted({path.parent for path in PACKAGES}), ids=name_of)
def test_rooms_stay_small(room: Path) -> None:
    files = [path for path in room.glob("*.py") if path.name != "__init__.py"]
    assert len(files) <= MAX_ROOM_FILES
    assert sum(path.read_text(encoding="utf-8").count("\n") for path in files) <= MAX_ROOM_LINES


def test_contributing_says_the_same() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    assert {int(number.replace(",", "")) for number in re.findall(r"([\d,]+) lines", text)} == {
        MAX_FILE_LINES,
        MAX_ROOM_LINES,
    }
    assert f"{MAX_ROOM_FILES} files" in text
    assert f"function under {MAX_FUNCTION_LINES}" in text


@pytest.mark.parametrize("package", ["cmbert", "data_tools"])
def test_tests_mirror_the_rooms(package: str) -> None:
    """Whoever has found a room has found its tests."""
    tests = {path.parent for path in (ROOT / "tests" / package).rglob("test_*.py")}
    assert {path.relative_to(ROOT / "tests") for path in tests} <= {path.parent.relative_to(ROOT) for path in PACKAGES}


def test_the_ground_floor_needs_no_torch() -> None:
    ground = FLOORS[: FLOORS.index("cmbert.memory")]
    modules = [module_of(path) for path in PACKAGES if path.name not in ("__init__.py", "__main__.py")]
    modules = [module for module in modules if room_of(module) in ground and not within(module, "data_tools.clean")]
    modules += ["cmbert.data.synthetic", "cmbert.data.sources", "cmbert.plan.data", "cmbert.cli"]
    modules += ["cmbert.checkpoint.files", "cmbert.runs.metrics"]
    code = f"import sys, importlib\nfor m in {modules!r}: importlib.import_module(m)\n"
    code += "assert not {'torch', 'numba', 'tensorboard'} & sys.modules.keys()\n"
    computing = [module_of(path) for path in PACKAGES if within(module_of(path), "data_tools.clean")]  # in kernels
    code += f"for m in {computing!r}: importlib.import_module(m)\n"
    code += "assert not {'torch', 'tensorboard'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
