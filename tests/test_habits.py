"""The habits: what runs on each change and before each commit is what `make` runs; each version has one home."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PINS = dict(re.findall(r"^([\w.-]+)==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), re.MULTILINE))
WORKFLOWS = sorted((ROOT / ".github" / "workflows").iterdir())
ON = True  # how YAML 1.1 reads the key `on`


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def recipe_of(target: str) -> str:
    """Return the commands of a target of the Makefile; fail if there is none."""
    found = re.search(rf"^{re.escape(target)}:.*\n((?:\t.*\n)+)", MAKEFILE, re.MULTILINE)
    assert found, f"make {target}: no such target"
    return found[1]


def made(workflow: dict[str, Any]) -> list[str]:
    """Return the targets that a workflow makes; its jobs run nothing else."""
    lines = [step["run"] for job in workflow["jobs"].values() for step in job["steps"] if "run" in step]
    assert lines
    assert all(re.fullmatch(r"make [\w-]+", line) for line in lines)
    return [line.removeprefix("make ") for line in lines]


def test_changes_are_checked_and_the_night_runs_all() -> None:
    check, nightly = (read(path) for path in WORKFLOWS)
    assert {"push", "pull_request"} <= check[ON].keys()
    assert {"schedule", "workflow_dispatch"} <= nightly[ON].keys()
    assert made(check) == ["check", "test"]
    assert made(nightly) == ["test-all"]


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_makes_what_there_is_and_may_only_read(path: Path) -> None:
    workflow = read(path)
    for target in made(workflow):
        assert recipe_of(target)
    assert workflow["permissions"] == {"contents": "read"}
    assert workflow["concurrency"]["cancel-in-progress"] is True
    for job in workflow["jobs"].values():
        assert "permissions" not in job
        assert 0 < job["timeout-minutes"] <= 120
        assert job["container"]["image"].startswith(f"python:{PROJECT['tool']['mypy']['python_version']}-")
        used = [step["uses"] for step in job["steps"] if "uses" in step]
        assert used
        assert all(re.fullmatch(r"actions/[\w-]+@v\d+", action) for action in used)


def test_both_workflows_have_one_job_but_for_what_it_makes() -> None:
    jobs = []
    for path in WORKFLOWS:
        (job,) = read(path)["jobs"].values()
        job["steps"] = [step for step in job["steps"] if "run" not in step]
        jobs.append({key: value for key, value in job.items() if key != "timeout-minutes"})
    assert jobs[0] == jobs[1]


def test_hooks_are_those_of_make_check_with_the_pinned_programs() -> None:
    (repository,) = read(ROOT / ".pre-commit-config.yaml")["repos"]
    assert repository["repo"] == "local"  # any other has versions of its own
    assert "rev" not in repository
    entries = [hook["entry"] for hook in repository["hooks"]]
    commands = re.findall(r"^\t@\$\(VENV\)/bin/(.+?)(?: \.)?$", recipe_of("check"), re.MULTILINE)
    assert entries == [f".venv/bin/{command}" for command in commands]
    for hook in repository["hooks"]:
        assert hook["language"] == "system"
        assert not hook.get("additional_dependencies")
    for program in {command.split()[0] for command in commands}:
        assert program in PINS
        assert program in PROJECT["project"]["optional-dependencies"]["dev"]  # bare: no second version there


def test_issue_forms_ask_for_something() -> None:
    forms = sorted((ROOT / ".github" / "ISSUE_TEMPLATE").iterdir())
    assert [path.stem for path in forms] == ["bug", "feature"]
    for path in forms:
        form = read(path)
        assert form["name"]
        assert form["description"]
        assert [field["id"] for field in form["body"] if field.get("validations", {}).get("required")]
        assert all(field["attributes"]["label"] for field in form["body"])


def test_the_citation_is_of_this_version() -> None:
    citation = read(ROOT / "CITATION.cff")
    assert (citation["title"], citation["version"]) == (PROJECT["project"]["name"], PROJECT["project"]["version"])
    assert citation["license"] == PROJECT["project"]["license"]
    released = f"## {citation['version']} ({citation['date-released']})"
    assert released in (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").splitlines()
    (paper,) = citation["references"]
    assert paper["url"].removeprefix("https://arxiv.org/abs/") in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_first_test_to_run_is_there() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    path, names = re.search(r'make test ARGS="(\S+) -k (\w+)"', text).groups()
    assert [file for file in (ROOT / path).glob("test_*.py") if names in file.read_text(encoding="utf-8")]
    assert text.count("\n") < 80
