"""`cmbert export`: a folder that transformers, sentence-transformers or onnxruntime loads."""

import argparse
import logging
from pathlib import Path

from cmbert.cli_values import utf8_path

logger = logging.getLogger(__name__)


def add(commands: argparse._SubParsersAction) -> None:
    """Add `export`."""
    export = commands.add_parser(
        "export",
        help="a folder that transformers, sentence-transformers or onnxruntime loads",
        description="Write a model folder with a card, once its outputs on texts equal ours; to onnx from folders, "
        "too: embed-train's (sentence vectors), a classifier, or an exported one. Needs no GPU.",
    )
    export.add_argument("model", type=utf8_path, help="run directory or checkpoint; for onnx also a model folder")
    export.add_argument("--output", type=utf8_path, required=True, metavar="DIR", help="folder to make")
    export.add_argument(
        "--format",
        choices=["hf", "hf-modernbert", "onnx"],
        default="hf",
        help="hf-modernbert: insist on stock ModernBERT, for LayerNorm models; onnx: model.onnx (default hf)",
    )
    export.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Export a model behind the gate."""
    from cmbert.export.release import export

    measured = export(options.model, options.output, options.format)
    said = "%s: outputs on %d tokens differ from ours in fp64 by %s"
    logger.info(said, options.output, measured.num_tokens, measured)
    print(f"written to {options.output}; load it: {_how_to_load(options.output)}; more in its README.md")
    return 0


def _how_to_load(folder: Path) -> str:
    """Return the Python that opens an exported folder."""
    if (folder / "model.onnx").is_file():
        return f"onnxruntime.InferenceSession({str(folder / 'model.onnx')!r})"
    trust = ", trust_remote_code=True" if (folder / "modeling_cmbert.py").is_file() else ""
    return f"transformers.AutoModelForMaskedLM.from_pretrained({str(folder)!r}{trust})"
