"""Fill in masked words with nothing but transformers: python examples/fill_mask.py EXPORTED_FOLDER [OUTPUT.json]"""

import json
import sys
from pathlib import Path

SENTENCES = (
    "这家酒店的[MASK]很好，下次还会来住。",
    "这本书的内容非常[MASK]，值得一读。",
    "新华社[MASK]一月十日电",
    "改革开放以来，我国[MASK]取得了很大的成就。",
    "房间很干净，服务员的态度也很[MASK]。",
)
NUM_PREDICTIONS = 5


def main(folder: str = "", output: str = "") -> int:
    """Print the best fillings of five sentences, and write them to `output`; return the exit code."""
    if not (Path(folder) / "config.json").is_file():
        print(f"{folder or 'no folder given'}: no exported model; cmbert export RUN --output DIR", file=sys.stderr)
        return 2
    if not any(Path(folder).rglob("*.safetensors")) and not any(Path(folder).rglob("*.bin")):
        print(f"{folder}: has no weights (model.safetensors); export it again, with --format hf", file=sys.stderr)
        return 2
    from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline  # takes seconds, hence not first
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True)
    fill = pipeline("fill-mask", model=model, tokenizer=tokenizer, top_k=NUM_PREDICTIONS)
    results = []
    for text in SENTENCES:
        predictions = [{"token": found["token_str"], "score": found["score"]} for found in fill(text)]
        filled = text.replace("[MASK]", predictions[0]["token"])
        results.append({"text": text, "predictions": predictions, "filled": filled})
        print(f"{text}\n   " + "  ".join(f"{p['token'].strip() or '⏎'} {p['score']:.2f}" for p in predictions))
    if output:
        Path(output).write_text(json.dumps(results, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:3]))
