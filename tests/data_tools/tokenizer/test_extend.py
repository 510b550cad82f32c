"""Extension: the merges of a naive learner, the ids of `tokenizers`, old ids and old encodings as they were."""

import json
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
import tokenizers
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import decoders, models, normalizers, pre_tokenizers

from cmbert.errors import ConfigError
from cmbert.tokenizer import Tokenizer, load_tokenizer
from data_tools.input.document import Document
from data_tools.tokenizer.extend import count_units, extend_tokenizer, learn
from data_tools.tokenizer.extend_report import in_old_ids
from tests.data_tools.tokenizer.test_training import HARD_TEXTS

ADD = 40
DOMAIN = [
    f"第{n}条　人民法院审理行政案件，依照本法规定；被告向人民法院提交答辩状，第{n % 7}款的规定除外。" for n in range(90)
]
OTHER = [f"今天天气很好，我们去公园{n}。" for n in range(30)]
FILES = ["extension.json", "tokenizer.json", "tokenizer_config.json"]


@pytest.fixture
def domain(write_lines: Callable) -> Path:
    return write_lines("laws.jsonl", [{"text": text} for text in DOMAIN])


@pytest.fixture(scope="module")
def extended(tokenizer_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("extended")
    (folder / "laws.txt").write_text("\n".join(DOMAIN), encoding="utf-8")
    extend_tokenizer(tokenizer_directory, [str(folder / "laws.txt")], folder / "out", add=ADD)
    return folder / "out"


@pytest.fixture(scope="module")
def child(extended: Path) -> Tokenizer:
    return load_tokenizer(extended)


@pytest.fixture(scope="module")
def parts(extended: Path) -> list[list[int]]:
    return json.loads((extended / "extension.json").read_text(encoding="utf-8"))["parts"]


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tokenizer in the style of ModernBERT: added tokens behind the vocabulary, merges as texts, more files."""
    directory = tmp_path_factory.mktemp("foreign")
    spell = pre_tokenizers.ByteLevel(add_prefix_space=False)
    vocab = {token: index for index, token in enumerate(sorted(spell.alphabet()))}
    merges = []
    for character in "人民法院":
        spelled = spell.pre_tokenize_str(character)[0][0]
        for end in range(1, len(spelled)):
            merges.append((spelled[:end], spelled[end]))
            vocab.setdefault(spelled[: end + 1], len(vocab))
    merges = list(dict.fromkeys(merges))
    backend = tokenizers.Tokenizer(models.BPE(vocab=vocab, merges=merges))
    backend.normalizer, backend.pre_tokenizer, backend.decoder = normalizers.NFC(), spell, decoders.ByteLevel()
    backend.add_tokens(["   ", "规定", "th"])
    backend.add_special_tokens(["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"])
    table = json.loads(backend.to_str())
    table["model"]["merges"] = [" ".join(merge) for merge in merges]
    (directory / "tokenizer.json").write_text(json.dumps(table), encoding="utf-8")
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("unk", "cls", "sep", "pad", "mask")}
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "model_max_length": 8192, **names}
    (directory / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    (directory / "special_tokens_map.json").write_text(json.dumps(names), encoding="utf-8")
    (directory / "vocab.json").write_text(json.dumps(vocab), encoding="utf-8")
    return directory


def documents(texts: list[str]) -> list[Document]:
    return [Document(str(number), "s", text) for number, text in enumerate(texts)]


def pieces_of(parent: Tokenizer, text: str) -> list[list[int]]:
    """A text without added tokens, cut and encoded step by step."""
    pieces = parent.backend.pre_tokenizer.pre_tokenize_str(parent.normalize(text))  # type: ignore[attr-defined]
    return [[token.id for token in parent.backend.model.tokenize(piece)] for piece, _ in pieces]


def joined(piece: list[int], left: int, right: int, symbol: int) -> list[int]:
    found: list[int] = []
    for index in piece:
        if found and (found[-1], index) == (left, right):
            found[-1] = symbol
        else:
            found.append(index)
    return found


def naive(parent: Tokenizer, texts: list[str], add: int) -> list[tuple[str, str, int]]:
    """Merges and the tokens that they save: all pairs counted anew for each."""
    pieces = [piece for text in texts for piece in pieces_of(parent, text)]
    spellings = {index: token for token, index in parent.backend.get_vocab().items()}
    merges = []
    while len(merges) < add:
        counts = Counter(pair for piece in pieces for pair in pairwise(piece))
        free = [pair for pair in counts if spellings[pair[0]] + spellings[pair[1]] not in spellings.values()]
        best = min(free, key=lambda pair: (-counts[pair], pair), default=None)
        if best is None or counts[best] < 2:
            break
        before, symbol = sum(map(len, pieces)), len(spellings)
        spellings[symbol] = spellings[best[0]] + spellings[best[1]]
        pieces = [joined(piece, *best, symbol) for piece in pieces]
        merges.append((spellings[best[0]], spellings[best[1]], before - sum(map(len, pieces))))
    return merges


def learnt(parent: Tokenizer, texts: list[str], add: int) -> list[tuple[str, str, int]]:
    new = learn(parent, count_units(parent, documents(texts))[0], add)
    return [(token.left, token.right, token.gain) for token in new]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text("aab 哈哈好很今天，1", min_size=1, max_size=30), min_size=1, max_size=12), st.integers(1, 60))
def test_merges_are_those_of_a_naive_learner(tokenizer: Tokenizer, texts: list[str], add: int) -> None:
    expected = naive(tokenizer, texts, add)
    if len(expected) < add:
        with pytest.raises(ConfigError, match=f"the text gives only {len(expected)} new ids"):
            learnt(tokenizer, texts, add)
    if expected:
        assert learnt(tokenizer, texts, len(expected)) == expected


def test_a_domain_against_the_naive_learner(tokenizer: Tokenizer) -> None:
    assert learnt(tokenizer, DOMAIN[:30], 60) == naive(tokenizer, DOMAIN[:30], 60)


def test_tokenizers_gives_the_new_merges(tokenizer: Tokenizer, child: Tokenizer, extended: Path) -> None:
    """The old encoding with the new merges applied one after another is what `tokenizers` reads from the file."""
    merges = json.loads((extended / "tokenizer.json").read_text(encoding="utf-8"))["model"]["merges"][-ADD:]
    num_new = 0
    for text in [*DOMAIN, *OTHER, *HARD_TEXTS]:
        pieces = pieces_of(tokenizer, text)
        for left, right in merges:
            pair = (child.backend.token_to_id(left), child.backend.token_to_id(right))
            pieces = [joined(piece, *pair, child.backend.token_to_id(left + right)) for piece in pieces]
        ids = child.encode(text)
        assert ids == [index for piece in pieces for index in piece]
        assert child.decode(ids, skip_special_tokens=False) == tokenizer.normalize(text)
        num_new += sum(index >= tokenizer.vocab_size for index in ids)
    assert num_new > 500


@settings(max_examples=300, deadline=None)
@given(st.text(max_size=40) | st.text("人民法院审理行政案件，第1条规定 ", max_size=40))
def test_new_ids_stand_for_their_parts(
    tokenizer: Tokenizer, child: Tokenizer, parts: list[tuple[int, ...]], text: str
) -> None:
    """So an encoding without a new token is the old one."""
    assert in_old_ids(child.encode(text), tokenizer.vocab_size, parts) == tokenizer.encode(text)


def test_parts_spell_the_same_bytes(tokenizer: Tokenizer, child: Tokenizer, extended: Path) -> None:
    record = json.loads((extended / "extension.json").read_text(encoding="utf-8"))
    assert record["parent_fingerprint"] == tokenizer.fingerprint
    assert record["parent_ids"] == tokenizer.vocab_size == child.vocab_size - ADD
    assert len(record["parts"]) == len(record["gains"]) == ADD
    for index, parts in enumerate(record["parts"], tokenizer.vocab_size):
        token = child.backend.id_to_token(index)
        assert max(parts) < tokenizer.vocab_size
        assert "".join(tokenizer.backend.id_to_token(part) for part in parts) == token
        assert [one.id for one in tokenizer.backend.model.tokenize(token)] == parts
    for token, index in tokenizer.backend.get_vocab().items():
        assert child.backend.token_to_id(token) == index


def test_added_tokens_behind_the_vocabulary_stay(foreign: Path, domain: Path, tmp_path: Path) -> None:
    """`tokenizers` numbers them by the size of the vocabulary, which has grown."""
    parent = load_tokenizer(foreign)
    texts = [*DOMAIN, "[MASK]   规定 th   the 人民[CLS]", *HARD_TEXTS]
    folders = [foreign, tmp_path / "once", tmp_path / "twice"]
    for before, folder in pairwise(folders):
        extend_tokenizer(before, [str(domain)], folder, add=30)
        grown, record = load_tokenizer(folder), json.loads((folder / "extension.json").read_text(encoding="utf-8"))
        old = load_tokenizer(before)
        assert record["parent_fingerprint"] == old.fingerprint
        assert grown.vocab_size == old.vocab_size + 30
        assert grown.vocabulary.special == parent.vocabulary.special
        assert grown.vocabulary.mask_id == parent.vocab_size - 1
        for text in texts:
            assert in_old_ids(grown.encode(text), old.vocab_size, record["parts"]) == old.encode(text)
        assert {path.name for path in folder.iterdir()} == {*FILES, "special_tokens_map.json"}
        assert (folder / "tokenizer_config.json").read_bytes() == (foreign / "tokenizer_config.json").read_bytes()
        merges = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["merges"]
        assert all(isinstance(merge, str) for merge in merges)
    assert not set(parent.vocabulary.special) & {part for parts in record["parts"] for part in parts}


@pytest.mark.parametrize("name", ["extended", "foreign"])
def test_transformers_gives_the_same_ids(
    name: str, domain: Path, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    transformers = pytest.importorskip("transformers")
    folder: Path = request.getfixturevalue(name)
    if name == "foreign":
        extend_tokenizer(folder, [str(domain)], tmp_path / "out", add=30)
        folder = tmp_path / "out"
    theirs, ours = transformers.PreTrainedTokenizerFast.from_pretrained(folder), load_tokenizer(folder)
    assert len(theirs) == ours.vocab_size
    assert theirs.mask_token_id == ours.vocabulary.mask_id
    for text in [*DOMAIN[:9], *OTHER[:9], "th 规定   😀"]:
        assert theirs(text, add_special_tokens=False)["input_ids"] == ours.encode(text)


def test_the_same_bytes_every_time(tokenizer_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many threads encode; the order of the documents changes nothing but the input's hash."""
    (tmp_path / "laws.txt").write_text("\n".join(DOMAIN), encoding="utf-8")
    (tmp_path / "turned.txt").write_text("\n".join(DOMAIN[::-1]), encoding="utf-8")
    folders = {}
    for name, source, parallel in (("a", "laws", "true"), ("b", "laws", "false"), ("c", "turned", "true")):
        monkeypatch.setenv("TOKENIZERS_PARALLELISM", parallel)
        extend_tokenizer(tokenizer_directory, [str(tmp_path / f"{source}.txt")], tmp_path / name, add=ADD)
        folders[name] = {path.name: path.read_bytes() for path in sorted((tmp_path / name).iterdir())}
    assert list(folders["a"]) == FILES
    assert folders["a"] == folders["b"]
    assert folders["a"]["tokenizer.json"] == folders["c"]["tokenizer.json"]


def test_what_no_merge_makes_is_not_merged(foreign: Path, tmp_path: Path) -> None:
    """Special tokens in the text, and what stands for bytes that a vocabulary has not."""
    table = json.loads((foreign / "tokenizer.json").read_text(encoding="utf-8"))
    table["pre_tokenizer"]["use_regex"] = False  # a document is one piece
    table["model"]["unk_token"] = "<?>"
    tokens = ["<?>", *(token for token in table["model"]["vocab"] if token not in "¤¼")]
    table["model"]["vocab"] = {token: index for index, token in enumerate(tokens)}
    (tmp_path / "tokenizer.json").write_text(json.dumps(table), encoding="utf-8")
    parent = load_tokenizer(tmp_path)
    texts = [f"[MASK]{n}" for n in range(300)] + ["乤驼"] * 50  # bytes E4 B9 A4, E9 A9 BC
    assert parent.encode("乤").count(0) == 1
    new = learn(parent, count_units(parent, documents(texts))[0], 12)
    made = [token.left + token.right for token in new]
    assert {"[MAS", "K]"} < set(made)
    assert "[MASK]" not in made
    assert not any("<?>" in token for token in made)


def test_a_special_token_that_would_be_read_from_text(foreign: Path, domain: Path, tmp_path: Path) -> None:
    """With ignore_merges a piece that is in the vocabulary is that token; before, the special one was not in it."""
    table = json.loads((foreign / "tokenizer.json").read_text(encoding="utf-8"))
    table["model"]["ignore_merges"] = True
    (tmp_path / "tokenizer.json").write_text(json.dumps(table), encoding="utf-8")
    extend_tokenizer(tmp_path, [str(domain)], tmp_path / "good", add=8)
    table["pre_tokenizer"]["use_regex"] = False
    (tmp_path / "tokenizer.json").write_text(json.dumps(table), encoding="utf-8")
    with pytest.raises(ConfigError, match=r"tokenizer\.json: cannot be extended, '\[UNK\]' gets other ids; give"):
        extend_tokenizer(tmp_path, [str(domain)], tmp_path / "bad", add=8)
    assert not (tmp_path / "bad").exists()
