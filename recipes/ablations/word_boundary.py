"""A task made from text: does a word end at this place? Train, dev and test files for word_boundary.toml.

Two examples of a document's every chosen run of Hanzi: a place between two characters where one of jieba's words ends,
and one inside a word, each with the text before and after. Both labels are as frequent, no two splits share a document,
and everything is a function of the texts and --seed.
"""

import argparse
import json
import re
import sys
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path

from cmbert.errors import InputError
from cmbert.files.whole import write_text
from cmbert.seeding import generator
from data_tools.encoding.segment import segmenter
from data_tools.input.listing import input_files
from data_tools.input.readers import DocumentReader, whole_files

HANZI_RUN = re.compile("[\u4e00-\u9fff]{4,}")  # neither punctuation nor Latin script tells where the words end
AROUND = 20  # characters shown on each side (ours)
RUNS_PER_DOCUMENT = 4  # at most, so that long documents do not make up the sample (ours)


def examples(text: str, words: list[str], seed: int, index: int) -> Iterator[dict[str, str]]:
    """Yield a word's end and a place inside a word, of some runs of Hanzi in a document that have both."""
    draw = generator(seed, "word boundary places", index)
    ends = set(accumulate(map(len, words)))
    places = [range(run.start() + 1, run.end()) for run in HANZI_RUN.finditer(text)]
    halves = [([at for at in run if at in ends], [at for at in run if at not in ends]) for run in places]
    both = [half for half in halves if all(half)]
    for number in sorted(draw.permutation(len(both))[:RUNS_PER_DOCUMENT].tolist()):
        for label, choices in zip("10", both[number], strict=True):
            at = choices[int(draw.integers(len(choices)))]
            yield {"left": text[max(0, at - AROUND) : at], "right": text[at : at + AROUND], "label": label}


def main() -> int:
    """Write the three splits; InputError where the texts are too few."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--text", required=True, nargs="+", help="files or folders, as --input of data_tools")
    parser.add_argument("--output", required=True, type=Path, help="folder of train.json, dev.json and test.json")
    parser.add_argument(
        "--sizes", nargs=3, type=int, default=(4000, 2000, 2000), help="examples of each (even numbers)"
    )
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    cutter = segmenter()
    texts = sorted({document.text for document in DocumentReader(whole_files(input_files(options.text)))})
    order = iter(generator(options.seed, "word boundary documents").permutation(len(texts)).tolist())
    splits = {}
    for name, size in zip(("train", "dev", "test"), options.sizes, strict=True):
        found: list[dict[str, str]] = []
        while len(found) < size:
            index = next(order, None)
            if index is None:
                raise InputError(
                    f"--text: {len(texts):,} documents are too few for {options.sizes} examples; give more"
                )
            found += examples(texts[index], cutter.cut(texts[index]), options.seed, index)
        splits[name] = [json.dumps(example, ensure_ascii=False) for example in found[:size]]
    options.output.mkdir(parents=True, exist_ok=True)
    for name, lines in splits.items():
        write_text(options.output / f"{name}.json", "\n".join(lines) + "\n")
    print(f"written to {options.output}: {' / '.join(map(str, options.sizes))} examples of train, dev and test")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InputError as error:
        sys.exit(f"word_boundary.py: error: {error}")
