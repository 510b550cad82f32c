"""A release: the wheel holds what it needs, its version has one home, an installed copy works away from the sources."""

import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email.parser import Parser
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
PACKAGES = ("cmbert", "data_tools")
PARTS = {"ds_configs": "*.json", "recipes/tasks": "*.toml"}  # folders of the repository that go along in cmbert
FOLDERS = (*PACKAGES, *PARTS)
DISTRIBUTION = ("pyproject.toml", "setup.py", "README.md", "LICENSE")
EXTRAS = {"data", "eval", "gpu", "dev", "mpi", "storage", "wandb"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built by the pinned setuptools from a copy of the sources, without network."""
    sources, output = tmp_path_factory.mktemp("sources"), tmp_path_factory.mktemp("wheel")
    for name in FOLDERS:
        shutil.copytree(ROOT / name, sources / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in DISTRIBUTION:
        shutil.copy(ROOT / name, sources)
    options = ["--no-build-isolation", "--no-deps", "--no-index", "--quiet", "--wheel-dir", str(output)]
    subprocess.run([sys.executable, "-m", "pip", "wheel", *options, str(sources)], check=True)
    (found,) = output.iterdir()
    return found


def test_the_wheel_holds_every_file_of_the_packages_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    expected = {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    parts = [path for folder, files in PARTS.items() for path in (ROOT / folder).glob(files)]
    expected |= {f"cmbert/{path.relative_to(ROOT).as_posix()}" for path in parts}
    assert names == expected
    assert {"cmbert/html/page.html", "cmbert/export/hf_code/modeling_cmbert.py"} < names


def test_what_the_wheel_says_of_itself(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (about,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        metadata = Parser().parsestr(archive.read(about).decode("utf-8"))
        scripts = archive.read(about.replace("METADATA", "entry_points.txt")).decode("utf-8")
        assert about.replace("METADATA", "licenses/LICENSE") in archive.namelist()
    assert metadata["Version"] == PROJECT["version"]
    assert set(metadata.get_all("Provides-Extra")) == EXTRAS
    assert scripts.split() == [
        "[console_scripts]", "cmbert", "=", "cmbert.__main__:main", "data_tools", "=", "data_tools.__main__:main",
    ]  # fmt: skip


def test_the_version_has_one_home_and_its_changes_are_told() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (\S+)", changelog, re.MULTILINE)[0] in ("Unreleased", PROJECT["version"])
    assert re.search(rf"^## {re.escape(PROJECT['version'])} \(\d{{4}}-\d\d-\d\d\)$", changelog, re.MULTILINE)
    sources = [path.read_text(encoding="utf-8") for package in PACKAGES for path in (ROOT / package).rglob("*.py")]
    assert not any(f'"{PROJECT["version"]}"' in text for text in sources)


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel in a folder of its own."""
    target = tmp_path_factory.mktemp("installed")
    options = ["--no-index", "--no-deps", "--quiet", "--target", str(target)]
    subprocess.run([sys.executable, "-m", "pip", "install", *options, str(wheel)], check=True)
    return target


def run(installed: Path, elsewhere: Path, *words: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": str(installed)}
    return subprocess.run(
        [sys.executable, *words], cwd=elsewhere, env=environment, capture_output=True, text=True, check=False
    )


def test_an_installed_copy_works_elsewhere(installed: Path, tmp_path: Path) -> None:
    code = "import cmbert.html.page, data_tools.cli; print(cmbert.html.page.__file__, data_tools.cli.__file__)"
    for path in run(installed, tmp_path, "-c", code).stdout.split():
        assert Path(path).is_relative_to(installed)
    for program, command in (("cmbert", "finetune"), ("data_tools", "preprocess")):
        done = run(installed, tmp_path, "-m", program, "--help")
        assert (done.returncode, done.stderr) == (0, "")
        assert command in done.stdout
    code = "from pathlib import Path; from cmbert.html.page import write_page; "
    code += "write_page(Path('page.html'), title='测试', subtitle='', sections=['<p>好</p>'])"
    assert run(installed, tmp_path, "-c", code).returncode == 0
    assert "<h1>测试</h1>" in (tmp_path / "page.html").read_text(encoding="utf-8")


def test_an_installed_copy_says_that_it_has_no_recipes(installed: Path, tmp_path: Path) -> None:
    done = run(installed, tmp_path, "-m", "cmbert", "plan", "recipes/base/stage1.toml")
    assert done.returncode == 2
    assert done.stderr == (
        "cmbert: error: recipes/base/stage1.toml: no such recipe; the shipped recipes/ are in a clone of the project "
        "only; `cmbert new NAME` writes one of your own\n"
    )
    recipe = ROOT / "recipes/base/stage1.toml"
    done = run(installed, tmp_path, "-m", "cmbert", "plan", str(recipe))
    assert done.returncode == 2
    assert "ds_configs/zero1.json: no such DeepSpeed file" in done.stderr
    assert "by name, from any folder: zero1, zero2, zero2_offload, zero3, zero3_offload" in done.stderr


def test_an_installed_copy_has_the_shipped_tasks_by_name(installed: Path, tmp_path: Path) -> None:
    code = "from cmbert.transfer.tasks.task import find_task; print(find_task('chnsenticorp').train)"
    assert run(installed, tmp_path, "-c", code).stdout == "('train.tsv',)\n"


def test_an_installed_copy_has_the_deepspeed_files_by_name(installed: Path, tmp_path: Path) -> None:
    code = "from cmbert.config.deepspeed import deepspeed_path; print(deepspeed_path('zero2_offload'))"
    found = Path(run(installed, tmp_path, "-c", code).stdout.strip())
    assert found == installed / "cmbert" / "ds_configs" / "zero2_offload.json"
    assert found.read_bytes() == (ROOT / "ds_configs" / "zero2_offload.json").read_bytes()
