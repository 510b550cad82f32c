"""What a run records of its code: the commit of a clone, and none that is somebody else's."""

import os
import subprocess
from pathlib import Path

import pytest

from cmbert import environment


def git(folder: Path, *words: str) -> str:
    identity = {f"GIT_{who}_{what}": "x" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    done = subprocess.run(
        ["git", *words], cwd=folder, env={**os.environ, **identity}, check=True, capture_output=True, text=True
    )
    return done.stdout.strip()


def test_the_commit_is_that_of_the_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code, installed = tmp_path / "cmbert/environment.py", tmp_path / "venv/environment.py"
    for path in (code, installed):
        path.parent.mkdir()
        path.write_text("", encoding="utf-8")
    monkeypatch.setattr(environment, "__file__", str(code))
    assert environment.git_commit() is None, "no repository"
    git(tmp_path, "init", "--quiet")
    git(tmp_path, "add", "cmbert")
    git(tmp_path, "commit", "--quiet", "-m", "x")
    assert environment.git_commit() == git(tmp_path, "rev-parse", "HEAD")
    monkeypatch.setattr(environment, "__file__", str(installed))
    assert environment.git_commit() is None, "an installed copy inside another project's repository"
    monkeypatch.setattr(environment, "__file__", str(code))
    monkeypatch.setenv("PATH", str(tmp_path))
    assert environment.git_commit() is None, "no git"


def test_versions_of_packages() -> None:
    found = environment.installed_versions(("numpy", "no-such-package"))
    assert found["no-such-package"] is None
    assert found["numpy"]
