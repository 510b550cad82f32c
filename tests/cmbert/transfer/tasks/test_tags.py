"""Entities as tags of tokens: what is said is what transformers' pipeline says, what cannot be said is counted."""

import itertools
import random

import pytest

from cmbert.transfer.tasks.fields import Entity
from cmbert.transfer.tasks.tags import NO_TAG, apart, entities_of, out_of_reach, tags_of

OUTPUTS = ("O", "B-地名", "I-地名", "B-x-y", "I-x-y")
TEXT = "北京大学在北京市"


def tokens(*lengths: int) -> tuple[list[tuple[int, int]], list[bool]]:
    """Places of tokens of so many characters between a [CLS] and a [SEP], and which of them are special."""
    ends = list(itertools.accumulate(lengths))
    places = [(0, 0), *zip([0, *ends], ends, strict=False), (0, 0)]
    return places, [True, *[False] * len(lengths), True]


def say(*entities: Entity, lengths: tuple[int, ...]) -> list[str]:
    places, special = tokens(*lengths)
    return ["-" if tag == NO_TAG else OUTPUTS[tag] for tag in tags_of(entities, places, special, OUTPUTS)]


def test_a_token_is_the_entitys_that_it_touches():
    place = Entity(0, 4, "地名")
    assert say(place, lengths=(1, 1, 2, 1, 3)) == ["-", "B-地名", "I-地名", "I-地名", "O", "O", "-"]
    assert say(place, lengths=(3, 2, 3)) == ["-", "B-地名", "I-地名", "O", "-"]  # the second straddles its end
    assert say(Entity(1, 2, "x-y"), lengths=(8,)) == ["-", "B-x-y", "-"]
    both = Entity(0, 2, "地名"), Entity(2, 4, "x-y")
    assert say(*both, lengths=(1, 2, 1)) == ["-", "B-地名", "I-地名", "B-x-y", "-"]  # the first's of the two it touches
    assert say(*both, lengths=(1, 3)) == ["-", "B-地名", "I-地名", "-"]


def test_several_tokens_of_one_character_and_one_without_any():
    places, special = [(0, 1), (0, 1), (1, 1), (1, 2)], [False] * 4  # bytes of 北; a token that covers nothing
    assert [OUTPUTS[tag] for tag in tags_of([Entity(0, 2, "地名")], places, special, OUTPUTS)] == [
        *("B-地名", "I-地名", "I-地名", "I-地名")
    ]
    assert not out_of_reach([Entity(0, 2, "地名")], 2, places, special)


def test_of_entities_that_overlap_the_longest_stays():
    inner, outer, beside = Entity(0, 2, "地名"), Entity(0, 4, "x-y"), Entity(5, 8, "地名")
    assert apart([beside, inner, outer], 8) == [outer, beside]
    assert apart([Entity(0, 2, "地名"), Entity(1, 3, "地名")], 8) == [Entity(0, 2, "地名")]
    assert out_of_reach([inner, outer, beside], 8, *tokens(*[1] * 8)) == {"across_another": 1}


def test_what_no_tags_can_say_is_counted_by_why():
    entities = [Entity(0, 2, "地名"), Entity(3, 5, "x-y"), Entity(6, 8, "地名")]
    assert not out_of_reach(entities, 8, *tokens(2, 1, 1, 1, 1, 2))
    assert out_of_reach(entities, 8, *tokens(1, 2, 2, 1)) == {"with_an_edge_inside_a_token": 1, "beyond_the_cut": 1}


@pytest.mark.parametrize("seed", range(60))
def test_what_can_be_said_is_what_some_tags_say(seed):
    """Against every sequence of tags there is."""
    draw = random.Random(seed)
    lengths = draw.choices((1, 2, 3), k=4)
    places, special = tokens(*lengths)
    size = sum(lengths)
    start = draw.randrange(size)
    entity = Entity(start, draw.randint(start + 1, size), "地名")
    sequences = itertools.product(range(len(OUTPUTS)), repeat=len(lengths))
    sayable = any(entity in entities_of([0, *tags, 0], places, special, OUTPUTS) for tags in sequences)
    assert sayable == (not out_of_reach([entity], size, places, special))
    if sayable:
        assert entities_of(tags_of([entity], places, special, OUTPUTS), places, special, OUTPUTS) == [entity]


@pytest.mark.slow  # transformers' pipelines take seconds to import
def test_tags_become_the_entities_that_transformers_groups():
    from transformers.pipelines.token_classification import TokenClassificationPipeline

    class Tokenizer:
        def convert_tokens_to_string(self, words):
            return "".join(words)

    pipeline = TokenClassificationPipeline.__new__(TokenClassificationPipeline)
    pipeline.tokenizer = Tokenizer()
    draw = random.Random(0)
    for _ in range(3_000):
        places, special = tokens(*draw.choices((1, 2), k=draw.randint(1, 9)))
        tags = [draw.randrange(len(OUTPUTS)) for _ in places]
        tagged = [
            {"entity": OUTPUTS[tag], "score": 1.0, "index": index, "word": "", "start": start, "end": end}
            for index, (tag, (start, end), skip) in enumerate(zip(tags, places, special, strict=True))
            if not skip
        ]
        groups = [group for group in pipeline.group_entities(tagged) if group["entity_group"] != "O"]
        theirs = [Entity(group["start"], group["end"], group["entity_group"]) for group in groups]
        assert entities_of(tags, places, special, OUTPUTS) == theirs
