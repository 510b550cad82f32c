"""What became of the documents of `clean`: kept and dropped by source and reason, with samples."""

import json
from collections import Counter
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from cmbert.html.page import bars, quotes, section, table, write_page

SAMPLES = 3  # of each reason and source
SAMPLE_CHARACTERS = 160


def read_records(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of all tasks under `folder`, in order."""
    for path in sorted(folder.glob("*.json")):
        yield json.loads(path.read_text(encoding="utf-8"))


def collect(work: Path) -> dict[str, Any]:
    """Return what was kept, dropped by source and reason and removed from texts, with samples, and skipped."""
    kept: dict[str, Counter[str]] = {}
    for record in read_records(work / "kept"):
        for source, counts in record.items():
            kept.setdefault(source, Counter()).update(counts)
    dropped: dict[str, Counter[str]] = {}
    samples: dict[str, dict[str, list[str]]] = {}
    for folder in ("dropped_undecodable", "dropped_quality", "dropped_held_out", "dropped_exact", "dropped_near"):
        for record in read_records(work / folder):
            for source, counts in record["counts"].items():
                dropped.setdefault(source, Counter()).update(counts)
                for reason, texts in record["samples"][source].items():
                    found = samples.setdefault(source, {}).setdefault(reason, [])
                    found.extend(texts[: SAMPLES - len(found)])
    skipped: Counter[str] = Counter()
    for record in read_records(work / "skipped"):
        skipped.update(record)
    held_out = sum(record["documents"] for record in read_records(work / "held_out"))
    counts = {"kept": kept, "held_out": held_out, "dropped": dropped, "skipped_lines": skipped, "samples": samples}
    return {**counts, "removed": collect_removed(work / "removed")}


def collect_removed(folder: Path) -> dict[str, dict[str, Any]]:
    """Return what was taken out of the texts: by source, pieces and characters of each kind, and samples of markup."""
    removed: dict[str, dict[str, Any]] = {}
    for record in read_records(folder):
        for source, found in record.items():
            if not found["pieces"]:
                continue
            total = removed.setdefault(source, {"pieces": Counter(), "characters": Counter(), "samples": {}})
            for count in ("pieces", "characters"):
                total[count].update(found[count])
            for kind, texts in found["samples"].items():
                samples = total["samples"].setdefault(kind, [])
                samples.extend(texts[: SAMPLES - len(samples)])
    return removed


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
    kept, dropped = report["kept"], report["dropped"]
    reasons = sorted({reason for counts in dropped.values() for reason in counts})
    sources = sorted({*kept, *dropped})
    total = {name: kept.get(name, {}).get("documents", 0) + sum(dropped.get(name, {}).values()) for name in sources}
    lines: dict[str, dict[str, str]] = {
        "documents": {name: f"{count:,}" for name, count in total.items()},
        "kept": {name: f"{counts['documents']:,}" for name, counts in kept.items()},
        "MB kept": {name: f"{counts['bytes'] / 1e6:,.2f}" for name, counts in kept.items()},
        **{spell(reason): {name: f"{counts[reason]:,}" for name, counts in dropped.items()} for reason in reasons},
    }
    rows = [[line, *(numbers.get(name, "0") for name in sources)] for line, numbers in lines.items()]
    ends = Counter({"kept": sum(counts["documents"] for counts in kept.values()), "held out": report["held_out"]})
    ends = sum(dropped.values(), +ends)
    shares = [(spell(n), count, f"{count:,} ({100 * count / ends.total():.1f} %)") for n, count in ends.most_common()]
    sections = [
        section("Documents by source", table(["", *sources], rows, "numbers")),
        section("Where they went", bars(shares)),
    ]
    if report["skipped_lines"]:
        skipped = [[spell(reason), f"{count:,}"] for reason, count in report["skipped_lines"].items()]
        sections.append(section("Lines that were no documents", table(["reason", "lines"], skipped, "numbers")))
    sections += [
        section(f"Dropped from {name}: {spell(reason)}", quotes(texts))
        for name, by_reason in report["samples"].items()
        for reason, texts in by_reason.items()
    ]
    sections += removed_sections(report["removed"])
    write_page(output, title="What was cleaned", subtitle=escape(describe_kept(report)), sections=sections)


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
