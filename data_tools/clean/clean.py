"""`clean`: raw text -> documents worth training on: normalise, filter with reasons, remove duplicates.

Every task of every pass has a marker in the work folder `.OUTPUT.clean`; kill anything at any moment, and the same
command does only what is missing. The same bytes come out for any number of workers, MPI ranks or array jobs. The
output appears by one rename.
"""

import hashlib
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cmbert.errors import ConfigError, InputError
from cmbert.files.folders import publish_directory, remove
from cmbert.files.lease import alone_in, is_lease
from cmbert.files.whole import write_json, write_text
from data_tools.clean.collect import collect
from data_tools.clean.config import CleanConfig
from data_tools.clean.duplicates.signatures import files_of_set, is_set, seal_set
from data_tools.clean.evaluation_sets import EvaluationSets
from data_tools.clean.passes import plan_passes, run_passes
from data_tools.clean.report import describe_drops, describe_kept, write_report_page
from data_tools.clean.setup import EVALUATION_TEXTS, HELD_OUT_TEXTS, PUBLISHING, Setup
from data_tools.clean.share import few_held_out, none_held_out, share_in_force
from data_tools.input.announcement import announced_files
from data_tools.input.listing import input_files
from data_tools.input.tasks import InputTask, plan_tasks
from data_tools.outputs import describe_inputs, is_done, naming, refuse_inside
from data_tools.runner import Share, Workers
from data_tools.storage.files import InputFile

REPORT_FILE = "report.json"
PASSES = 4  # of these passes: what another version has begun is no beginning

logger = logging.getLogger(__name__)


def clean(
    inputs: Sequence[str],
    output: Path | None = None,
    *,
    config: CleanConfig,
    workers: Workers | None = None,
    share: Share | None = None,
    heldout: Path | None = None,
    against: Sequence[str] = (),
    signatures: Path | None = None,
    decontaminate: Sequence[str] = (),
) -> None:
    """Write the cleaned documents of `inputs` to `output`/NNNNN.jsonl.zst, and what was dropped and why to report.json.

    heldout: folder for a share of them that nothing is to be trained on; duplicates of it are gone with the others.
    Without `output` only that share is written. against: held-out texts, of this and other corpora; what equals one or
    nearly does is dropped; or sets of signatures, for which the same holds by the rules for duplicates. signatures:
    folder for those of what stays. decontaminate: evaluation sets, files of any records; what holds one of their texts,
    or much of one, is dropped. share: do only that share of the first pass that is not complete. The same report
    as a page is report.html. Raises InputError for unusable text and when nothing is left, ConfigError for an output
    made with other settings, CheckpointError while another process cleans into the same `output`.
    """
    place = Places.of(output, heldout, signatures)
    place.refuse_inside(inputs)
    if signatures and not config.duplicates.any:
        raise ConfigError("--signatures: [duplicates] has neither exact nor near, so that nothing is signed")
    files = announced_files(inputs, config.txt_document)
    barred = Barred.of(against, decontaminate, config)
    settings: dict[str, Any] = {"inputs": describe_inputs(files), "config": config.as_record()}
    settings |= place.settings() | barred.settings()
    folder = place.output.with_name(f".{place.output.name}.clean")
    if is_done(place.output, REPORT_FILE, settings, place.option):
        remove(folder)  # a kill may have come between the last rename and the end
        print(f"{place.output}: done already, with the same settings")
        return
    tasks, held_out_tasks = plan_tasks(files, config.txt_document), plan_tasks(barred.held_out)
    identity = _identity([*tasks, *held_out_tasks], settings)
    setup = place.setup(folder / identity, config)
    if not setup.is_publishing:
        place.refuse_existing()
    if place.holds_out:
        setup = replace(setup, config=replace(config, heldout_share=share_in_force(config, files)))
    setup = barred.add_to(setup)
    try:
        with naming(folder), _alone_in(folder, identity) if share is None else nullcontext():
            passes = plan_passes(setup, tasks, held_out_tasks, barred.evaluation)
            named = run_passes(setup, passes, workers or Workers(), share)
            if share:
                print(_say_share(place.output, share, named))
                return
            report = _publish(setup, place, {"settings": settings, "heldout_share": setup.config.heldout_share}, inputs)
    except OSError:
        if not is_done(place.output, REPORT_FILE, settings, place.option):
            raise
        print(f"{place.output}: made by another job meanwhile, with the same settings")
        return
    remove(folder)
    print(f"{place.output}: {describe_kept(report)}; dropped: {describe_drops(report)}")
    if place.holds_out and (said := few_held_out(report)):
        print(f"{place.heldout or place.output}: {said}")


@dataclass(frozen=True)
class Barred:
    """What no text that stays may equal, nearly equal or hold."""

    held_out: list[InputFile]
    """Files of held-out texts."""
    earlier: tuple[Path, ...]
    """Signature files of what was cleaned before."""
    evaluation: EvaluationSets

    @classmethod
    def of(cls, against: Sequence[str], decontaminate: Sequence[str], config: CleanConfig) -> "Barred":
        """Return it, as --against and --decontaminate name it."""
        sets = [name for name in against if is_set(Path(name))]
        texts = [name for name in against if name not in sets]
        if sets and not config.duplicates.any:
            raise ConfigError(
                f"--against {sets[0]}: [duplicates] has neither exact nor near, so that nothing is compared"
            )
        earlier = tuple(file for name in sets for file in files_of_set(Path(name), config.duplicates))
        return cls(input_files(texts) if texts else [], earlier, EvaluationSets.of(decontaminate))

    def settings(self) -> dict[str, Any]:
        """Return what a report keeps of it."""
        others = {"against": self.held_out, "earlier": self.earlier}
        return {name: describe_inputs(files) for name, files in others.items() if files} | self.evaluation.settings()

    def add_to(self, setup: Setup) -> Setup:
        """Return what tasks are told, with where they find it."""
        return replace(
            setup,
            held_out_texts=setup.work / HELD_OUT_TEXTS if self.held_out else None,
            evaluation_texts=setup.work / EVALUATION_TEXTS if self.evaluation.files else None,
            earlier=self.earlier,
        )


@dataclass(frozen=True)
class Places:
    """Where to write what."""

    output: Path
    heldout: Path | None
    signatures: Path | None
    only_heldout: bool

    @classmethod
    def of(cls, output: Path | None, heldout: Path | None, signatures: Path | None) -> "Places":
        """Return them; the held-out share alone is what is written without `output`."""
        if output is not None:
            return cls(output, heldout, signatures, False)
        if heldout is None:
            raise ConfigError("clean writes nothing: name --output, or --heldout alone for the held-out share")
        return cls(heldout, None, signatures, True)

    @property
    def option(self) -> str:
        """How `output` was given."""
        return "--heldout" if self.only_heldout else "--output"

    @property
    def holds_out(self) -> bool:
        """Whether some texts are held out."""
        return self.only_heldout or self.heldout is not None

    @property
    def _beside(self) -> list[tuple[str, Path]]:
        found = (("--heldout", self.heldout), ("--signatures", self.signatures))
        return [(name, path) for name, path in found if path is not None]

    def refuse_inside(self, inputs: Sequence[str]) -> None:
        """Raise ConfigError where one of them would be read as input."""
        refuse_inside(inputs, self.option, self.output)
        for name, path in self._beside:
            refuse_inside([*inputs, str(self.output)], name, path)

    def refuse_existing(self) -> None:
        """Raise ConfigError where something lies at one of them that no call of this kind has left."""
        for name, path in self._beside:
            if path.is_dir():
                raise ConfigError(f"{name} {path}: exists, but {self.output} does not; remove it or name another")

    def settings(self) -> dict[str, str]:
        """Return what a report keeps of them."""
        only = {"only": "held out"} if self.only_heldout else {}
        return only | {name.removeprefix("--"): str(path) for name, path in self._beside}

    def setup(self, work: Path, config: CleanConfig) -> Setup:
        """Return what tasks are told: all is built aside, on the disk where it is to be."""
        aside = {name: path.with_name(f".{path.name}.{work.name}.clean") for name, path in self._beside}
        return Setup(
            work=work,
            config=config,
            texts=work / "output",
            heldout=aside.get("--heldout"),
            signatures=aside.get("--signatures"),
            only_heldout=self.only_heldout,
        )


def _identity(tasks: Sequence[InputTask], settings: dict[str, Any]) -> str:
    """Return the name of what this call makes, and of which code's passes."""
    digest = hashlib.blake2b(digest_size=8)
    for task in tasks:
        digest.update(task.identity({**settings, "passes": PASSES}).encode())
    return digest.hexdigest()


@contextmanager
def _alone_in(folder: Path, identity: str) -> Iterator[None]:
    """Hold the work folder's lease; remove what another input or configuration has left there."""
    with alone_in(folder):
        left = [path for path in folder.iterdir() if not is_lease(path) and path.name != identity]
        if left:
            logger.info("%s: of another input or configuration: starting over", folder)
        for path in left:
            remove(path)
        yield


def _say_share(output: Path, share: Share, done: str | None) -> str:
    """Return what to do when a job of an array is through."""
    if done is None:
        return f"{output}: all passes are complete; run it without --num-tasks and --task-index"
    return (
        f"{output}: {done}: share {share.number} of {share.num_jobs} is done; when all are, submit the same array "
        "for the next pass (when none is left it says so)"
    )


def _publish(setup: Setup, place: Places, about: dict[str, Any], inputs: Sequence[str]) -> dict[str, Any]:
    """Write the report, rename all that was made, the output last. Raises InputError when nothing is left."""
    report = {**about, **collect(setup)}
    if not report["kept"]:
        for folder in setup.folders():
            remove(folder)
        remove(setup.work)
        fault = f"no document is left: {describe_drops(report)}" if report["dropped"] else none_held_out(report)
        raise InputError(f"{', '.join(inputs)}: {fault}")
    if setup.texts.exists():
        write_json(setup.texts / REPORT_FILE, report)
        write_report_page(report, setup.texts / "report.html")
    if setup.signatures and setup.signatures.exists():
        documents = sum(counts["documents"] for counts in report["kept"].values()) + report["held_out"]
        seal_set(setup.signatures, setup.config.duplicates, documents)
    write_text(setup.work / PUBLISHING, "")
    for aside, final in (
        (setup.heldout, place.heldout),
        (setup.signatures, place.signatures),
        (setup.texts, place.output),
    ):
        if aside and final and aside.exists():
            for left in aside.glob(".*"):  # of tasks that were killed
                remove(left)
            final.parent.mkdir(parents=True, exist_ok=True)
            publish_directory(aside, final)
    return report
