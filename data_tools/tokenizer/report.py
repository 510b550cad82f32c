"""What a tokenizer does to held-out text, beside a legacy vocabulary; and what its vocabulary holds."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import models, normalizers, pre_tokenizers

from cmbert.config.new import SIZES
from cmbert.errors import ConfigError, InputError
from cmbert.files.reading import every_line
from cmbert.html.page import bars, chips, section, table, write_page
from cmbert.tokenizer import Tokenizer
from data_tools.clean.text.characters import code_points, is_hanzi
from data_tools.encoding.encode import DocumentEncoder, batches
from data_tools.encoding.manifest import Tally
from data_tools.input.document import Document

LONGEST_TOKENS = 40
SMALLEST_COMPARED = 1_024  # ids; sizes are halved down to here
COMPARED_CHARACTERS = 1_000_000  # of the measured text, at every size
LONGEST_EXAMPLE = 40  # characters, where no sentence fits
SENTENCE = re.compile("[^。！？\\n]{12,50}[。！？]")  # an example that fits a telephone's screen
CROSSED = {"clause": "words within a clause", "word": "none", "character": "none, and no Hanzi join"}
TOKEN_KINDS = ("one Hanzi", "several Hanzi", "letters", "digits", "other text", "part of a character")


@dataclass(frozen=True)
class Compression:
    """How far one tokenizer compresses one text."""

    characters_per_token: float
    bytes_per_token: float
    unknown_share: float
    """Of the tokens, [UNK]."""


@dataclass(frozen=True)
class AtSize:
    """The first merges of the same training: what a smaller vocabulary would be."""

    characters_per_token: float
    embedding_share: dict[str, float]
    """Of a model's parameters, by its size."""


@dataclass(frozen=True)
class Measures:
    """Everything the report says, as plain values."""

    vocab_size: int
    measured_characters: int
    ours: dict[str, Compression]
    """By source, and "all"."""
    legacy: dict[str, Compression]
    """Likewise for the vocabulary compared with; empty without one."""
    straddle_rate: float
    """Share of jieba's word boundaries that lie inside a token."""
    kinds: dict[str, int]
    """Tokens of the vocabulary by what they spell."""
    longest: list[str]
    """Of those that spell several whole characters."""
    at_sizes: dict[int, AtSize]
    """By ids: this vocabulary, half of it, a quarter; all on the same text."""
    example: list[str]
    """A sentence of the measured text as this tokenizer cuts it, or the start of a text without one."""
    legacy_example: list[str]
    """The same as the vocabulary compared with cuts it; empty without one."""

    def headline(self) -> str:
        """Return the measures in one line."""
        ours = self.ours["all"]
        line = f"{ours.characters_per_token:.2f} characters per token"
        if self.legacy:
            ratio = ours.characters_per_token / self.legacy["all"].characters_per_token
            line += f", {ratio:.2f} times the legacy vocabulary"
        return f"{line}, {100 * self.straddle_rate:.1f} % of word boundaries inside a token"


def measure(tokenizer: Tokenizer, documents: Sequence[Document], legacy: tokenizers.Tokenizer | None) -> Measures:
    """Measure a tokenizer on documents, beside a legacy one if there is one."""
    by_source: dict[str, list[str]] = {}
    for document in documents:
        by_source.setdefault(document.source, []).append(tokenizer.normalize(document.text))
    texts = {"all": [text for part in by_source.values() for text in part], **by_source}
    spellings = [tokenizer.backend.decode([index]) for index in tokenizer.vocabulary.ordinary.tolist()]
    whole = [spelling for spelling in spellings if len(spelling) > 1 and "\ufffd" not in spelling]
    kinds = dict.fromkeys(TOKEN_KINDS, 0)
    for spelling in spellings:
        kinds[_kind(spelling)] += 1
    example = next((found[0] for text in texts["all"] if (found := SENTENCE.search(text))), "")
    example = example or next((text for text in texts["all"] if text), "")[:LONGEST_EXAMPLE]
    return Measures(
        vocab_size=tokenizer.vocab_size,
        measured_characters=sum(map(len, texts["all"])),
        ours={name: _compression(tokenizer.backend, part) for name, part in texts.items()},
        legacy={name: _compression(legacy, part) for name, part in texts.items()} if legacy else {},
        straddle_rate=_straddle_rate(tokenizer, documents),
        kinds=kinds,
        longest=sorted(whole, key=lambda spelling: (-len(spelling), spelling))[:LONGEST_TOKENS],
        at_sizes=_at_sizes(tokenizer, texts["all"]),
        example=_pieces(tokenizer.backend, example),
        legacy_example=_pieces(legacy, example) if legacy else [],
    )


def _at_sizes(tokenizer: Tokenizer, texts: Sequence[str]) -> dict[int, AtSize]:
    """Measure this vocabulary and the smaller ones that its training passed through, on the same text."""
    part, left = list[str](), COMPARED_CHARACTERS
    for text in texts:
        part.append(text[:left])
        left -= len(part[-1])
        if not left:
            break
    sizes = [tokenizer.vocab_size]
    while sizes[-1] // 2 >= SMALLEST_COMPARED:
        sizes.append(sizes[-1] // 2)
    return {
        size: AtSize(
            _compression(truncated(tokenizer.backend, size), part).characters_per_token,
            {name: round(model.parameters(size).embedding_share, 4) for name, model in SIZES.items()},
        )
        for size in reversed(sizes)
    }


def truncated(backend: tokenizers.Tokenizer, vocab_size: int) -> tokenizers.Tokenizer:
    """Return what the same training gives with fewer ids: its merges up to the one that makes the last of them."""
    values = json.loads(backend.to_str())
    model = values["model"]
    vocab, merges = {token: index for token, index in model["vocab"].items() if index < vocab_size}, []
    for merge in model["merges"]:
        token = "".join(merge)
        if token not in vocab:  # the next id, which there is no room for
            break
        merges.append(merge)
    model |= {"vocab": vocab, "merges": merges}
    return tokenizers.Tokenizer.from_str(json.dumps(values))


def _pieces(backend: tokenizers.Tokenizer, text: str) -> list[str]:
    """Return a text as a tokenizer cuts it, in the text's own characters."""
    encoding = backend.encode(text, add_special_tokens=False)
    return [text[start:end] for start, end in encoding.offsets]


def read_wordpiece(path: Path) -> tokenizers.Tokenizer:
    """Return BERT's tokenizer of a vocabulary file, one token a line, or of a folder's vocab.txt.

    Raises ConfigError when it is none.

    A line is a token whatever it holds: U+2028, U+0085 or blanks. A token that stands twice has its last line's id, as
    with BERT's own tokenizer.
    """
    path = path / "vocab.txt" if path.is_dir() else path
    try:
        vocab = {word: number - 1 for number, word in every_line(path)}
    except InputError as error:
        raise ConfigError(f"--against {error}; name a vocabulary with one token a line") from error
    if "[UNK]" not in vocab:
        raise ConfigError(f"--against {path}: holds no [UNK]: not a WordPiece vocabulary with one token a line")
    backend = tokenizers.Tokenizer(models.WordPiece(vocab=vocab, unk_token="[UNK]"))
    backend.normalizer, backend.pre_tokenizer = normalizers.BertNormalizer(), pre_tokenizers.BertPreTokenizer()
    return backend


def _compression(backend: tokenizers.Tokenizer, texts: Sequence[str]) -> Compression:
    ids = [encoding.ids for encoding in backend.encode_batch_fast(list(texts), add_special_tokens=False)]
    num_tokens = max(sum(map(len, ids)), 1)
    unknown = backend.token_to_id("[UNK]")  # ours never makes it
    num_unknown = sum(part.count(unknown) for part in ids) if unknown is not None else 0
    return Compression(
        characters_per_token=round(sum(map(len, texts)) / num_tokens, 4),
        bytes_per_token=round(sum(len(text.encode("utf-8")) for text in texts) / num_tokens, 4),
        unknown_share=round(num_unknown / num_tokens, 6),
    )


def _straddle_rate(tokenizer: Tokenizer, documents: Sequence[Document]) -> float:
    encoder, tally = DocumentEncoder(tokenizer.directory, "auto"), Tally()
    for batch in batches(documents):
        tally.add(encoder(batch).tally)
    return round(tally.lost_boundaries() / max(tally.word_boundaries, 1), 4)


def _kind(spelling: str) -> str:
    if "\ufffd" in spelling or not spelling:
        return "part of a character"
    hanzi = int(is_hanzi(code_points(spelling)).sum())
    if hanzi == len(spelling):
        return "one Hanzi" if hanzi == 1 else "several Hanzi"
    if spelling.strip().isdigit():
        return "digits"
    return "letters" if spelling.strip().isalpha() and not hanzi else "other text"


def report(measures: Measures, settings: dict[str, Any], *, held_out: bool) -> dict[str, Any]:
    """Return the report as plain values for JSON."""
    return {"settings": settings, "measured_on": _measured_on(held_out), **asdict(measures)}


def _measured_on(held_out: bool) -> str:
    return "held-out text" if held_out else "the training text: it is too small to hold any out"


def write_report_page(output: Path, measures: Measures, settings: dict[str, Any], *, held_out: bool) -> None:
    """Write the report as one HTML page."""
    headings = ["source", "characters per token", "bytes per token"]
    headings += ["legacy: characters per token", "legacy: unknown", "ratio"] if measures.legacy else []
    rows: list[list[str]] = []
    for name, ours in measures.ours.items():
        row = [name, f"{ours.characters_per_token:.3f}", f"{ours.bytes_per_token:.3f}"]
        if measures.legacy:
            legacy = measures.legacy[name]
            ratio = ours.characters_per_token / legacy.characters_per_token
            row += [f"{legacy.characters_per_token:.3f}", f"{100 * legacy.unknown_share:.2f} %", f"{ratio:.2f}"]
        rows.append(row)
    straddle = [
        ["boundaries that merges may cross", CROSSED[settings["boundaries"]]],
        ["word boundaries inside a token", f"{100 * measures.straddle_rate:.2f} %"],
    ]
    total = sum(measures.kinds.values())
    kinds = [(name, count, f"{count:,} ({100 * count / total:.1f} %)") for name, count in measures.kinds.items()]
    counted = f"{measures.vocab_size:,} ids; {measures.measured_characters:,} characters measured"
    write_page(
        output,
        title="Tokenizer",
        subtitle=f"{counted}: {measures.headline()}",
        sections=[
            section(f"Compression of {_measured_on(held_out)}", table(headings, rows, "numbers")),
            section("Is this size right?", sizes_table(measures)),
            examples_section(measures),
            section("Words", table([], straddle, "facts")),
            section("What the tokens spell", bars(kinds)),
            section("Longest tokens", _chips(measures.longest)),
        ],
    )


def sizes_table(measures: Measures) -> str:
    """Return what each size of vocabulary gains in compression and takes of a model's parameters, as HTML."""
    rows, smaller = list[list[str]](), 0.0
    for size, at in measures.at_sizes.items():
        name = f"{size:,}" + (", this one" if size == measures.vocab_size else "")
        gain = f"{100 * (at.characters_per_token / smaller - 1):+.1f} %" if smaller else "–"
        shares = [f"{100 * at.embedding_share[model]:.0f} %" for model in SIZES]
        rows.append([name, f"{at.characters_per_token:.3f}", gain, *shares])
        smaller = at.characters_per_token
    head = ["ids", "characters per token", "gain", *(f"embedding of {model}" for model in SIZES)]
    note = (
        "Smaller sizes are the first merges of this training, on the same text. A larger vocabulary is worth it while "
        "the tokens that a text saves outweigh the parameters that the embedding takes from the layers. Train with a "
        "larger --vocab-size to see what more would gain: this size is then among the smaller ones."
    )
    return f'{table(head, rows, "numbers")}<p class="faint">{note}</p>'


def examples_section(measures: Measures) -> str:
    """Return a sentence as the tokenizers cut it, or nothing without one."""
    examples = (("This tokenizer", measures.example), ("The legacy vocabulary", measures.legacy_example))
    cut = [f'<p class="soft">{name}: {len(pieces)} tokens</p>{_chips(pieces)}' for name, pieces in examples if pieces]
    return section("A sentence, cut", "".join(cut)) if cut else ""


def _chips(tokens: Sequence[str]) -> str:
    return chips([token.translate({10: "⏎", 32: "␣"}) for token in tokens])
