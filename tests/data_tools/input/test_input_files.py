"""Which files an input stands for: all that can be reached, each once; nothing hidden, nothing left out in silence."""

import errno
import logging
import os
from pathlib import Path

import numpy as np
import pytest

from cmbert.errors import InputError
from data_tools.input.listing import input_files


def put(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name, encoding="utf-8")


def names(root: Path, *given: str) -> list[str]:
    return [path.relative_to(root).as_posix() for path in input_files([str(root / name) for name in given])]


def test_linked_folders_and_files_are_followed(tmp_path: Path) -> None:
    put(tmp_path, "disk1/deep/a.txt", "disk2/b.txt", "disk3/c.txt", "texts/own.txt")
    (tmp_path / "texts/more").symlink_to("../disk1")
    (tmp_path / "disk1/deep/other").symlink_to(tmp_path / "disk2")
    (tmp_path / "texts/single.txt").symlink_to("../disk3/c.txt")
    expected = ["texts/more/deep/a.txt", "texts/more/deep/other/b.txt", "texts/own.txt", "texts/single.txt"]
    assert names(tmp_path, "texts") == expected
    assert names(tmp_path, "texts/**/*.txt") == expected
    (tmp_path / "all").symlink_to("texts")
    assert len(names(tmp_path, "all")) == 4


def test_links_in_a_circle_end(tmp_path: Path) -> None:
    put(tmp_path, "texts/a/b/c/x.txt", "texts/y.txt")
    for folder in ("texts/a", "texts/a/b", "texts/a/b/c"):  # two links in each: 2 ** 40 ways before the system objects
        (tmp_path / folder / "up").symlink_to("..")
        (tmp_path / folder / "top").symlink_to(tmp_path / "texts")
    expected = ["texts/a/b/c/x.txt", "texts/y.txt"]
    assert names(tmp_path, "texts") == expected
    assert names(tmp_path, "texts/**/*.txt") == expected
    assert names(tmp_path, "texts/**/c/**/x.txt") == expected[:1]


def test_a_file_comes_once_whatever_leads_to_it(tmp_path: Path) -> None:
    put(tmp_path, "texts/real/a.txt", "texts/real/b.txt")
    (tmp_path / "texts/again").symlink_to("real")
    (tmp_path / "texts/z.txt").symlink_to("real/b.txt")
    assert names(tmp_path, "texts") == ["texts/again/a.txt", "texts/again/b.txt"]
    assert names(tmp_path, "texts/real", "texts") == ["texts/real/a.txt", "texts/real/b.txt"]
    assert names(tmp_path, "texts/z.txt", "texts") == ["texts/z.txt", "texts/again/a.txt"]


def test_hidden_work_is_no_input(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    put(tmp_path, "texts/news.jsonl", "texts/.cleaned.clean/texts/00000.jsonl", "texts/.heldout.host.7.partial/0.jsonl")
    put(tmp_path, "texts/laws/._laws.jsonl", "texts/laws/laws.jsonl", "texts/laws/.git/x.txt")
    with caplog.at_level(logging.INFO):
        assert names(tmp_path, "texts") == ["texts/laws/laws.jsonl", "texts/news.jsonl"]
    assert ".cleaned.clean" in caplog.text
    for pattern in ("texts/*", "texts/**", "texts/**/*.jsonl", "texts/*/*.jsonl", "texts/*.jsonl"):
        assert not [name for name in names(tmp_path, pattern) if "/." in name]
    assert names(tmp_path, "texts/.cleaned.clean") == ["texts/.cleaned.clean/texts/00000.jsonl"]  # named: meant


def test_a_glob_stands_for_files_and_folders(tmp_path: Path) -> None:
    put(tmp_path, "texts/2023.txt", "texts/2024/01/a.txt", "texts/2024/b.txt", "texts/2024/notes.md", "texts/old.txt")
    assert names(tmp_path, "texts/202*") == ["texts/2023.txt", "texts/2024/01/a.txt", "texts/2024/b.txt"]
    put(tmp_path, "texts/[x]/*.txt")
    assert names(tmp_path, "texts/[x]") == ["texts/[x]/*.txt"]


def test_what_cannot_be_reached_is_named(tmp_path: Path) -> None:
    put(tmp_path, "texts/a.txt")
    for link, target in (("texts/b.txt", "gone.txt"), ("texts/disk", "/nowhere/disk"), ("texts/loop", "loop")):
        (tmp_path / link).symlink_to(target)
        with pytest.raises(InputError, match=rf"{link}: .*link.*nowhere"):
            input_files([str(tmp_path / "texts")])
        (tmp_path / link).unlink()
    assert names(tmp_path, "texts") == ["texts/a.txt"]


def test_a_folder_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "texts/a.txt", "texts/closed/b.txt")
    listdir = os.listdir

    def refuse(folder: Path) -> list[str]:  # root, who may run the tests, may read everything
        if str(folder).endswith("closed"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(folder))
        return listdir(folder)

    monkeypatch.setattr(os, "listdir", refuse)
    with pytest.raises(PermissionError, match=r"list.*closed"):
        input_files([str(tmp_path / "texts")])


def test_random_trees_give_what_a_naive_search_gives(tmp_path: Path) -> None:
    """All files below, by their real names, whatever the links: against a search that knows nothing of order."""
    random = np.random.default_rng(0)
    for trial in range(60):
        root = tmp_path / f"tree{trial}"
        folders = [root]
        root.mkdir()
        for number in range(int(random.integers(1, 9))):
            folders.append(folders[random.integers(len(folders))] / f"{'.' * (random.random() < 0.2)}d{number}")
            folders[-1].mkdir()
            put(folders[-1], f"f{number}.txt")
        put(root, "top.txt")
        for number in range(int(random.integers(0, 9))):
            one, other = (folders[random.integers(len(folders))] for _ in range(2))
            (one / f"link{number}").symlink_to(other)
        seen, found, waiting = set(), set(), [str(root)]
        while waiting:
            folder = os.path.realpath(waiting.pop())
            if folder in seen:
                continue
            seen.add(folder)
            for name in os.listdir(folder):
                path = os.path.join(folder, name)
                if not name.startswith("."):
                    (waiting.append if os.path.isdir(path) else found.add)(path)
        for given in (str(root), f"{root}/**/*.txt"):
            files = input_files([given])
            assert {os.path.realpath(path) for path in files} == found
            assert len(files) == len(found)
            assert files == sorted(files)
