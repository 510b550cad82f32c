"""Entities of a text <-> a tag per token. A token is the entity's that it touches, by its characters."""

from bisect import bisect_right
from collections import Counter
from collections.abc import Iterable, Sequence

from cmbert.transfer.tasks.fields import Entity

NO_TAG = -100  # of special tokens: no loss counts them (PyTorch's ignore_index)
OUT_OF_REACH = ("beyond_the_cut", "across_another", "with_an_edge_inside_a_token")
Places = Sequence[tuple[int, int]]
"""Characters [start, end) of each token in its text."""


def apart(entities: Iterable[Entity], length: int) -> list[Entity]:
    """Return those entities of a text of `length` characters that a tag per token can say: none overlaps another.

    Of some that overlap the longest stays, of two as long the first.
    """
    taken = bytearray(length)
    kept = []
    for entity in sorted(entities, key=lambda entity: (entity.start - entity.end, entity)):
        if not any(taken[entity.start : entity.end]):
            taken[entity.start : entity.end] = bytes([1]) * (entity.end - entity.start)
            kept.append(entity)
    return sorted(kept)


def tags_of(entities: Sequence[Entity], places: Places, special: Sequence[bool], outputs: Sequence[str]) -> list[int]:
    """Return the index in `outputs` of each token's tag, NO_TAG of special ones.

    entities: apart, in order. A token across the edge of one is that entity's, one that touches two the first's.
    """
    index = {name: place for place, name in enumerate(outputs)}
    ends = [entity.end for entity in entities]
    begun = -1
    tags = []
    for (start, end), is_special in zip(places, special, strict=True):
        place = bisect_right(ends, start)
        if is_special:
            tags.append(NO_TAG)
        elif place < len(entities) and entities[place].start < end:
            tags.append(index[f"{'I' if place == begun else 'B'}-{entities[place].label}"])
            begun = place
        else:
            tags.append(0)
    return tags


def entities_of(tags: Sequence[int], places: Places, special: Sequence[bool], outputs: Sequence[str]) -> list[Entity]:
    """Return the entities that tags (indices in `outputs`) say, from the first to the last character of their tokens.

    B begins one, and so does I where no entity of its type is before it: conlleval's lenient way, which is seqeval's
    default and that of transformers' pipeline with aggregation_strategy="simple".
    """
    found: list[Entity] = []
    before = ""
    for tag, (start, end), is_special in zip(tags, places, special, strict=True):
        if is_special:
            continue
        place, _, label = outputs[tag].partition("-")
        if place == "I" and label == before:
            found[-1] = found[-1]._replace(end=end)
        elif label:
            found.append(Entity(start, end, label))
        before = label
    return found


def out_of_reach(entities: Sequence[Entity], length: int, places: Places, special: Sequence[bool]) -> Counter[str]:
    """Count a text's entities that no tags can say, by why (OUT_OF_REACH). length: of the text, characters."""
    read = [pair for pair, is_special in zip(places, special, strict=True) if not is_special]
    starts, ends = {start for start, _ in read}, {end for _, end in read}
    last, kept = max(ends, default=0), set(apart(entities, length))
    why: Counter[str] = Counter()
    for entity in entities:
        if entity.end > last:
            why[OUT_OF_REACH[0]] += 1
        elif entity not in kept:
            why[OUT_OF_REACH[1]] += 1
        elif entity.start not in starts or entity.end not in ends:
            why[OUT_OF_REACH[2]] += 1
    return why
