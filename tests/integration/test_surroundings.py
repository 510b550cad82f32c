"""Commands in surroundings that are not a developer's: odd names, folders and limits, full disks."""

import errno
import json
import os
import pty
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import numba
import pytest

import data_tools.runner
from cmbert.cli import main
from cmbert.config.load import load_recipe
from cmbert.data import kernels
from cmbert.environment import make_room_for_modules, number_in
from cmbert.errors import ConfigError
from cmbert.files.folders import building
from cmbert.files.whole import write_bytes, write_json
from cmbert.html.page import write_page
from cmbert.machine.compiled import compiled
from data_tools.input.document import Document
from data_tools.input.sample import write_documents
from tests.integration.shell import LOCALES, ROOT, run


def test_names_are_utf8_in_every_locale(recipe_file: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "stage2.toml"
    recipe.write_text(f'extends = "{recipe_file.rename(tmp_path / "配方.toml")}"', encoding="utf-8")
    code, said = run("plan", str(recipe), environment=LOCALES["POSIX, ASCII"])
    assert code == 0, said


def test_names_that_are_not_utf8(recipe_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    name = os.fsdecode(b"bad\xff")
    for words in (
        ("export", name, "--output", "model"),
        ("eval", name, "--data", "d"),
        ("embed-train", "--model", "m", "--pairs", "p", "--eval", "e", "--output", name),
    ):
        with pytest.raises(SystemExit) as left:
            main(words)
        assert left.value.code == 2
        assert "'bad\\udcff' is not UTF-8" in capsys.readouterr().err.splitlines()[-1]
    for broken, said in (
        (name, "'.*' is not UTF-8"),
        ("a\\u0000b", "holds a NUL character"),
        ("好" * 100, "has a name of 300"),
    ):
        with pytest.raises(ConfigError, match=f"run_directory: {said}"):
            load_recipe(recipe_file, [f'run_directory="{broken}"'])
    code, said = run("plan", str(recipe_file), "--page", os.fsencode(tmp_path) + b"/bad\xff/page.html")
    assert code == 0, said


def test_a_name_that_is_not_utf8_in_what_is_written(tmp_path: Path) -> None:
    name = os.fsdecode(b"bad\xff")
    write_json(tmp_path / "facts.json", {"name": name})
    assert json.loads((tmp_path / "facts.json").read_text(encoding="utf-8")) == {"name": name}
    write_page(tmp_path / "page.html", title=name, subtitle="", sections=[])
    assert "bad\\udcff" in (tmp_path / "page.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("umask", [0o077, 0o027, 0o000])
def test_folders_are_for_whom_the_umask_lets_in(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        with building(tmp_path / "model") as aside:
            (aside / "below").mkdir()
            for path in (aside / "weights", aside / "below" / "weights"):
                os.close(os.open(path, os.O_CREAT, 0o600))  # as safetensors makes them
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "model").rglob("*")}
    assert modes == {"below": 0o777 & ~umask, "weights": 0o666 & ~umask}


@pytest.mark.parametrize("name", ["SLURM_RESTART_COUNT", "SLURM_JOB_ID"])
def test_variables_that_are_no_number(name: str) -> None:
    assert number_in({name: " 3 "}, name) == 3
    assert number_in({name: ""}, name) == number_in({}, name) == 0
    with pytest.raises(ConfigError, match=f"environment: {name}='x1' is not a number"):
        number_in({name: "x1"}, name)


def test_kernels_where_nothing_can_be_kept(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    njit = numba.njit

    def nowhere(function: Callable | None = None, cache: bool = False) -> Callable:
        if cache:  # as numba does where neither the package's folder nor the user's cache can be written
            raise RuntimeError("cannot cache function 'f': no locator available for file 'f.py'")
        return njit(function)

    monkeypatch.setattr(numba, "njit", nowhere)
    caplog.set_level("INFO")
    assert compiled(kernels._multiply_high.py_func)(1 << 63, 4) == 2
    assert "no locator available" in caplog.text
    assert "NUMBA_CACHE_DIR" in caplog.text


@pytest.mark.parametrize("variable", ["XDG_CACHE_HOME", "HF_HOME", "HF_MODULES_CACHE"])
def test_code_of_models_where_the_home_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    for name in ("XDG_CACHE_HOME", "HF_HOME", "HF_MODULES_CACHE"):
        monkeypatch.setenv(name, "")
    monkeypatch.setenv(variable, str(tmp_path / "not" / "there" / "yet"))
    make_room_for_modules()
    assert os.environ[variable] == str(tmp_path / "not" / "there" / "yet")
    monkeypatch.setenv(variable, "/dev/null/home")
    make_room_for_modules()
    folder = Path(os.environ["HF_MODULES_CACHE"])
    assert os.access(folder, os.W_OK)
    assert folder.stat().st_mode & 0o77 == 0  # nobody else puts code there


def test_an_output_that_is_a_device_a_pipe_or_a_link_stays_one(tmp_path: Path) -> None:
    controller, end = pty.openpty()
    device = Path(os.ttyname(end))
    write_bytes(device, b"to a device")
    assert os.read(controller, 100) == b"to a device"
    assert device.is_char_device()
    os.close(controller)
    os.close(end)
    link, target = tmp_path / "link", tmp_path / "target"
    link.symlink_to("target")
    write_bytes(link, b"through a link")
    assert link.is_symlink()
    assert target.read_bytes() == b"through a link"
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_bytes(pipe, b"to a pipe")
    assert os.read(reader, 100) == b"to a pipe"
    assert pipe.is_fifo()
    os.close(reader)


def test_a_page_is_not_written_over_something_else(recipe_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = recipe_file.read_bytes()
    with pytest.raises(ConfigError, match="holds something else than a page"):
        write_page(recipe_file, title="", subtitle="", sections=[])
    assert recipe_file.read_bytes() == before
    page = recipe_file.with_name("page.html")
    for title in ("one", "two"):
        write_page(page, title=title, subtitle="", sections=[])
    assert "two" in page.read_text(encoding="utf-8")
    for name, said in (
        (f"{recipe_file}/", "is a folder; name a file"),
        (str(recipe_file.parent), "is a folder; name a file"),
        (str(recipe_file / "page.html"), "is no folder"),
        ("/proc/page.html" if os.geteuid() else "/dev/null/page.html", ""),
    ):
        with pytest.raises(SystemExit):
            main(["eval", "model", "--data", "d", "--output", name])
        assert said in capsys.readouterr().err.splitlines()[-1]


def test_an_error_is_one_line_and_a_link_to_itself_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("loop").symlink_to("loop")
    for name, shown in (("loop", "loop"), ("two\nlines", "two\\nlines"), ("n" * 300, "no such recipe")):
        assert main(["plan", name]) == 2
        errors = capsys.readouterr().err
        assert errors.count("\n") == 1
        assert shown in errors


def test_a_full_disk_that_safetensors_meets_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"No space left on device \(write\)") as raised, building(tmp_path / "model"):
        raise RuntimeError("Error while serializing: I/O error: No space left on device (os error 28)")
    assert raised.value.errno == 28
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("command", ["data_tools preprocess --input t --output s --tokenizer k", "cmbert plan r.toml"])
def test_a_working_directory_that_was_removed(command: str, tmp_path: Path) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    program, *words = command.split()
    done = subprocess.run(
        ["bash", "-c", f'cd "$0" && rmdir "$0" && {sys.executable} -m "$@"', str(folder), program, *words],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1, done.stderr


def test_a_disk_that_is_full_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data_tools.runner, "ProcessPoolExecutor", Mock(side_effect=OSError(errno.ENOSPC, "full")))
    with pytest.raises(OSError, match="locks of the workers") as caught, data_tools.runner.local_workers(2):
        pass
    assert caught.value.filename == "/dev/shm"
    with pytest.raises(OSError, match="No space") as caught:
        write_documents(Path("/dev/full"), [Document("1", "s", "好" * 100_000)])
    assert caught.value.filename == "/dev/full"
