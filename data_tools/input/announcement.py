"""One line on how .txt is read, since nothing in such a file says what a document is: a wrong choice is seen there."""

import itertools
import statistics
from collections.abc import Sequence

from data_tools.defaults import TXT_DOCUMENTS
from data_tools.input.listing import input_files
from data_tools.input.readers import DocumentReader, whole_files
from data_tools.input.streams import kind_of, text_stream
from data_tools.storage.files import InputFile, open_input

LOOKED_AT = 1_000  # documents; some milliseconds
HEAD_BYTES = 1 << 16  # of the first file, to look for blank lines in
BLANK_SHARE = 0.1  # of the lines; ours: fewer are slips
MEANINGS = {"line": "a line", "block": "what lies between blank lines", "file": "the whole file"}


def announced_files(inputs: Sequence[str], txt_document: str = TXT_DOCUMENTS[0]) -> list[InputFile]:
    """Return what `input_files` does; if there is .txt, print how it is read."""
    files = input_files(inputs)
    if said := describe_txt(files, txt_document):
        print(said, flush=True)
    return files


def describe_txt(files: Sequence[InputFile], txt_document: str = TXT_DOCUMENTS[0]) -> str:
    """Return how the .txt files among `files` are read, "" without any. Raises InputError for a damaged one."""
    texts = [path for path in files if kind_of(path) == "txt"]
    if not texts:
        return ""
    reader = DocumentReader(whole_files(texts), on_bad_line="skip", txt_document=txt_document)
    lengths = [len(document.text) for document in itertools.islice(reader, LOOKED_AT)]
    first = f"the first {len(lengths):,} have {statistics.median(lengths or [0]):,.0f} characters in the median"
    hint = ""
    if txt_document == "line" and _blank_share(texts[0]) > BLANK_SHARE:
        hint = "; many lines are blank: if they lie between documents --txt-document block, between paragraphs file"
    return f"{len(texts):,} .txt files: a document is {MEANINGS[txt_document]}; {first}{hint}"


def _blank_share(path: InputFile) -> float:
    with open_input(path, until=0) as raw:
        lines = text_stream(path, raw).read(HEAD_BYTES).rstrip().split(b"\n")
    return sum(not line.strip() for line in lines) / len(lines)
