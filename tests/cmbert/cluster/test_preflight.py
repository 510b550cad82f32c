"""Which node is blamed for what, and in which order links are tried."""

import itertools
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch.distributed import HashStore, Store

from cmbert.cluster import node_checks, preflight
from cmbert.cluster.distributed import Launch
from cmbert.cluster.links import Pair, link_ranks, pairs_of
from cmbert.cluster.node_checks import Findings, Link, disk_fault, examine, gpu_faults, judge, judge_links, time_matmul

TIMEOUT = 90  # seconds for a test's process: torch's import takes 10 s on a busy machine
NODES = ("a", "b", "c", "d")


def found(
    node: str, *faults: str, rank: int = 0, gpus: int = 8, memory: float = 100e9, matmul: float | None = 0.010
) -> Findings:
    return Findings(rank, node, list(faults), gpus, int(memory), None if faults else matmul)


@pytest.mark.parametrize(
    ("findings", "silent", "bad"),
    [
        ([], {}, {}),
        ([found(node) for node in NODES], {}, {}),
        ([found("a"), found("b", "GPU 3: lost", "/tmp: full")], {}, {"b": ["GPU 3: lost", "/tmp: full"]}),
        ([found("a", "same"), found("a", "same", rank=1)], {}, {"a": ["same"]}),
        (
            [found("a"), found("b", matmul=0.0151, rank=5), found("c")],
            {},
            {"b": ["rank 5: matmul takes 15.1 ms, the median 10.0"]},
        ),
        ([found("a"), found("b", matmul=0.0149), found("c")], {}, {}),
        ([found("a"), found("b", matmul=0.029)], {}, {}),
        ([found("a"), found("b", matmul=0.031)], {}, {"b": ["rank 0: matmul takes 31.0 ms, the median 20.5"]}),
        (
            [found("a"), found("b", memory=49e9), found("c")],
            {},
            {"b": ["49.0 GB of memory are free, on the median node 100.0"]},
        ),
        ([found("a"), found("b", memory=51e9), found("c")], {}, {}),
        ([found("a"), found("b", gpus=7)], {}, {"b": ["7 GPUs are visible to torch, elsewhere 8"]}),
        ([found("a"), found("b", "7 of 8 GPUs", gpus=7)], {}, {"b": ["7 of 8 GPUs"]}),
        ([found("a")], {9: "c", 8: "b"}, {"b": ["rank 8 did not answer"], "c": ["rank 9 did not answer"]}),
        ([], {0: "a", 1: "a"}, {"a": ["rank 0 did not answer", "rank 1 did not answer"]}),
    ],
)
def test_judge(findings: list[Findings], silent: dict[int, str], bad: dict[str, list[str]]) -> None:
    judgement = judge(findings, silent)
    assert judgement.bad == bad
    assert (judgement.broken, judgement.slow) == ([], [])


@pytest.mark.parametrize("count", range(1, 10))
def test_every_node_is_tried_with_both_neighbours(count: int) -> None:
    nodes = [f"n{i}" for i in range(count)]
    rounds = pairs_of(nodes)
    for pairs in rounds:
        names = [node for pair in pairs for node in set(pair)]
        assert len(names) == len(set(names))
    pairs = list(itertools.chain(*rounds))
    assert len({frozenset(pair) for pair in pairs}) == len(pairs) == (1 if count < 3 else count)
    assert len(rounds) == (1 if count < 3 else 2 + count % 2)
    for i, node in enumerate(nodes):
        partners = {other for pair in pairs if node in pair for other in set(pair) - {node}}
        assert partners == {nodes[i - 1], nodes[(i + 1) % count]} - {node}


@pytest.mark.parametrize("count", range(1, 10))
@pytest.mark.parametrize("per_node", [1, 3])
def test_all_ranks_of_both_nodes_are_in_a_group(count: int, per_node: int) -> None:
    placed = [f"n{rank // per_node}" for rank in range(count * per_node)]
    if len(placed) == 1:
        assert link_ranks(placed) == []
        return
    rounds = link_ranks(placed)
    assert [list(pairs) for pairs in rounds] == pairs_of([f"n{i}" for i in range(count)])
    for (a, b), ranks in itertools.chain(*(pairs.items() for pairs in rounds)):
        assert ranks == sorted(rank for rank, node in enumerate(placed) if node in {a, b})
        assert len(ranks) == per_node * len({a, b})


def reports(nodes: str, *, per_node: int = 2, **seconds: float | None) -> tuple[list[Link], dict[Pair, list[int]]]:
    """Return the links of all ranks, and who takes part; seconds: ab=1.0, else 0.01, None = failed."""
    placed = [node for node in nodes for _ in range(per_node)]
    expected = {pair: ranks for pairs in link_ranks(placed) for pair, ranks in pairs.items()}
    links = [Link(r, pair, seconds.get("".join(pair), 0.01)) for pair, ranks in expected.items() for r in ranks]
    return links, expected


SLOW_A = "all-reduce between a and b takes 1000.0 ms, the median 10.0"


PAIRS = ("a and b", "b and c", "c and a")


@pytest.mark.parametrize(
    ("links", "bad", "broken", "slow"),
    [
        (reports("abcd"), [], [], []),
        (reports("abcd", per_node=8), [], [], []),
        (reports("abcd", ab=0.016, da=0.016), ["a"], [], []),
        (reports("abcd", ab=0.014, da=0.014), [], [], []),
        (reports("abcd", ab=None, da=None), ["a"], [], []),
        (reports("abcd", ab=1.0, da=None), ["a"], [], []),
        (reports("abc", ab=1.0, ca=1.0), ["a"], [], []),
        (reports("abcde", bc=None, cd=None), ["c"], [], []),
        (reports("abcdefg", bc=None, cd=None, ef=1.0, fg=1.0), ["c", "f"], [], []),
        (reports("abcd", ab=None), [], ["all-reduce between a and b failed"], []),
        (reports("abcd", ab=1.0), [], [], [SLOW_A]),
        (reports("abcdef", ab=1.0, de=None), [], ["all-reduce between d and e failed"], [SLOW_A]),
        (reports("ab", ab=None), [], ["all-reduce between a and b failed"], []),
        (reports("ab", ab=1.0), [], [], []),
        (reports("a", aa=None), ["a"], [], []),
        (reports("a"), [], [], []),
        (reports("abc", ab=None, bc=None, ca=None), [], [f"all-reduce between {x} failed" for x in PAIRS], []),
    ],
)  # fmt: skip
def test_judge_links(
    links: tuple[list[Link], dict[Pair, list[int]]], bad: list[str], broken: list[str], slow: list[str]
) -> None:
    judgement = judge_links(*links)
    assert (list(judgement.bad), judgement.broken, judgement.slow) == (bad, broken, slow)


def test_the_reasons_name_both_links() -> None:
    judgement = judge_links(*reports("abcd", ab=1.0, da=None))
    assert judgement.bad == {"a": [f"{SLOW_A}; all-reduce between d and a failed"]}


def test_a_rank_that_did_not_report_has_failed() -> None:
    links, expected = reports("abcd")
    judgement = judge_links([link for link in links if link.rank != 1], expected)
    assert list(judgement.bad) == ["a"]
    judgement = judge_links([link for link in links if (link.rank, link.nodes) != (1, ("a", "b"))], expected)
    assert (judgement.bad, judgement.broken) == ({}, ["all-reduce between a and b failed"])


def test_disk(tmp_path: Path) -> None:
    assert disk_fault(tmp_path) is None
    assert disk_fault(tmp_path / "nowhere") == f"{tmp_path}/nowhere: No such file or directory"
    assert not list(tmp_path.iterdir())
    code = "from pathlib import Path\nfrom cmbert.cluster.node_checks import disk_fault\n"
    code += f"print(disk_fault(Path({str(tmp_path)!r})))"
    limited = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=TIMEOUT,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20)),
    )  # fmt: skip
    assert limited.stdout == f"{tmp_path}: File too large\n"


def test_disk_that_forgets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sound = node_checks.tempfile.TemporaryFile

    def forgetful(**options: Path) -> object:
        file = sound(**options)
        monkeypatch.setattr(file, "read", lambda: b"other")
        return file

    monkeypatch.setattr(node_checks.tempfile, "TemporaryFile", forgetful)
    assert disk_fault(tmp_path) == f"{tmp_path}: gives back other bytes than were written"


def test_matmul() -> None:
    assert 0 < time_matmul(torch.device("cpu")) < 10


def test_a_product_that_is_wrong_is_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.Tensor, "__matmul__", lambda a, b: a)
    findings = examine(0, 0, [tmp_path])
    assert findings.faults == ["GPU 0: matmul: computes 1.0, must be 512"]
    assert findings.matmul_seconds is None


def test_only_the_first_rank_of_a_node_looks_at_folders(tmp_path: Path) -> None:
    missing = tmp_path / "nowhere"
    findings = examine(3, 0, [missing, tmp_path])
    assert findings.faults == [f"{missing}: No such file or directory"]
    assert (findings.rank, findings.num_gpus, findings.matmul_seconds) == (3, torch.cuda.device_count(), None)
    findings = examine(4, 1, [missing])
    assert findings.faults == []
    assert findings.matmul_seconds is not None
    assert findings.free_memory_bytes > 1 << 20


def test_gpus_that_slurm_promised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "8")
    assert gpu_faults(0, 7) == ["7 of 8 GPUs are visible to torch"]
    monkeypatch.delenv("SLURM_GPUS_ON_NODE")
    assert gpu_faults(0, 0) == []


def test_gpu_faults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "4")
    asked = []

    def memory(free: float) -> Callable[[int], tuple[float, float]]:
        return lambda device: (asked.append(device), (free, 80e9))[1]

    def broken(device: int) -> tuple[float, float]:
        raise RuntimeError("CUDA error: unknown error\nCUDA kernel errors might be")

    monkeypatch.setattr(torch.cuda, "mem_get_info", memory(73e9))
    assert gpu_faults(3, 4) == []
    assert asked == [3]
    assert gpu_faults(4, 4) == ["local rank 4 has no GPU, 4 are visible to torch"]
    monkeypatch.setattr(torch.cuda, "mem_get_info", memory(71e9))
    assert gpu_faults(3, 4) == ["GPU 3: 71.0 of 80.0 GB of its memory are free"]
    monkeypatch.setattr(torch.cuda, "mem_get_info", broken)
    assert gpu_faults(3, 4) == ["GPU 3: CUDA error: unknown error"]


def test_checks_that_hang_are_a_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(preflight, "examine", lambda *arguments: time.sleep(600))
    findings = preflight._examine(Launch(5, 8, 1, "n1", 1), tmp_path, 0.2)
    assert (findings.rank, findings.node) == (5, node_checks.node_name())
    assert list(judge([findings], {}).bad.values()) == [["rank 5: its checks did not end within 0 s"]]


def test_a_round_begins_when_all_have_ended_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[tuple[int, Pair]] = []

    def time_link(store: Store, launch: Launch, pair: Pair, ranks: list[int]) -> Link:
        tried.append((launch.rank, pair))
        return Link(launch.rank, pair, 0.01)

    monkeypatch.setattr(preflight, "time_link", time_link)
    store, returned = HashStore(), {}

    def begin(rank: int) -> threading.Thread:
        launch = Launch(rank, 4, 0, "n1", 1)
        work = lambda: returned.update({rank: preflight._try_links(store, launch, list(NODES), 10)})  # noqa: E731
        thread = threading.Thread(target=work)
        thread.start()
        return thread

    threads = [begin(1)]
    time.sleep(0.2)
    assert tried == []
    threads.append(begin(0))
    store.wait(["links/0/1"], timedelta(seconds=10))
    time.sleep(0.2)
    first = [(0, ("a", "b")), (1, ("a", "b"))]
    assert sorted(tried) == first
    for name in ("links/0/2", "links/0/3", "links/1/2", "links/1/3"):
        store.set(name, "[]")
    for thread in threads:
        thread.join(10)
    second = [(0, ("d", "a")), (1, ("b", "c"))]
    assert sorted(tried[2:]) == sorted(second)
    assert [(link.rank, link.nodes) for link in returned[0]] == [*first, *second]
