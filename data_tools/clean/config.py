"""Every knob of `clean`, as frozen dataclasses; a TOML file per source sets them. Defaults are ours."""

import sys
from dataclasses import asdict, dataclass, field, is_dataclass
from pathlib import Path
from typing import Any, Literal

from cmbert.config.load import build, read_toml
from cmbert.errors import ConfigError
from data_tools.input.readers import reading_options
from data_tools.input.records import Field

LEAST_SHARE, MOST_SHARE = 0.001, 0.1  # that are held out by rule: of a large corpus, and of a small one
WANTED_HELD_OUT = 500  # documents; five times what FEWEST_HELD_OUT asks for
WORDS = {  # what people type, and what it is called here
    **dict.fromkeys(("min_length", "min_chars", "min_len"), "quality.min_characters"),
    **dict.fromkeys(("max_length", "max_chars", "max_len"), "quality.max_characters"),
    **dict.fromkeys(("min_chinese_share", "min_chinese_ratio", "chinese_ratio"), "quality.min_hanzi_share"),
    **dict.fromkeys(("dedup", "deduplicate", "exact_dedup"), "duplicates.exact"),
    **dict.fromkeys(("near_dedup", "fuzzy_dedup", "minhash"), "duplicates.near"),
    **dict.fromkeys(("html", "remove_html"), "normalize.strip_html"),
    **dict.fromkeys(("text_column", "text_field", "column"), "text_key"),
    **dict.fromkeys(("heldout", "holdout", "held_out", "heldout_ratio", "holdout_share"), "heldout_share"),
    **dict.fromkeys(("name", "corpus"), "source"),
}
NO_LIMIT = sys.float_info.max  # of a [[metadata]] rule's min and max: not stated
SAMPLES = 3  # of what was dropped, in the report: of each reason and source
SAMPLE_CHARACTERS = 160
MOST_SIZE = 1_000  # of duplicates: each bucket and hash is computed of every text


@dataclass(frozen=True, kw_only=True)
class NormalizeConfig:
    """What is done to a text before it is judged. Unicode NFC, line ends and control characters always."""

    fold_width: bool = True
    """Full-width letters, digits and symbols become ASCII; Chinese punctuation (，：；！？（）) stays."""
    fold_compatibility: bool = True
    """Characters of older encodings and PDF files become those that people type: radicals (⽅ 方), half-width kana,
    small and vertical punctuation (﹐ ，), units (㎏ kg, ㎡ m²), ligatures (ﬁ fi), no-break spaces. ① ℃ ½ stay."""
    strip_html: bool = True
    """Tags, comments, scripts and styles go; entities (&nbsp;) become characters."""
    urls: Literal["keep", "remove", "replace"] = "keep"
    """Web addresses: replace writes <url>."""
    emails: Literal["keep", "remove", "replace"] = "replace"
    """E-mail addresses: replace writes <email>; they are people's."""
    squeeze_spaces: bool = True
    """Runs of spaces become one, three line breaks or more become two, lines and text are trimmed."""


@dataclass(frozen=True, kw_only=True)
class QualityConfig:
    """What a text must be like to stay. The shares of Hanzi, punctuation and digits are of what is not white space."""

    max_undecodable_share: float = 0.01
    """More U+FFFD, private-use characters and such that stand for none: every third sentence is damaged (undecodable).
    Judged, as is the next, before such characters are removed."""
    max_mojibake_share: float = 0.05
    """More of what only text in another encoding looks like, 锛堜腑 or ï¼ˆä¸­ (mojibake; decodability.py)."""
    min_characters: int = 20
    """Shorter texts go (too_short)."""
    max_characters: int = 2_000_000
    """Longer texts go (too_long)."""
    min_hanzi_share: float = 0.5
    """Fewer Hanzi: another language, code, tables (few_hanzi)."""
    max_punctuation_share: float = 0.3
    """More punctuation and symbols: menus, decoration (much_punctuation)."""
    max_digit_share: float = 0.3
    """More digits: tables, numbers of lots and phones (many_digits)."""
    max_repeated_share: float = 0.4
    """Share of the text in 10-grams of characters that stood in it before (repetitive)."""
    max_top_gram_share: float = 0.2
    """Share of the text that its commonest 4-gram of characters makes up; in texts of 100 or more (one_phrase)."""
    max_duplicate_line_share: float = 0.3
    """Share of the text in lines that stood in it before (duplicate_lines)."""
    min_ended_line_share: float = 0.1
    """Share of the lines of 10 or more characters that end in punctuation; with 5 such lines or more (no_sentences)."""


@dataclass(frozen=True, kw_only=True)
class DuplicatesConfig:
    """Removal of texts that are there already, within one call of `clean`. One text of each group stays."""

    exact: bool = True
    """Remove texts equal to another after normalisation (exact_duplicate)."""
    near: bool = True
    """Remove texts nearly equal to another, by MinHash over character shingles (near_duplicate)."""
    shingle_characters: int = 8
    """Length of a shingle, Hanzi, letters and digits only: about five words, as is usual for text with spaces."""
    num_buckets: int = 14
    """Bands of the locality-sensitive hash (F: datatrove's and FineWeb's 14 x 8, similar from about 0.72 on)."""
    hashes_per_bucket: int = 8
    """Hashes of a band (F)."""

    @property
    def any(self) -> bool:
        """Whether texts are compared at all."""
        return self.exact or self.near


@dataclass(frozen=True, kw_only=True)
class ContaminationConfig:
    """What --decontaminate drops: text in which an evaluation text stands, or much of it (contaminated)."""

    min_share: float = 0.5
    """Share of an evaluation text's runs of 13 Hanzi or words, or of the document's own if these are fewer, that both
    must have. 0: one run is enough, as for GPT-3, and sets phrases of law and trade going, too."""


@dataclass(frozen=True, kw_only=True)
class MetadataRule:
    """A [[metadata]] table: which documents stay by a field that their corpus carries, a score or a class."""

    key: str
    """Name of the field or column; a.b for a field in a table. A record without it is a bad line."""
    min: float = -NO_LIMIT
    """Documents with less go (metadata_KEY)."""
    max: float = NO_LIMIT
    """Documents with more go."""
    values: tuple[str, ...] = ()
    """Instead of min and max: documents with another value go. Numbers are written as text, ["4", "5"]."""
    share: float = 0.0
    """Share of those documents that stays nevertheless, chosen by a hash of the text: what they weigh in the blend."""


@dataclass(frozen=True, kw_only=True)
class CleanConfig:
    """One source."""

    source: str = ""
    """Name given to every document; empty = the input's own "source", else the file's name."""
    text_key: str = "text"
    """Name of the text's field or column."""
    on_bad_line: Literal["fail", "skip"] = "fail"
    """A line without usable text: stop there, or skip and count it."""
    txt_document: Literal["line", "block", "file"] = "line"
    """What a document of a .txt file is: a line, what lies between blank lines, or the whole file."""
    heldout_share: float = 0.0
    """Share of the texts that --heldout sets aside, chosen by a hash of their letters. 0: a thousandth, but some 500
    texts at least, and a tenth at most."""
    metadata: tuple[MetadataRule, ...] = ()
    """Rules on fields beside the text, each a [[metadata]] table; the first that a document breaks drops it."""
    normalize: NormalizeConfig = field(default_factory=NormalizeConfig)
    quality: QualityConfig = field(default_factory=QualityConfig)
    duplicates: DuplicatesConfig = field(default_factory=DuplicatesConfig)
    contamination: ContaminationConfig = field(default_factory=ContaminationConfig)

    def as_record(self) -> dict[str, Any]:
        """Return every key as JSON keeps it, limits that are not stated left out."""
        rules = [asdict(rule) | {"values": list(rule.values)} for rule in self.metadata]
        stated = [{key: value for key, value in rule.items() if value not in (-NO_LIMIT, NO_LIMIT)} for rule in rules]
        return {**asdict(self), "metadata": stated}

    def reading(self) -> dict[str, Any]:
        """Return how the input is read, as DocumentReader takes it."""
        fields = tuple(Field(rule.key, is_number=not rule.values) for rule in self.metadata)
        return {**reading_options(self.text_key, self.on_bad_line, self.txt_document), "fields": fields}


def dotted_keys() -> dict[str, Any]:
    """Return every key with its default, those of a section as section.key."""
    keys: dict[str, Any] = {}
    for name, value in vars(CleanConfig()).items():
        keys |= {f"{name}.{key}": inner for key, inner in vars(value).items()} if is_dataclass(value) else {name: value}
    return keys


def _check_words(table: dict[str, Any], path: Path) -> None:
    """Raise ConfigError for a key that stands in the wrong section, or is what others call one of ours."""
    keys = dotted_keys()
    for name, value in table.items():
        for key in [f"{name}.{inner}" for inner in value] if isinstance(value, dict) else [name]:
            word = key.rpartition(".")[2]
            meant = [WORDS[word]] if word in WORDS else [known for known in keys if known.rpartition(".")[2] == word]
            if key not in keys and meant:
                section, _, right = meant[0].rpartition(".")
                place = f"under [{section}]" if section else "above the first section"
                raise ConfigError(f"{path}: {key}: unknown key; write {right} {place}")


def load_clean_config(path: Path | None) -> CleanConfig:
    """Read a TOML file, or return the defaults. Raises ConfigError naming file, key and the nearest known key."""
    if path is None:
        return CleanConfig()
    table = read_toml(path, "configuration")
    _check_words(table, path)
    config = build(CleanConfig, table, str(path))
    quality, duplicates = config.quality, config.duplicates
    if not 0 <= config.heldout_share < 1:
        raise ConfigError(f"{path}: heldout_share: {config.heldout_share} must lie between 0 and 1 (0: by rule)")
    for name, value in vars(quality).items():
        if name.endswith("_share") and not 0 <= value <= 1:
            raise ConfigError(f"{path}: quality.{name}: {value} must lie between 0 and 1")
    if not 0 <= quality.min_characters <= quality.max_characters:
        raise ConfigError(f"{path}: quality.min_characters: must lie between 0 and max_characters")
    for name in ("shingle_characters", "num_buckets", "hashes_per_bucket"):
        if not 1 <= getattr(duplicates, name) <= MOST_SIZE:
            raise ConfigError(
                f"{path}: duplicates.{name}: {getattr(duplicates, name)} must be 1 or more, {MOST_SIZE:,} at most"
            )
    if not 0 <= config.contamination.min_share <= 1:
        raise ConfigError(f"{path}: contamination.min_share: {config.contamination.min_share} must lie between 0 and 1")
    if not config.text_key:
        raise ConfigError(f"{path}: text_key: is empty; name the field or column of the text")
    for number, rule in enumerate(config.metadata):
        if fault := _fault(rule):
            raise ConfigError(f"{path}: metadata[{number}]{fault}")
    return config


def _fault(rule: MetadataRule) -> str:
    """Return what is wrong with a rule, "" if nothing is."""
    has_limit = rule.min != -NO_LIMIT or rule.max != NO_LIMIT
    if not rule.key:
        return ".key: is empty; name the field or column"
    if has_limit == bool(rule.values):
        return f" ({rule.key}): write min, max or both, or values instead"
    if not rule.min <= rule.max:  # nan is not, either
        return f".min: {rule.min} is more than max, {rule.max}"
    return "" if 0 <= rule.share < 1 else f".share: {rule.share} must lie between 0 and 1, 1 excluded"
