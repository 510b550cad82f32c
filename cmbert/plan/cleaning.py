"""What `data_tools clean` costs: arithmetic on the text that is kept, for the plan knows no raw text."""

from dataclasses import dataclass

from cmbert.plan.assumptions import Assumptions

BANDS, BANDED_BYTES = 15, 12  # of a signature: the whole text's key and MinHash's 14; a key and a number each
ROW_BYTES = 13  # of the table beside the texts
GROUP_BYTES = 5  # the first of a document's group and whether it is a copy: on disk, and in memory while they are found
WORK_SHARE, OUTPUT_SHARE = 0.35, 0.25  # of UTF-8 text, as zstd's levels 1 and 6 leave it: measured on laws and reviews


@dataclass(frozen=True)
class CleanCost:
    """Core-hours, disk and memory of all corpora of a stage, as if one call cleaned them."""

    raw_bytes: float
    """UTF-8 of the text before it is cleaned, if the assumed share stays."""
    documents: float
    """Of the raw text, if as large a share of them stays."""
    core_hours: float
    work_bytes: float
    """On disk between the passes, at most: of documents that are dropped before, nothing is kept."""
    output_bytes: float
    """On disk, of the cleaned text; beside the former until all is written."""
    cluster_bytes: float
    """Memory of the one task that groups duplicates; where corpora are cleaned one by one, the largest one's share."""


def cost_of_cleaning(text_bytes: float, documents: float, assumptions: Assumptions) -> CleanCost:
    """Return what it costs to clean until so much text stays, bytes of UTF-8 and documents."""
    raw, all_documents = text_bytes / assumptions.clean_kept_share, documents / assumptions.clean_kept_documents
    return CleanCost(
        raw_bytes=raw,
        documents=all_documents,
        core_hours=raw / (assumptions.clean_mb_per_second * 1e6) / 3600,
        work_bytes=raw * WORK_SHARE + all_documents * (BANDS * BANDED_BYTES + ROW_BYTES + GROUP_BYTES),
        output_bytes=text_bytes * OUTPUT_SHARE,
        cluster_bytes=all_documents * GROUP_BYTES,
    )
