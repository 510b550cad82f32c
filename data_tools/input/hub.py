"""Documents of a data set of the Hugging Face hub, or of a local folder of the same layout, row by row."""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cmbert.errors import CmbertError, ConfigError, InputError, TransientError, advice, first_line
from data_tools.input.document import Document
from data_tools.input.readers import PARQUET_BATCH_ROWS
from data_tools.input.records import BadRecordError, document_of
from data_tools.storage.network import is_network


def hub_documents(name: str, text_key: str, on_bad_line: str, skipped: Counter[str]) -> Iterator[Document]:
    """Stream the training split of a hub data set, or of a local folder of the same layout.

    Only the text has to be there in every file; what other columns hold may differ from file to file. skipped: where
    rows without usable text are counted with on_bad_line="skip". Raises ConfigError when `datasets` is not installed
    or the set cannot be opened, InputError for such rows else, and for a damaged file, TransientError when the network
    fails.
    """
    rows = enumerate(_rows(name))
    source = name.rstrip("/").split("/")[-1]
    while True:
        with _reading(name):
            number, row = next(rows, (-1, {}))
        if number < 0:
            return
        try:
            yield document_of({text_key: row.get(text_key)}, text_key, f"{source}:{number}", source)
        except BadRecordError as bad:
            if on_bad_line == "fail":
                see_text_key = "see --text-key; " if bad.reason == "no_text" else ""
                raise InputError(
                    f"hf:{name}: row {number}: {bad} ({see_text_key}--on-bad-line skip counts such rows)"
                ) from bad
            skipped[bad.reason] += 1


def _rows(name: str) -> Iterator[dict[str, Any]]:
    """Open a data set; return its rows, each with the columns and types that its own file gives it."""
    if not name:
        raise ConfigError("--from hf: names no data set; for example hf:BAAI/CCI3-HQ, or a local folder")
    try:
        import datasets
    except ImportError as error:
        raise ConfigError("--from hf: needs the package datasets; pip install 'cmbert[data]'") from error
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)  # it says in several lines what we say in one
    datasets.disable_progress_bars()
    try:
        with _reading(name, ConfigError, "--from hf:{name}: {said}"):
            builder = datasets.load_dataset_builder(name)
        if hasattr(builder.config, "batch_size"):  # of parquet: by default the first file's rows, be it none
            builder.config.batch_size = PARQUET_BATCH_ROWS
        with _reading(name):
            stream = builder.as_streaming_dataset(split="train")
            # Else every row is cast to what the first file holds, and its `null` fits nothing (datasets#6162, #7092).
            builder.info.features = stream.info.features = None
            return iter(stream)
    except StopIteration as error:  # what datasets lets out for an empty file
        raise InputError(f"hf:{name}: its first file is empty") from error


@contextmanager
def _reading(
    name: str, kind: type[CmbertError] = InputError, text: str = "hf:{name}: its files cannot be read ({said})"
) -> Iterator[None]:
    """Say in one line whatever `datasets` and the libraries below it raise: they name no kind that all are of."""
    try:
        yield
    except (CmbertError, MemoryError, StopIteration):
        raise
    except Exception as error:
        said = first_line(error) or type(error).__name__
        if is_network(error):
            raise TransientError(f"hf:{name}: {said}; {advice(passing=True)}") from error
        if isinstance(error, OSError) and error.errno is not None and error.strerror and kind is InputError:
            raise  # the disk's: it has a line of its own
        raise kind(text.format(name=name, said=said)) from error
