"""`clean`: raw text -> documents worth training on, by datatrove: normalise, filter with reasons, remove duplicates.

Each pass is a datatrove executor with a completion marker per task in the work folder `.OUTPUT.clean`, so that a killed
run goes on where it was; the output appears by one rename.
"""

import logging
import os
import resource
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cmbert.errors import ConfigError, InputError
from cmbert.files.folders import building, remove
from cmbert.files.lease import alone_in, is_lease
from cmbert.files.whole import write_json
from data_tools.clean.config import CleanConfig
from data_tools.clean.report import collect, describe_drops, describe_kept, write_report_page
from data_tools.clean.share import few_held_out, none_held_out, share_in_force
from data_tools.input.announcement import announced_files
from data_tools.input.listing import input_files
from data_tools.input.readers import ByteRange
from data_tools.input.tasks import plan_tasks
from data_tools.outputs import describe_inputs, is_done, naming, refuse_inside

if TYPE_CHECKING:
    from datatrove.pipeline.base import PipelineStep

REPORT_FILE = "report.json"
TEXTS = "${rank}.jsonl.zst"
PASSES = 2  # of these passes: what another version has begun is no beginning
SIGNATURES_READ = 4096  # records of each signature file read at a time

logger = logging.getLogger(__name__)


def clean(
    inputs: Sequence[str],
    output: Path | None = None,
    *,
    config: CleanConfig,
    num_workers: int = 1,
    heldout: Path | None = None,
    against: Sequence[str] = (),
) -> None:
    """Write the cleaned documents of `inputs` to `output`/NNNNN.jsonl.zst, and what was dropped and why to report.json.

    heldout: folder for a share of them that nothing is to be trained on; duplicates of it are gone with the others.
    Without `output` only that share is written. against: held-out texts, of this and other corpora; what equals one or
    nearly does is dropped. The same report as a page is report.html. Raises InputError for unusable text and when
    nothing is left, ConfigError for an output made with other settings, CheckpointError while another process cleans
    into the same `output`.
    """
    _import_datatrove()
    files = announced_files(inputs, config.txt_document)
    held_out_texts = input_files(against) if against else []
    settings: dict[str, Any] = {"inputs": describe_inputs(files), "config": asdict(config)}
    if held_out_texts:
        settings["against"] = describe_inputs(held_out_texts)
    only_heldout = output is None
    output, heldout = _outputs(output, heldout)
    refuse_inside(inputs, "--heldout" if only_heldout else "--output", output)
    if heldout:
        refuse_inside([*inputs, str(output)], "--heldout", heldout)
    settings |= {"only": "held out"} if only_heldout else {"heldout": str(heldout)} if heldout else {}
    work = output.with_name(f".{output.name}.clean")
    if is_done(output, REPORT_FILE, settings, "--heldout" if only_heldout else "--output"):
        remove(work)  # a kill may have come between the last rename and the end
        print(f"{output}: done already, with the same settings")
        return
    if heldout and heldout.is_dir():
        raise ConfigError(f"--heldout {heldout}: exists, but {output} does not; remove it or name another")
    tasks = plan_tasks(files, config.txt_document)
    if heldout or only_heldout:
        config = replace(config, heldout_share=share_in_force(config, files))
    with alone_in(work):
        _open_work_folder(work, [task.identity({**settings, "passes": PASSES}) for task in tasks])
        passes = Passes(
            work,
            [task.ranges for task in tasks],
            config,
            num_workers,
            held_out_ranges=[task.ranges for task in plan_tasks(held_out_texts)],
            only_heldout=only_heldout,
        )
        passes.find()
        with ExitStack() as stack:
            aside = stack.enter_context(building(output))  # left, and so published, after the held-out text
            passes.write(aside, stack.enter_context(building(heldout)) if heldout else None)
            report = {"settings": settings, "heldout_share": config.heldout_share, **collect(work)}
            _write_report(report, aside, inputs)
    remove(work)
    print(f"{output}: {describe_kept(report)}; dropped: {describe_drops(report)}")
    if (heldout or only_heldout) and (said := few_held_out(report)):
        print(f"{heldout or output}: {said}")


def _write_report(report: dict[str, Any], folder: Path, inputs: Sequence[str]) -> None:
    """Write report.json and report.html. Raises InputError when nothing is left."""
    if not report["kept"]:
        fault = f"no document is left: {describe_drops(report)}" if report["dropped"] else none_held_out(report)
        raise InputError(f"{', '.join(inputs)}: {fault}")
    write_json(folder / REPORT_FILE, report)
    write_report_page(report, folder / "report.html")


def _outputs(output: Path | None, heldout: Path | None) -> tuple[Path, Path | None]:
    """Return where to write, and the held-out share beside it: alone, it is what is written."""
    if output is None:
        if heldout is None:
            raise ConfigError("clean writes nothing: name --output, or --heldout alone for the held-out share")
        return heldout, None
    return output, heldout


def _import_datatrove() -> None:
    """Import datatrove, its progress bars off. Raises ConfigError when it is not installed."""
    os.environ.setdefault("TQDM_DISABLE", "1")
    try:
        import datatrove  # noqa: F401
    except ImportError as error:
        raise ConfigError("clean needs datatrove; pip install 'cmbert[data]'") from error


def _open_work_folder(work: Path, identities: list[str]) -> None:
    """Go on in the work folder if it belongs to the same input and settings, else empty it."""
    marker, identity = work / "identity", "\n".join(identities)
    if not (marker.is_file() and marker.read_text(encoding="utf-8") == identity):
        marker.unlink(missing_ok=True)  # first: a kill leaves nothing that still seems to belong to somebody
        left = [path for path in work.iterdir() if not is_lease(path)]
        if left:
            logger.info("%s: of another input or configuration: starting over", work)
        for path in left:
            remove(path)
        marker.write_text(identity, encoding="utf-8")
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))  # signatures of all tasks are merged at once


class Passes:
    """The passes over one input. Folders: texts, exact*, near*, and the records of what was dropped and kept."""

    def __init__(
        self,
        work: Path,
        ranges: Sequence[Sequence[ByteRange]],
        config: CleanConfig,
        num_workers: int,
        *,
        held_out_ranges: Sequence[Sequence[ByteRange]] = (),
        only_heldout: bool = False,
    ):
        self.work, self.ranges, self.config, self.num_workers = work, ranges, config, num_workers
        self.held_out_ranges, self.only_heldout = held_out_ranges, only_heldout

    def find(self) -> None:
        """Do all passes that only say what is kept."""
        from data_tools.clean.workers import start_server

        start_server(min(self.num_workers, len(self.ranges)))
        if self.held_out_ranges:
            self.learn_held_out()
        self.filter()
        if self.config.duplicates.exact:
            self.find_equal()
        if self.config.duplicates.near:
            self.find_similar()

    def learn_held_out(self) -> None:
        """Texts that nothing may be trained on -> what others are looked up in."""
        from data_tools.clean.heldout import JoinSketches, KeepSketches
        from data_tools.clean.steps import Read

        folder = self.work / "held_out_texts"
        folder.mkdir(exist_ok=True)
        steps = [Read(self.held_out_ranges, has_options=False), KeepSketches(folder)]
        self._run("sketch held-out text", steps, tasks=len(self.held_out_ranges))
        self._run("join sketches", [JoinSketches(folder)], tasks=1)

    def filter(self) -> None:
        """Input -> normalised texts that are worth keeping."""
        from data_tools.clean.heldout import NotHeldOut, OnlyHeldOut
        from data_tools.clean.steps import (
            WORK_LEVEL,
            ChineseQuality,
            Decodable,
            DropRecorder,
            HashTexts,
            Normalize,
            Read,
            WriteTexts,
        )

        config, work = self.config, self.work
        for folder in ("texts", "skipped", "removed", "dropped_undecodable", "dropped_quality", "dropped_held_out"):
            (work / folder).mkdir(exist_ok=True)
        self._run(
            "filter",
            [
                Read(self.ranges, config.reading(), config.source, work / "skipped"),
                *([OnlyHeldOut(config.heldout_share)] if self.only_heldout else []),
                Decodable(config, DropRecorder(work / "dropped_undecodable")),
                Normalize(config.normalize, work / "removed"),
                ChineseQuality(config.quality, DropRecorder(work / "dropped_quality")),
                *(
                    [NotHeldOut(work / "held_out_texts", DropRecorder(work / "dropped_held_out"))]
                    if self.held_out_ranges
                    else []
                ),
                *([HashTexts(str(work / "exact_signatures"), self._equality())] if config.duplicates.exact else []),
                WriteTexts(work / "texts", WORK_LEVEL),
            ],
        )

    def find_equal(self) -> None:
        """Texts -> which of them are equal to another."""
        from datatrove.pipeline.dedup.exact_dedup import ExactFindDedups

        finder = ExactFindDedups(
            str(self.work / "exact_signatures"),
            str(self.work / "exact"),
            self._equality(),
            lines_to_buffer=SIGNATURES_READ,
        )
        self._run("compare hashes", [finder], tasks=1)

    def find_similar(self) -> None:
        """Texts without equal ones -> which of them are nearly equal to another."""
        from datatrove.pipeline.dedup.minhash import MinhashDedupBuckets, MinhashDedupCluster

        from data_tools.clean.similar import ShingleSignature, minhash_config

        config = minhash_config(self.config.duplicates)
        signatures, pairs = str(self.work / "near_signatures"), str(self.work / "near_pairs")
        self._run("sign", [*self._without_equal(None), ShingleSignature(signatures, self.config.duplicates)])
        buckets = MinhashDedupBuckets(signatures, pairs, config=config, lines_to_buffer=SIGNATURES_READ)
        self._run("compare signatures", [buckets], tasks=config.num_buckets)
        how: dict[str, Any] = {"config": config, "save_cluster_id": True, "lines_to_buffer": SIGNATURES_READ}
        self._run("cluster", [MinhashDedupCluster(pairs, str(self.work / "near"), **how)], tasks=1)

    def write(self, output: Path, heldout: Path | None) -> None:
        """Texts -> those that stay, a share of them in `heldout`."""
        from datatrove.pipeline.dedup.minhash import MinhashDedupFilter
        from datatrove.pipeline.writers.jsonl import JsonlWriter

        from data_tools.clean.heldout import SetAside
        from data_tools.clean.similar import write_twins
        from data_tools.clean.steps import OUTPUT_LEVEL, CountKept, DropRecorder, WriteTexts, as_record

        for folder in ("dropped_exact", "dropped_near", "kept", "held_out"):
            (self.work / folder).mkdir(exist_ok=True)
        shutil.rmtree(self.work / "log write", ignore_errors=True)  # the output folder is a new one in every call
        steps = self._without_equal(DropRecorder(self.work / "dropped_exact", "exact_duplicate"))
        if self.config.duplicates.near:
            dropped = DropRecorder(self.work / "dropped_near", "near_duplicate")
            near = str(self.work / "near")
            steps.append(MinhashDedupFilter(near, dropped, load_cluster_ids=True, lines_to_buffer=SIGNATURES_READ))
        if heldout:
            writer = JsonlWriter(str(heldout), TEXTS, compression="zstd", adapter=as_record)
            steps.append(SetAside(writer, self.config.heldout_share, self.work / "held_out"))
        self._run("write", [*steps, CountKept(self.work / "kept"), WriteTexts(output, OUTPUT_LEVEL)])
        if self.config.duplicates.near:
            write_twins(self.work, lambda: self._without_equal(None), self.config.duplicates)

    def _equality(self) -> Any:
        from datatrove.pipeline.dedup.exact_dedup import ExactDedupConfig

        from data_tools.clean.steps import HASHES, text_of

        return ExactDedupConfig(content_getter=text_of, hash_config=HASHES)

    def _without_equal(self, dropped: Any) -> list["PipelineStep"]:
        from datatrove.pipeline.dedup.exact_dedup import ExactDedupFilter

        from data_tools.clean.steps import Reread

        steps: list[PipelineStep] = [Reread(self.work / "texts")]
        if self.config.duplicates.exact:
            steps.append(ExactDedupFilter(str(self.work / "exact"), self._equality(), dropped))
        return steps

    def _run(self, name: str, steps: list["PipelineStep"], tasks: int | None = None) -> None:
        """Run one pass on all tasks that are not complete."""
        from data_tools.clean.workers import QuietExecutor, start_server, watching

        tasks = tasks or len(self.ranges)
        log = self.work / f"log {name}"
        workers = min(self.num_workers, tasks)
        start_server(workers)
        with naming(self.work), watching(name, log / "completions", tasks):
            QuietExecutor(steps, tasks=tasks, workers=workers, logging_dir=str(log)).run()
