"""Before a job trains: are its nodes fit, and may it begin? One process per GPU, started like `cmbert train`.

Ranks report through a store instead of by collectives, so that one that is dead is named instead of waited for.
"""

import faulthandler
import json
import logging
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path

from torch.distributed import DistError, Store, TCPStore

from cmbert.cluster.distributed import Launch
from cmbert.cluster.links import LINK_SECONDS, link_ranks, time_link
from cmbert.cluster.node_checks import (
    Findings,
    Judgement,
    Link,
    examine,
    judge,
    judge_links,
    node_name,
    within,
)
from cmbert.errors import EXIT_USER_ERROR, CmbertError, first_line
from cmbert.files.whole import write_text
from cmbert.memory import free_host_bytes

EXIT_UNFIT = 69  # EX_UNAVAILABLE of sysexits.h: these nodes, or the network between them, are not fit
LIFE_FILE, BAD_NODES_FILE = "life", "bad_nodes"
POLL_SECONDS = 0.05
PARTING_SECONDS = 5  # for the others to report, or to read the verdict from rank 0's store

logger = logging.getLogger(__name__)


def preflight(
    run: Path,
    launch: Launch,
    *,
    result: Path,
    nodes: Sequence[str],
    wait_seconds: float,
    begin: Callable[[], None],
) -> int:
    """Return 0 if this job may train, EXIT_UNFIT if nodes are not fit; every rank returns the same.

    If the job may not begin, rank 0 raises CmbertError or OSError and the others return EXIT_USER_ERROR.

    run: the run directory, whose disk is tried.
    result: a folder that all nodes see. `bad_nodes` gets a line for each unfit node: name, tab, reasons.
    nodes: the job's nodes in the order of ranks, to name those that are silent; may be empty.
    wait_seconds: a rank that has not answered after so long is dead.
    begin: what rank 0 does before all else: it leaves LIFE_FILE in `result`, or raises what forbids this job to begin.
    """
    started = time.monotonic()
    faulthandler.dump_traceback_later(_most_seconds(wait_seconds), exit=True)  # a hang must not keep the nodes
    try:
        result.mkdir(parents=True, exist_ok=True)
        if launch.rank == 0:
            try:
                begin()
            except (CmbertError, OSError):
                with suppress(DistError):
                    _dismiss(launch, wait_seconds)
                raise
        store = _open_store(launch, wait_seconds)
        found = _examine(launch, run, wait_seconds / 2)
        store.set(f"found/{launch.rank}", json.dumps(asdict(found)))
        if launch.rank == 0:
            return _lead(store, launch, result, nodes, wait_seconds)
        return _follow(store, launch, wait_seconds)
    except DistError as error:
        _say_lost(error, launch, result, nodes, time.monotonic() - started)
        return EXIT_UNFIT
    finally:
        faulthandler.cancel_dump_traceback_later()


def _say_lost(error: DistError, launch: Launch, result: Path, nodes: Sequence[str], seconds: float) -> None:
    """Say what a rank without a store knows; blame rank 0's node if that never began."""
    why = first_line(error)
    if launch.rank == 0:
        where = f"{launch.address}:{launch.port}"
        advice = "if another program has the port, set MASTER_PORT; train.sh finds a free one for the next life"
        logger.error("rank 0 on %s: the ranks cannot meet at %s (%s); %s", node_name(), where, why, advice)
        return
    first = nodes[0] if nodes else launch.address
    reason = f"rank 0 did not answer within {seconds:.0f} s"
    logger.error("rank %d on %s: %s: %s (%s)", launch.rank, node_name(), first, reason, why)
    if not (result / LIFE_FILE).is_file():  # it never began
        write_text(result / BAD_NODES_FILE, f"{first}\t{reason}\n")


def _most_seconds(wait_seconds: float) -> float:
    """Return more than a preflight takes when every wait in it ends by its limit."""
    return 4 * wait_seconds + 10 * LINK_SECONDS


def _open_store(launch: Launch, wait_seconds: float) -> TCPStore:
    store = TCPStore(
        launch.address, launch.port, is_master=launch.rank == 0, wait_for_workers=False,
        timeout=timedelta(seconds=wait_seconds),
    )  # fmt: skip
    # Waits that name no limit are those of a new communicator; until one ends, no other thread reaches the store.
    store.set_timeout(timedelta(seconds=LINK_SECONDS / 2))
    return store


def _dismiss(launch: Launch, wait_seconds: float) -> None:
    """Rank 0: tell the others that this job may not begin."""
    store = _open_store(launch, wait_seconds)
    store.set("next", json.dumps(None))
    _collect(store, "read", range(1, launch.world_size), wait_seconds)


def _examine(launch: Launch, run: Path, seconds: float) -> Findings:
    """Look at this node; a GPU or a disk that hangs is a fault too."""
    folders = [run, Path(tempfile.gettempdir())]
    found = within(seconds, lambda: examine(launch.rank, launch.local_rank, folders))
    if found is None:
        fault = f"rank {launch.rank}: its checks did not end within {seconds:.0f} s"
        found = Findings(launch.rank, node_name(), [fault], 0, free_host_bytes(), None)
    return found


def _lead(store: Store, launch: Launch, result: Path, nodes: Sequence[str], wait_seconds: float) -> int:
    """Rank 0: collect what all found, let the sound nodes try the network, judge, and tell the others."""
    world = launch.world_size
    answers = _collect(store, "found", range(world), wait_seconds)
    findings = {rank: Findings(**json.loads(text)) for rank, text in answers.items()}
    silent = {rank: nodes[rank * len(nodes) // world] if nodes else f"(node of rank {rank})"
              for rank in range(world) if rank not in findings}  # fmt: skip
    judgement = judge(list(findings.values()), silent)
    links: list[Link] = []
    placed = [] if judgement.bad else [findings[rank].node for rank in range(world)]
    store.set("next", json.dumps(placed))
    if placed:
        links = _try_links(store, launch, placed, wait_seconds)
        judgement = judge_links(links, {pair: ranks for pairs in link_ranks(placed) for pair, ranks in pairs.items()})
    code = EXIT_UNFIT if judgement.bad or judgement.broken else 0
    _say(judgement, findings, links, result)
    store.set("verdict", str(code))
    _collect(store, "read", findings.keys() - {0}, PARTING_SECONDS)  # the store ends with this process
    return code


def _follow(store: Store, launch: Launch, wait_seconds: float) -> int:
    """Any other rank: wait for the others, try the network, and learn the verdict."""
    _wait(store, "next", wait_seconds)
    placed = json.loads(store.get("next"))
    if placed is None:
        code = EXIT_USER_ERROR
    else:
        _try_links(store, launch, placed, wait_seconds)
        _wait(store, "verdict", wait_seconds)
        code = int(store.get("verdict"))
    store.set(f"read/{launch.rank}", "")
    return code


def _try_links(store: Store, launch: Launch, placed: Sequence[str], wait_seconds: float) -> list[Link]:
    """Time this rank's all-reduces; rank 0 begins each round when all have ended the last, and returns all links.

    Else a rank that had waited for a dead peer would be late for the next one, which would count as a fault of its own.
    """
    links: list[Link] = []
    for number, pairs in enumerate(link_ranks(placed)):
        if launch.rank == 0:
            store.set(f"round/{number}", "")
        else:
            _wait(store, f"round/{number}", wait_seconds)
        own = [time_link(store, launch, pair, ranks) for pair, ranks in pairs.items() if launch.rank in ranks]
        store.set(f"links/{number}/{launch.rank}", json.dumps([asdict(link) for link in own]))
        if launch.rank == 0:
            reported = _collect(store, f"links/{number}", range(len(placed)), LINK_SECONDS + PARTING_SECONDS)
            links += [Link(link["rank"], tuple(link["nodes"]), link["seconds"])
                      for text in reported.values() for link in json.loads(text)]  # fmt: skip
    return links


def _wait(store: Store, key: str, wait_seconds: float) -> None:
    """Wait until rank 0 has got so far, which itself waits for the others. Raises DistError."""
    store.wait([key], timedelta(seconds=2 * wait_seconds + 3 * LINK_SECONDS))


def _collect(store: Store, kind: str, ranks: Iterable[int], seconds: float) -> dict[int, str]:
    """Return what the ranks have put into the store as `kind`/RANK within some seconds."""
    end = time.monotonic() + seconds
    missing, found = list(ranks), {}
    while missing:
        for rank in [rank for rank in missing if store.check([f"{kind}/{rank}"])]:
            found[rank] = store.get(f"{kind}/{rank}").decode()
            missing.remove(rank)
        if time.monotonic() > end:
            break
        time.sleep(POLL_SECONDS)
    return found


def _say(judgement: Judgement, findings: Mapping[int, Findings], links: Sequence[Link], result: Path) -> None:
    """Log the verdict with the figures it rests on, and write down the bad nodes."""
    for node, reasons in judgement.bad.items():
        logger.info("preflight: %s is not fit: %s", node, "; ".join(reasons))
    for reason in [*judgement.broken, *judgement.slow]:
        logger.info("preflight: %s", reason)
    lines = [f"{node}\t{'; '.join(reasons)}\n" for node, reasons in judgement.bad.items()]
    if lines and not (result / BAD_NODES_FILE).is_file():
        write_text(result / BAD_NODES_FILE, "".join(lines))
    if lines or judgement.broken:
        return
    memory = [found.free_memory_bytes / 1e9 for found in findings.values()]
    parts = [f"{len({found.node for found in findings.values()})} nodes, {len(findings)} ranks fit"]
    parts.append(f"{max(found.num_gpus for found in findings.values())} GPUs a node")
    parts.append(f"{min(memory):.0f} GB of memory free at least")
    parts.append(_range("matmul", [found.matmul_seconds for found in findings.values()]))
    if links:
        parts.append(_range("all-reduce", [link.seconds for link in links]))
    logger.info("preflight: %s", ", ".join(parts))


def _range(name: str, seconds: Sequence[float | None]) -> str:
    timed = [found * 1e3 for found in seconds if found is not None]
    return f"{name} {min(timed):.1f} to {max(timed):.1f} ms"
