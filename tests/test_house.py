"""The doors of the house: imports only in the drawn directions, one home per library, no work at import time."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted([*(ROOT / "cmbert").rglob("*.py"), *(ROOT / "data_tools").rglob("*.py")])
RECIPES = sorted((ROOT / "recipes").rglob("*.py"))  # programs that use both; nobody imports them
GROUND_FLOOR = (
    "cmbert.environment",
    "cmbert.errors",
    "cmbert.cli_values",
    "cmbert.files",
    "cmbert.lease",
    "cmbert.standard_streams",
    "cmbert.page",
    "cmbert.progress",
    "cmbert.reading",
    "cmbert.seeding",
    "cmbert.json_types",
    "cmbert.config",
    "cmbert.tokenizer",
    "cmbert.data.shards",
    "cmbert.data.manifest",
    "cmbert.data.integrity",
    "cmbert.data.megatron",
)
HF_CODE = "cmbert/model/hf_code/"  # shipped inside exported folders, never imported here
ONE_HOME = {
    "deepspeed": ("cmbert/train/engine.py",),
    "flash_attn": ("cmbert/accel.py",),
    "apex": ("cmbert/accel.py",),
    "wandb": ("cmbert/train/metrics.py",),
    "tensorboard": ("cmbert/train/board.py",),
    "numba": ("cmbert/data/kernels.py",),
    "sentence_transformers": ("cmbert/evaluate/",),
    "scipy": ("cmbert/evaluate/",),
    "onnx": ("cmbert/model/onnx.py",),
    "onnxruntime": ("cmbert/model/onnx.py",),
    "transformers": ("cmbert/model/hf.py", "cmbert/model/gate.py", "cmbert/evaluate/", HF_CODE),
}
FORBIDDEN = {  # room -> packages it must not import
    "cmbert/": ("data_tools", "recipes", "tests"),
    "cmbert/model/": (
        "cmbert.data",
        "cmbert.train",
        "cmbert.evaluate",
        "cmbert.cli",
        "cmbert.cli_evaluate",
        "cmbert.cli_transfer",
    ),
    "cmbert/data/": (
        "cmbert.model",
        "cmbert.train",
        "cmbert.evaluate",
        "cmbert.cli",
        "cmbert.cli_evaluate",
        "cmbert.cli_transfer",
    ),
    "cmbert/evaluate/": ("cmbert.train", "cmbert.cli", "cmbert.cli_evaluate", "cmbert.cli_transfer"),
    "cmbert/train/": ("cmbert.cli", "cmbert.cli_evaluate", "cmbert.cli_transfer"),
    "cmbert/accel.py": ("cmbert.model", "cmbert.data", "cmbert.train", "cmbert.evaluate"),
    "data_tools/": ("torch", "deepspeed", "transformers", "recipes", "tests"),
}


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


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


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_doors(path: Path) -> None:
    name, modules = name_of(path), imports(path)
    for room, packages in FORBIDDEN.items():
        if name.startswith(room):
            assert not [m for m in modules for package in packages if within(m, package)]
    for library, homes in ONE_HOME.items():
        if any(within(module, library) for module in modules):
            assert name.startswith(homes), f"{library} has one home"
    if name.startswith("data_tools/"):
        ours = [module for module in modules if within(module, "cmbert")]
        assert all(any(within(module, floor) for floor in GROUND_FLOOR) for module in ours)
    if path.name == "__init__.py":
        assert not path.read_text(encoding="utf-8")


@pytest.mark.parametrize("path", [*RECIPES, *sorted((ROOT / "tests").rglob("*.py"))], ids=name_of)
def test_recipes_are_never_imported(path: Path) -> None:
    assert not [module for module in imports(path) if within(module, "recipes")]


@pytest.mark.parametrize("path", [*FILES, *RECIPES], ids=name_of)
def test_files_and_functions_stay_small(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.count("\n") <= 400
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < 60, f"{node.name} is too long"


def test_the_ground_floor_needs_no_torch() -> None:
    modules = [name_of(p)[:-3].replace("/", ".") for p in FILES if name_of(p).startswith("data_tools/")]
    modules = [module.removesuffix(".__init__") for module in modules if not module.endswith("__main__")]
    modules += ["cmbert.data.shards", "cmbert.data.synthetic", "cmbert.config.load", "cmbert.config.deepspeed"]
    modules += ["cmbert.tokenizer", "cmbert.cli", "cmbert.environment", "cmbert.data.sources", "cmbert.plan.data"]
    modules += ["cmbert.train.checkpoint", "cmbert.train.metrics"]
    code = f"import sys, importlib\nfor m in {modules!r}: importlib.import_module(m)\n"
    code += "assert not {'torch', 'numba', 'tensorboard'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)
