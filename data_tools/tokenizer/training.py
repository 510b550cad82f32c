"""`train-tokenizer`: lossless byte-level BPE from a stratified sample, saved as AutoTokenizer loads it."""

import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors

from cmbert.errors import ConfigError, InputError
from cmbert.files.folders import building
from cmbert.files.whole import write_json
from cmbert.progress import Progress
from cmbert.tokenizer import TOKENIZER_FILE, load_tokenizer
from cmbert.vocabulary import SPECIAL_TOKENS, VOCAB_MULTIPLE
from data_tools.defaults import TOKENIZER_SAMPLE_BYTES, TXT_DOCUMENTS, VOCAB_SIZE
from data_tools.encoding.segment import segmenter
from data_tools.input.announcement import announced_files
from data_tools.input.candidates import gather_tasks
from data_tools.input.document import Document, Purpose, text_hash
from data_tools.input.readers import reading_options
from data_tools.input.sample import count, stratified
from data_tools.input.tasks import plan_tasks
from data_tools.outputs import describe_inputs, is_done
from data_tools.storage.files import InputFile
from data_tools.tokenizer.bpe import learn_merges
from data_tools.tokenizer.report import measure, read_wordpiece, write_report_page
from data_tools.tokenizer.report import report as report_values

RECORD_FILE = "training.json"
SMALLEST_VOCAB_SIZE = 320  # the next multiple of 64 after 256 bytes and the special tokens
MIN_PAIR_COUNT = 2  # a pair seen once is no pattern
MOST_UNITS = 8_000_000  # beyond, the rarest are forgotten while counting; some 1 GB
MODEL_MAX_LENGTH = 8_192  # tokens, the long stage of the paper
READ_FACTOR = 16  # of a corpus larger than this many samples, evenly spread tasks are read instead of everything
LONGEST_CHARACTERS = 1_000_000  # a tenth of the letters in a row at which Oniguruma gives up
MEASURED_SHARE = 0.02  # of the sample's documents, kept from training to measure on
MEASURED_BYTES = 8_000_000  # enough for three digits

Unit = TypeVar("Unit", str, bytes)
Boundaries = Literal["clause", "word", "character"]
WORD_BREAK = "\0"  # no document holds it
# Written as ranges: \p{Han} takes in 。 and 《 in some regular-expression libraries (PCRE2) and not in others.
HANZI = "々〇\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
# What BPE may merge within; every character matches exactly one alternative. Ours: merges may cross words inside a
# run of Hanzi, but never glue punctuation, letters or digits to Hanzi. No look-ahead: fast encoders lack it.
PATTERN = "|".join(
    (
        rf"[{HANZI}]+",
        rf" ?(?:[^\P{{L}}{HANZI}]\p{{M}}*)+",  # other letters with their marks, and the space before them
        rf"[^\P{{N}}{HANZI}]{{1,3}}",  # digits
        rf"[^\s\p{{L}}\p{{N}}{HANZI}]+",  # punctuation, symbols, emoji with their joiners
        r"[\r\n]+",
        r"[^\S\r\n]+",
    )
)
CHARACTER_PATTERN = PATTERN.replace(rf"[{HANZI}]+", rf"[{HANZI}]", 1)  # what BERT's Chinese vocabulary does
WORD_PATTERN = f"{WORD_BREAK}|" + PATTERN.replace(r"[^\s\p{L}\p{N}", rf"[^\s\p{{L}}\p{{N}}{WORD_BREAK}")


def train_tokenizer(
    inputs: Sequence[str],
    output: Path,
    *,
    vocab_size: int = VOCAB_SIZE,
    boundaries: Boundaries = "clause",
    sample_bytes: int = TOKENIZER_SAMPLE_BYTES,
    text_key: str = "text",
    on_bad_line: str = "fail",
    txt_document: str = TXT_DOCUMENTS[0],
    report: Path | None = None,
    against: Path | None = None,
    num_workers: int = 1,
) -> None:
    """Train on a sample of `inputs` and save to the directory `output`, or say that it is there already.

    boundaries: merges may cross words inside a clause, are learnt inside words only, or never join two Hanzi. report:
    page to write; against: a WordPiece vocabulary to compare with. num_workers: processes that read. Raises
    ConfigError for a vocabulary size that is no multiple of 64 or more than the text can fill, InputError for unusable
    text.
    """
    check_vocab_size(vocab_size)
    files = announced_files(inputs, txt_document)
    legacy = read_wordpiece(against) if against else None
    how = reading_options(text_key, on_bad_line, txt_document)
    settings = {"inputs": describe_inputs(files), "vocab_size": vocab_size, "boundaries": boundaries}
    settings |= {"sample_bytes": sample_bytes, **how, "pattern": PATTERN, "min_pair_count": MIN_PAIR_COUNT}
    done = is_done(output, RECORD_FILE, settings)
    if done and (report is None or report.is_file()):
        print(f"{output}: done already, with the same settings")
        return
    started = time.monotonic()
    sample, skipped = read_sample(files, sample_bytes, how, num_workers)
    if not sample:
        raise InputError(f"the input has no document with text of at most --sample-size {sample_bytes} bytes")
    training, measured = map(cut_long, hold_out(sample))
    if not done:
        units, forgotten = count_units([document.text for document in training], boundaries)
        num_units = len(units)
        backend = learn(units, vocab_size)
        with building(output) as aside:
            backend.save(str(aside / TOKENIZER_FILE))
            write_json(aside / "tokenizer_config.json", tokenizer_config())
            write_json(aside / RECORD_FILE, record(settings, training, skipped, num_units, forgotten))
    measures = measure(load_tokenizer(output), measured or training, legacy)
    text_bytes = sum(len(document.text.encode("utf-8")) for document in training)
    counted = f"{vocab_size:,} ids from {len(training):,} documents, {text_bytes / 1e6:,.1f} MB"
    taken = "" if done else f", in {time.monotonic() - started:.0f} s"
    print(f"{output}: {counted}{taken}; {measures.headline()}")
    if report:
        if report.suffix == ".json":
            report.parent.mkdir(parents=True, exist_ok=True)
            write_json(report, report_values(measures, settings, held_out=bool(measured)))
        else:
            write_report_page(report, measures, settings, held_out=bool(measured))
        print(f"report {report}")


def check_vocab_size(vocab_size: int) -> None:
    """Raise ConfigError unless `vocab_size` is a multiple of 64 with room for the bytes and the special tokens."""
    if vocab_size < SMALLEST_VOCAB_SIZE:
        raise ConfigError(f"--vocab-size {vocab_size}: the smallest is {SMALLEST_VOCAB_SIZE}")
    if vocab_size % VOCAB_MULTIPLE:
        below = vocab_size - vocab_size % VOCAB_MULTIPLE
        nearest = f"{below} or {below + VOCAB_MULTIPLE}"
        raise ConfigError(f"--vocab-size {vocab_size}: must be a multiple of {VOCAB_MULTIPLE}; nearest: {nearest}")


def read_sample(
    files: Sequence[InputFile], sample_bytes: int, how: dict[str, Any], num_workers: int = 1
) -> tuple[list[Document], Counter[str]]:
    """Return about `sample_bytes` of documents, of every source the same share, and the lines that were none.

    how: as `reading_options` gives it. Memory follows `sample_bytes`, not the corpus; of a very large corpus evenly
    spread tasks are read. The sample is the same for any number of workers.
    """
    tasks = plan_tasks(files, how.get("txt_document", TXT_DOCUMENTS[0]))
    stride = max(1, sum(task.num_bytes for task in tasks) // (READ_FACTOR * sample_bytes))
    gathered = gather_tasks(tasks[::stride], how, sample_bytes, Purpose.TOKENIZER_SAMPLE, num_workers)
    return stratified(gathered, sample_bytes), gathered.skipped


def hold_out(sample: Sequence[Document]) -> tuple[list[Document], list[Document]]:
    """Return what to train on and what to measure on; a sample too small to spare a document is all for training."""
    training, measured, size = [], [], 0
    for document in sample:
        if text_hash(document.text, Purpose.TOKENIZER_MEASURED) < MEASURED_SHARE * 2**64 and size < MEASURED_BYTES:
            measured.append(document)
            size += len(document.text.encode("utf-8"))
        else:
            training.append(document)
    return (training, measured) if training else (measured, [])


def cut_long(documents: Sequence[Document]) -> list[Document]:
    """Return the documents, those longer than LONGEST_CHARACTERS in parts: Oniguruma gives up on endless runs."""
    return [
        document._replace(text=document.text[first : first + LONGEST_CHARACTERS])
        for document in documents
        for first in range(0, len(document.text), LONGEST_CHARACTERS)
    ]


def count_units(texts: Sequence[str], boundaries: Boundaries) -> tuple[Counter[str], int]:
    """Count what merges happen within. Returns the units, and how many rare ones were forgotten to stay in bounds."""
    pattern = {"clause": PATTERN, "word": WORD_PATTERN, "character": CHARACTER_PATTERN}[boundaries]
    split = pre_tokenizers.Split(tokenizers.Regex(pattern), behavior="isolated")
    cut = segmenter().cut if boundaries == "word" else None
    normalize = normalizers.NFC().normalize_str
    units: Counter[str] = Counter()
    forgotten, rare = 0, 1
    progress = Progress("count units", len(texts), "documents")
    for text in texts:
        text = normalize(text)
        text = WORD_BREAK.join(cut(text)) if cut else text
        units.update(part for part, _ in split.pre_tokenize_str(text))
        before = len(units)
        units, rare = forget_rare(units, rare)
        forgotten += before - len(units)
        progress.advance(1)
    progress.close()
    del units[WORD_BREAK]
    return units, forgotten


def forget_rare(units: Counter[Unit], rare: int) -> tuple[Counter[Unit], int]:
    """Return the units without those of count `rare`, and of the next and so on, until MOST_UNITS hold them all.

    Returns also the count that would be forgotten next.
    """
    while len(units) > MOST_UNITS:
        units, rare = Counter({unit: count for unit, count in units.items() if count > rare}), rare + 1
    return units, rare


def learn(units: Counter[str], vocab_size: int) -> tokenizers.Tokenizer:
    """Return the tokenizer of `vocab_size` ids: the special tokens, a token for every byte, the merges in their order.

    Empties `units`. Raises ConfigError when they cannot fill it.
    """
    of_byte = byte_spellings()
    spellings, merges = sorted(of_byte), list[tuple[str, str]]()
    ranks = np.array([spellings.index(spelling) for spelling in of_byte])
    num_symbols = vocab_size - len(SPECIAL_TOKENS)
    progress = Progress("merge", num_symbols, "symbols", done=len(spellings))
    texts = [unit.encode("utf-8") for unit in units]
    counts = np.fromiter(units.values(), dtype=np.int64, count=len(units))
    units.clear()  # room for the merges
    for merge in learn_merges(
        texts,
        counts,
        ranks,
        num_symbols=num_symbols,
        min_count=MIN_PAIR_COUNT,
        advance=lambda: progress.advance(1),
    ):
        merges.append((spellings[merge.left], spellings[merge.right]))
        if merge.symbol == len(spellings):
            spellings.append(spellings[merge.left] + spellings[merge.right])
    progress.close()
    if len(spellings) < num_symbols:
        found = len(spellings) + len(SPECIAL_TOKENS)
        largest = found - found % VOCAB_MULTIPLE
        works = f"the largest that works is {largest}; a recipe's model.vocab_size must be the same"
        remedy = works if largest >= SMALLEST_VOCAB_SIZE else "give it more text"
        raise ConfigError(f"--vocab-size {vocab_size}: the text gives only {found} ids; {remedy}")
    return assembled({spelling: index for index, spelling in enumerate([*SPECIAL_TOKENS, *spellings])}, merges)


def byte_spellings() -> list[str]:
    """Return the character that stands for each byte in a byte-level vocabulary (GPT-2's): itself where it prints."""
    alphabet = set(pre_tokenizers.ByteLevel.alphabet())
    others = iter(sorted(character for character in alphabet if ord(character) > 255))
    return [chr(byte) if chr(byte) in alphabet else next(others) for byte in range(256)]


def assembled(vocab: dict[str, int], merges: list[tuple[str, str]]) -> tokenizers.Tokenizer:
    """Return the tokenizer around a vocabulary: NFC, our pattern, bytes; nothing it does loses a character."""
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges))
    backend.add_special_tokens(list(SPECIAL_TOKENS))
    backend.normalizer = normalizers.NFC()
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(tokenizers.Regex(PATTERN), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, SPECIAL_TOKENS.index(token)) for token in ("[CLS]", "[SEP]")],
    )
    return backend


def tokenizer_config() -> dict[str, Any]:
    """Return tokenizer_config.json: what AutoTokenizer needs to load tokenizer.json with no custom code."""
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        **dict(zip(names, SPECIAL_TOKENS, strict=True)),
        "model_max_length": MODEL_MAX_LENGTH,
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
    }


def record(
    settings: dict[str, Any], training: Sequence[Document], skipped: Counter[str], num_units: int, forgotten: int
) -> dict[str, Any]:
    """Return training.json: how the tokenizer was made."""
    return {
        "settings": settings,
        "sources": count(training),
        "skipped_lines": dict(sorted(skipped.items())),
        "units": num_units,
        "rare_units_forgotten": forgotten,
        "tokenizers_version": tokenizers.__version__,
    }
