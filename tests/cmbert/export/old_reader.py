"""What one version of transformers makes of exported folders; test_old_transformers.py runs it as a process.

Takes a folder with three exports, `layernorm`, `rmsnorm` and `wrong`, and `batches.pt`; leaves `seen.pt` there. It
needs nothing of cmbert, and works with every transformers from 4.48.0 on.
"""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    ModernBertForMaskedLM,
    ModernBertModel,
)

TEXT = "今天天气很好"
IMPLEMENTATIONS = ("eager", "sdpa")


def attempt(load: Callable[[], Any]) -> str:
    """Return what was loaded, or the error in one line."""
    try:
        return f"loaded {type(load()).__name__}"
    except Exception as error:  # noqa: BLE001  any loud failure will do; the test reads which
        return f"{type(error).__name__}: {error}".replace("\n", " ")


def logits(folder: Path, implementation: str, batches: list[tuple[torch.Tensor, torch.Tensor]]) -> list[torch.Tensor]:
    model = AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True, attn_implementation=implementation)
    with torch.no_grad():
        return [model.eval()(input_ids=ids, attention_mask=mask).logits for ids, mask in batches]


def fed(tokenizer: Any, folder: Path) -> list[int]:
    """Return the shape of the logits when a model is given all that its tokenizer returns."""
    model = AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True)
    return list(model(**tokenizer([TEXT, TEXT * 9], padding=True, return_tensors="pt")).logits.shape)


def saved(folder: Path, scratch: Path) -> dict[str, Any]:
    """Save a model and its encoder as transformers does, and load both again, the encoder as a classifier."""
    model = AutoModelForMaskedLM.from_pretrained(folder, trust_remote_code=True)
    model.save_pretrained(scratch / "again")
    again = AutoModelForMaskedLM.from_pretrained(scratch / "again", trust_remote_code=True).state_dict()
    AutoModel.from_pretrained(folder, trust_remote_code=True).save_pretrained(scratch / "encoder")
    classifier = AutoModelForSequenceClassification.from_pretrained(
        scratch / "encoder", num_labels=3, trust_remote_code=True
    )
    return {
        "same weights": all(torch.equal(weight, again[name]) for name, weight in model.state_dict().items()),
        "same norm": torch.equal(classifier.model.final_norm.weight, model.model.final_norm.weight),
        "fresh norm": bool((classifier.head.norm.weight == 1).all()),
        "class": type(classifier).__name__,
    }


def main() -> None:
    place = Path(sys.argv[1])
    exports = {name: place / name for name in ("layernorm", "rmsnorm", "wrong")}
    batches = torch.load(place / "batches.pt")
    seen: dict[str, Any] = {"version": transformers.__version__, "torch": str(torch.__version__)}
    tokenizers = {name: AutoTokenizer.from_pretrained(folder) for name, folder in exports.items()}
    seen["ids"] = [tokenizer(TEXT)["input_ids"] for tokenizer in tokenizers.values()]
    seen["stock before"] = type(AutoModelForMaskedLM.from_pretrained(exports["layernorm"])) is ModernBertForMaskedLM
    auto = {auto.__name__: attempt(lambda auto=auto: auto.from_pretrained(exports["rmsnorm"]))
            for auto in (AutoModel, AutoModelForMaskedLM, AutoModelForSequenceClassification)}  # fmt: skip
    seen["logits"] = {
        (name, implementation): logits(folder, implementation, batches)
        for name, folder in exports.items()
        for implementation in IMPLEMENTATIONS
    }
    named = {kind.__name__: attempt(lambda kind=kind: kind.from_pretrained(exports["rmsnorm"]))
             for kind in (ModernBertModel, ModernBertForMaskedLM)}  # fmt: skip
    seen["untrusted"] = auto | named
    seen["stock after"] = type(AutoModelForMaskedLM.from_pretrained(exports["layernorm"])) is ModernBertForMaskedLM
    seen["logits after"] = logits(exports["layernorm"], "sdpa", batches)
    seen["fed"] = {name: fed(tokenizers[name], exports[name]) for name in ("layernorm", "rmsnorm")}
    seen["saved"] = {name: saved(exports[name], place / f"{name} saved") for name in ("layernorm", "rmsnorm")}
    torch.save(seen, place / "seen.pt")


if __name__ == "__main__":
    main()
