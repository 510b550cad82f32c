"""What became of the documents of `clean`: kept and dropped by source and reason, with samples."""

from collections import Counter
from html import escape
from pathlib import Path
from typing import Any

from cmbert.html.page import bars, quotes, section, table, write_page
from data_tools.clean.text.contamination import RUN_UNITS
from data_tools.clean.text.letters import GRAM_LETTERS, NEAR_SHARE
from data_tools.clean.text.quality import LIMITS

METADATA = "metadata_"  # and the key: reasons of [[metadata]] rules

SHARES = {  # what is measured, as a share of the text
    "undecodable": "characters that stand for none",
    "mojibake": "characters as in another encoding",
    "few_hanzi": "Hanzi",
    "much_punctuation": "punctuation and symbols",
    "many_digits": "digits",
    "duplicate_lines": "in lines that stood there before",
    "no_sentences": "of its long lines ended by punctuation",
    "repetitive": "in runs of 10 characters that stood there before",
    "one_phrase": "in its commonest run of 4 characters",
}


def describe_kept(report: dict[str, Any]) -> str:
    """Return one line on a finished run."""
    total: Counter[str] = sum(report["kept"].values(), Counter())
    dropped = sum(counts.total() for counts in report["dropped"].values())
    share = 100 * total["documents"] / (total["documents"] + report["held_out"] + dropped)
    skipped = f", {report['skipped_lines'].total():,} bad lines skipped" if report["skipped_lines"] else ""
    counted = f"{total['documents']:,} documents, {total['bytes'] / 1e6:,.2f} MB kept ({share:.1f} %)"
    held_out = f", {report['held_out']:,} held out" if report["held_out"] else ""
    return f"{counted}{held_out}{skipped}"


def describe_drops(report: dict[str, Any]) -> str:
    """Return the reasons with their numbers, most frequent first."""
    reasons: Counter[str] = sum(report["dropped"].values(), Counter())
    return ", ".join(f"{reason} {count:,}" for reason, count in reasons.most_common()) or "none"


def write_report_page(report: dict[str, Any], output: Path) -> None:
    """Write the report as one HTML page."""
    kept, dropped, held_out = report["kept"], report["dropped"], report["held_out_by_source"]
    reasons = sorted({reason for counts in dropped.values() for reason in counts})
    sources = sorted({*kept, *dropped, *held_out})
    total = {name: kept.get(name, {}).get("documents", 0) + sum(dropped.get(name, {}).values()) for name in sources}
    for name, count in held_out.items():
        total[name] = total.get(name, 0) + count
    lines: dict[str, dict[str, str]] = {
        "documents": {name: f"{count:,}" for name, count in total.items()},
        "kept": {name: f"{counts['documents']:,}" for name, counts in kept.items()},
        "MB kept": {name: f"{counts['bytes'] / 1e6:,.2f}" for name, counts in kept.items()},
        **({"held out": {name: f"{count:,}" for name, count in held_out.items()}} if held_out else {}),
        **{spell(reason): {name: f"{counts[reason]:,}" for name, counts in dropped.items()} for reason in reasons},
    }
    rows = [[line, *(numbers.get(name, "0") for name in sources)] for line, numbers in lines.items()]
    ends = Counter({"kept": sum(counts["documents"] for counts in kept.values()), "held out": report["held_out"]})
    ends = sum(dropped.values(), +ends)
    shares = [(spell(n), count, f"{count:,} ({100 * count / ends.total():.1f} %)") for n, count in ends.most_common()]
    sections = [
        section("Documents by source", table(["", *sources], rows, "numbers")),
        section("Where they went", bars(shares)),
        section("Limits in force", table(["filter", "drops a text", "key"], limits(report["settings"]), "texts")),
    ]
    if sets := report.get("evaluation_sets"):
        counts = [[name, f"{found['texts']:,}", f"{found['documents']:,}"] for name, found in sets.items()]
        head = ["set", "texts looked for", "documents dropped"]
        sections.append(section("Evaluation sets that were looked for", table(head, counts, "numbers")))
    if report["skipped_lines"]:
        skipped = [[spell(reason), f"{count:,}"] for reason, count in report["skipped_lines"].items()]
        sections.append(section("Lines that were no documents", table(["reason", "lines"], skipped, "numbers")))
    sections += [
        section(f"Dropped from {name}: {spell(reason)}", sample_quotes(reason, samples, report["settings"]))
        for name, by_reason in report["samples"].items()
        for reason, samples in by_reason.items()
    ]
    sections += removed_sections(report["removed"])
    write_page(output, title="What was cleaned", subtitle=escape(describe_kept(report)), sections=sections)


def limits(settings: dict[str, Any]) -> list[list[str]]:
    """Return the filters, each with what it drops and the key of its limit in a --config file."""
    quality, duplicates = settings["config"]["quality"], settings["config"]["duplicates"]
    rows = [[spell(reason), f"with {limit(reason, quality)}", f"quality.{key}"] for reason, key in LIMITS.items()]
    for rule in settings["config"]["metadata"]:
        rows.insert(0, [spell(METADATA + rule["key"]), f"with {rule_limit(rule)}", "[[metadata]]"])
    if "against" in settings:
        share = f"{100 * NEAR_SHARE:.0f} %"
        rows.append(["held out", "that equals one of --against in its letters", ""])
        rows.append(["near held out", f"with {share} of its runs of {GRAM_LETTERS} letters in one of --against", ""])
    if "decontaminate" in settings:
        share = settings["config"]["contamination"]["min_share"]
        least = f"with {100 * share:.3g} % and one at least of the runs of {RUN_UNITS} Hanzi or words"
        rows.append(["contaminated", f"{least} of a text of --decontaminate in it", "contamination.min_share"])
    size, bands, hashes = (duplicates[key] for key in ("shingle_characters", "num_buckets", "hashes_per_bucket"))
    alike = f"with {100 * bands ** (-1 / hashes):.0f} % or so of its runs of {size} characters in another text"
    rows.append(["exact duplicate", "equal to one before it" if duplicates["exact"] else "off", "duplicates.exact"])
    rows.append(["near duplicate", alike if duplicates["near"] else "off", "duplicates.near"])
    before = [["earlier duplicate", "equal or nearly equal to one kept before (--against signatures)", ""]]
    return [*rows, *(before if "earlier" in settings else [])]


def rule_limit(rule: dict[str, Any]) -> str:
    """Return what a [[metadata]] rule drops, in words."""
    limits = [f"{word} than {rule[key]:g}" for key, word in (("min", "less"), ("max", "more")) if key in rule]
    what = " or ".join(limits) or f"anything but {', '.join(rule['values'])}"
    stays = f"; of these {100 * rule['share']:.3g} % stay" if rule["share"] else ""
    return f"{what} under {rule['key']}{stays}"


def limit(reason: str, quality: dict[str, Any]) -> str:
    """Return the limit of a reason in words: what a text has that is dropped for it."""
    key = LIMITS[reason]
    return f"{'less' if key.startswith('min_') else 'more'} than {amount(reason, quality[key])}"


def amount(reason: str, value: float) -> str:
    """Return what the rule of a reason measures, in words: characters, or a share in percent."""
    return f"{value:,} characters" if reason not in SHARES else f"{100 * value:.3g} % {SHARES[reason]}"


def sample_quotes(reason: str, samples: list[dict[str, Any]], settings: dict[str, Any]) -> str:
    """Return samples of what was dropped, each with what was measured and the limit, or with what was kept instead."""
    texts, notes = [], []
    for sample in samples:
        texts.append(sample["text"])
        notes.append(sample["id"])
        if reason.startswith(METADATA):
            notes[-1] += f": {sample['measured']} under {reason.removeprefix(METADATA)}"
        elif "measured" in sample:
            quality = settings["config"]["quality"]
            notes[-1] += f": {amount(reason, sample['measured'])}; dropped with {limit(reason, quality)}"
        if "run" in sample:
            shared = f"{', '.join(sample['sets'])}; {100 * sample['share']:.0f} % of the runs in both; the longest"
            notes[-1] += f": in {shared}: {sample['run']}"
        if twin := sample.get("twin"):
            texts.append(twin["text"])
            notes.append(f"{twin['id']}: kept instead; {100 * twin['shared']:.0f} % of what both hold is in both")
    return quotes(texts, notes)


def removed_sections(removed: dict[str, dict[str, Any]]) -> list[str]:
    """Return what was taken out of the texts that normalisation saw, counted and quoted."""
    rows = [
        [f"{source}: {spell(kind)}", f"{pieces:,}", f"{found['characters'][kind]:,}"]
        for source, found in removed.items()
        for kind, pieces in found["pieces"].items()
    ]
    samples = [
        section(f"Removed from texts of {source}: {spell(kind)}", quotes(texts))
        for source, found in removed.items()
        for kind, texts in found["samples"].items()
    ]
    counts = section("Removed from texts", table(["", "pieces", "characters"], rows, "numbers"))
    return [counts, *samples] if rows else []


def spell(reason: str) -> str:
    """Return a reason in words."""
    return reason.replace("_", " ")
