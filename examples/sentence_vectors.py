"""Compare sentences by their vectors: python examples/sentence_vectors.py FOLDER

FOLDER is what `cmbert export` or `cmbert embed-train` made. A model that has only seen masked words puts all sentences
close together; `cmbert embed-train` teaches it which belong together.
"""

import sys
from pathlib import Path

PAIRS = (  # the same said twice, the same topic, nothing in common
    ("酒店的房间很干净。", "这家宾馆的客房非常整洁。"),
    ("酒店的房间很干净。", "酒店离地铁站有点远。"),
    ("酒店的房间很干净。", "明天股市可能会下跌。"),
    ("手机的电池不耐用。", "这款手机半天就没电了。"),
    ("手机的电池不耐用。", "手机的屏幕很清晰。"),
    ("手机的电池不耐用。", "他在大学里教历史。"),
)


def main(folder: str = "") -> int:
    """Print the cosine of each pair; return the exit code."""
    if not any((Path(folder) / name).is_file() for name in ("config.json", "modules.json")):
        print(f"{folder or 'no folder given'}: no exported model; cmbert export RUN --output DIR", file=sys.stderr)
        return 2
    if not any(Path(folder).rglob("*.safetensors")) and not any(Path(folder).rglob("*.bin")):
        print(f"{folder}: has no weights (model.safetensors); export it again, with --format hf", file=sys.stderr)
        return 2
    from sentence_transformers import SentenceTransformer  # takes seconds, hence not first
    from transformers.utils import logging

    logging.disable_progress_bar()
    model = SentenceTransformer(folder, trust_remote_code=True)
    firsts, seconds = zip(*PAIRS, strict=True)
    vectors = model.encode([*firsts, *seconds], normalize_embeddings=True)  # (2 * pairs, hidden size), of length 1
    cosines = (vectors[: len(PAIRS)] * vectors[len(PAIRS) :]).sum(axis=1)
    for cosine, first, second in zip(cosines, firsts, seconds, strict=True):
        print(f"{cosine:6.3f}  {first}  {second}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:2]))
