"""HTML out of a text that is mostly prose: `0<x 时，f(x)>0` holds no tag, `?id=1&copy=2` no entity.

A parser would take both for markup, as a browser does; here a tag has a known name or a quoted attribute. Every search
ends at the next `<`, or is made once: time is linear in the text.
"""

import html
import re
from collections.abc import Callable
from html.entities import html5

NAMES = """a abbr acronym address applet area article aside audio b base basefont bdi bdo bgsound big blink blockquote
body br button canvas caption center cite code col colgroup command data datalist dd del details dfn dialog dir div dl
dt em embed fieldset figcaption figure font footer form frame frameset h1 h2 h3 h4 h5 h6 head header hgroup hr html i
iframe img input ins kbd label legend li link listing main map mark marquee math menu menuitem meta meter mfrac mi mn
mo mrow msqrt msub msup nav nobr noembed noframes noscript o:p object ol optgroup option output p param picture
plaintext pre progress q rb rp rt ruby s samp script section select slot small source span st1:chsdate strike strong
style sub summary sup svg table tbody td template textarea tfoot th thead time title tr track tt u ul var video wbr
xmp"""
TAG_NAMES = frozenset(NAMES.split())  # of HTML, old ones too, MathML and what word processors write
FLAG_NAMES = """allowfullscreen async autofocus autoplay checked compact controls default defer disabled formnovalidate
hidden ismap itemscope loop multiple muted nohref noresize noshade novalidate nowrap open readonly required reversed
selected"""
FLAGS = frozenset(FLAG_NAMES.split())  # HTML's attributes without a value
MOST_SLOPPY = 200  # characters: what may follow the attributes of a tag that is certainly one
# Quantifiers are possessive (++): nothing is tried again.
ATTRIBUTE = r"""[a-z_:@][\w:.@-]*+(?:\s*+=\s*+(?:"[^"<]*+"|'[^'<]*+'|[^\s"'<>]++))?+"""
MARKUP = re.compile(
    r"<!--|<(?P<slash>/?)(?P<name>[a-z][a-z0-9:-]*+)"
    rf"(?P<attributes>(?:\s*+{ATTRIBUTE})*+)(?P<rest>[^<>]{{0,{MOST_SLOPPY}}}+)>",
    re.I | re.A,
)
ONE_ATTRIBUTE = re.compile(ATTRIBUTE, re.I | re.A)
PLAIN_VALUE = re.compile(r"[^\s=]++\s*+=\s*+[!-~]++")  # ASCII: in prose another sign of comparison may end such a "tag"
BLOCK_END = {"script": re.compile(r"</script\s*>", re.I | re.A), "style": re.compile(r"</style\s*>", re.I | re.A)}
COMMENT_END = re.compile("-->")
LINE_ENDING = frozenset(("br", "/p", "/div", "/li", "/tr", *(f"/h{level}" for level in range(1, 7))))
ENTITY = re.compile(r"&(?:#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6}|[a-zA-Z][a-zA-Z0-9]{1,31});")


def strip_html(text: str, note: Callable[[str, str], None]) -> str:
    """Return `text` without tags, comments, scripts and styles, then with its entities as characters.

    note: told of each piece that goes, "html_tag" or "html_block", and its text.
    """
    if "<" in text:
        text = "".join(_without_markup(text, note))
    return ENTITY.sub(_character, text) if "&" in text else text


def _without_markup(text: str, note: Callable[[str, str], None]) -> list[str]:
    kept: list[str] = []
    unknown: set[str] = set()  # names of tags that went for their attributes: their end tags go, too
    endless: set[str] = set()  # blocks of which no end follows any more
    done = position = 0
    while found := MARKUP.search(text, position):
        position = found.end()
        name = (found["name"] or "!--").lower()
        is_block = name in ("!--", *BLOCK_END) and not found["slash"]
        if name != "!--" and not _is_tag(found, name, unknown):
            position = found.start() + 1
            continue
        end = None
        if is_block and name not in endless:
            # `<!-->` is a comment, so its end may begin within its beginning.
            end = (
                COMMENT_END.search(text, found.start() + 2) if name == "!--" else BLOCK_END[name].search(text, position)
            )
            endless |= set() if end else {name}
        if end:
            position = end.end()
        elif name == "!--":
            continue  # stays: everything to the end of the text may be prose
        kept.append(text[done : found.start()])
        if (found["slash"] or "") + name in LINE_ENDING:
            kept.append("\n")
        note("html_block" if end else "html_tag", text[found.start() : position])
        done = position
    return [*kept, text[done:]]


def _is_tag(found: re.Match[str], name: str, unknown: set[str]) -> bool:
    """Return whether what looks like a tag is one. `name`: in lower case."""
    attributes = ONE_ATTRIBUTE.findall(found["attributes"])
    is_known, is_quoted = name in TAG_NAMES, any(attribute[-1] in "\"'" for attribute in attributes)
    if is_known and is_quoted:
        return True
    if found["rest"].strip(" \t\r\n\f/"):
        return False
    if is_quoted:
        unknown.add(name)
        return True
    if found["slash"]:
        return not attributes and (is_known or name in unknown)
    if not attributes:
        return is_known and found["name"] in (name, name.upper())  # not List<Object>
    return is_known and all(attribute.lower() in FLAGS or PLAIN_VALUE.fullmatch(attribute) for attribute in attributes)


def _character(entity: re.Match[str]) -> str:
    if entity[0][1] == "#":
        return html.unescape(entity[0])  # also what browsers make of Windows' code points
    return html5.get(entity[0][1:], entity[0])
