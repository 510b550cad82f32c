"""What an extension of a tokenizer does: to the domain's text, to other text, to the model's rows."""

import unicodedata
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import tokenizers

from cmbert.errors import ConfigError, InputError
from cmbert.progress import Progress
from cmbert.tokenizer import TOKENIZER_FILE, RefusalError, Tokenizer, refusing
from cmbert.vocabulary import VOCAB_MULTIPLE
from data_tools.encoding.encode import batches
from data_tools.input.document import Document
from data_tools.tokenizer.training import byte_spellings

SHOWN_TOKENS = 20


@dataclass(frozen=True)
class Comparison:
    """The same documents encoded by the old and by the extended tokenizer."""

    documents: int
    documents_changed: int
    characters: int
    tokens_before: int
    tokens_after: int
    new_ids_seen: int
    """How many of the new ids occur."""

    def values(self) -> dict[str, Any]:
        """Return the counts and what follows from them."""
        return {
            **asdict(self),
            "share_of_documents_changed": round(self.documents_changed / max(self.documents, 1), 6),
            "characters_per_token_before": round(self.characters / max(self.tokens_before, 1), 4),
            "characters_per_token_after": round(self.characters / max(self.tokens_after, 1), 4),
        }


def compare(
    parent: Tokenizer, child: Tokenizer, parts: Sequence[tuple[int, ...]], documents: Sequence[Document], label: str
) -> Comparison:
    """Encode documents twice. parts: of each new id, the old ids that spell it. label: of the progress.

    Raises ConfigError when an encoding with the parts in place of the new ids is not the old encoding.
    """
    documents_changed, characters, before, after = 0, 0, 0, 0
    seen: set[int] = set()
    progress = Progress(label, sum(len(document.text) for document in documents) / 1e6, "M characters")
    for batch in batches(documents):
        pairs = zip(encode_documents(parent.backend, batch), encode_documents(child.backend, batch), strict=True)
        for document, (old, new) in zip(batch, pairs, strict=True):
            fresh = {index for index in new.ids if index >= parent.vocab_size}
            if in_old_ids(new.ids, parent.vocab_size, parts) != old.ids:
                where = f"{parent.directory / TOKENIZER_FILE}: cannot be extended"
                raise ConfigError(f"{where}: {document.id} is not encoded as its merges say; give another tokenizer")
            documents_changed += bool(fresh)
            characters += len(parent.normalize(document.text))
            before, after = before + len(old.ids), after + len(new.ids)
            seen |= fresh
        progress.advance(sum(len(document.text) for document in batch) / 1e6)
    progress.close()
    return Comparison(len(documents), documents_changed, characters, before, after, len(seen))


def in_old_ids(ids: Sequence[int], parent_ids: int, parts: Sequence[tuple[int, ...]]) -> list[int]:
    """Return ids with the parts of each new one in its place."""
    return [part for index in ids for part in (parts[index - parent_ids] if index >= parent_ids else (index,))]


def encode_documents(backend: tokenizers.Tokenizer, documents: Sequence[Document]) -> list[tokenizers.Encoding]:
    """Return the encodings, without [CLS] and [SEP]. Raises InputError naming a document that is refused."""
    try:
        with refusing():
            return backend.encode_batch([document.text for document in documents], add_special_tokens=False)
    except RefusalError as error:
        if len(documents) == 1:
            (document,) = documents
            said = f"the tokenizer cannot encode it: {error}; take it out of the input"
            raise InputError(f"{document.source}: document {document.id}: {said}") from error
    half = len(documents) // 2
    return [*encode_documents(backend, documents[:half]), *encode_documents(backend, documents[half:])]


def report_values(
    child: Tokenizer,
    gains: Sequence[int],
    domain: Comparison,
    others: Comparison | None,
    *,
    held_out: int,
    every: int,
) -> dict[str, Any]:
    """Return the measures as plain values. gains: of the new ids, in order. held_out: documents, each `every`-th."""
    first = child.vocab_size - len(gains)
    best = sorted(range(len(gains)), key=lambda number: (-gains[number], number))[:SHOWN_TOKENS]
    kept = {"documents_held_out": held_out, "held_out_every": every if held_out else None}
    return {
        "new_ids": len(gains),
        "domain": kept | domain.values(),
        "other": others.values() if others else None,
        "highest_gain": [
            {"id": first + number, "token": spelling(child, first + number), "gain": gains[number]} for number in best
        ],
        "lowest_gain": min(gains),
        "rows": child.vocabulary.rows,
        "blank_rows": child.vocabulary.rows - child.vocab_size,
    }


def spelling(tokenizer: Tokenizer, index: int) -> str:
    """Return a token's text; of a part of a character its bytes as hexadecimal digits, <E4BA>."""
    text = tokenizer.backend.decode([index])
    if "\ufffd" not in text:
        return text
    token = tokenizer.backend.id_to_token(index) or ""
    bytes_spelt = {character: byte for byte, character in enumerate(byte_spellings())}
    digits = (f"{byte:02X}" for character in token if (byte := bytes_spelt.get(character)) is not None)
    return f"<{''.join(digits)}>"


def report_lines(measures: dict[str, Any]) -> list[str]:
    """Return the measures for people."""
    domain, other = measures["domain"], measures["other"]
    held_out, every = domain["documents_held_out"], domain["held_out_every"]
    kept = f"held out: {held_out:,} documents, every {every}th"
    kept = kept if held_out else "the learnt text: too few documents to hold any out"
    before, after = domain["characters_per_token_before"], domain["characters_per_token_after"]
    seen = f"{domain['new_ids_seen']:,} of the {measures['new_ids']:,} new ids occur there"
    rates = f"{before:.3f} characters per token before, {after:.3f} after"
    lines = [f"domain ({kept}): {rates} ({_change(domain)}); {seen}"]
    if other:
        changed = f"{other['documents_changed']:,} of {other['documents']:,} documents"
        share = f"{100 * other['share_of_documents_changed']:.2f} %"
        tokens = f"{other['tokens_before']:,} tokens before, {other['tokens_after']:,} after ({_change(other)})"
        lines.append(f"other text: {changed} change ({share}); {tokens}")
    best = " ".join(f"{_visible(entry['token'])} {entry['gain']:,}" for entry in measures["highest_gain"])
    lines.append(f"highest gains, in tokens saved: {best}; the lowest: {measures['lowest_gain']:,}")
    blank = measures["blank_rows"]
    extra = f"{blank} of them are blank" if blank else "none of them is blank"
    lines.append(f"a model of this tokenizer has {measures['rows']:,} rows, a multiple of {VOCAB_MULTIPLE}: {extra}")
    return lines


def _change(values: dict[str, Any]) -> str:
    return f"{100 * (values['tokens_after'] / max(values['tokens_before'], 1) - 1):+.2f} % tokens"


def _visible(token: str) -> str:
    """Return a token with its white space and control characters shown: a report's line stays one line."""
    shown = {"\n": "⏎", " ": "␣"}
    return "".join(
        shown.get(character, ascii(character)[1:-1] if unicodedata.category(character)[0] in "CZ" else character)
        for character in token
    )
