"""`cmbert import`: another's model as a starting point."""

import argparse

from cmbert.cli_values import utf8_path


def add(commands: argparse._SubParsersAction) -> None:
    """Add `import`."""
    parser = commands.add_parser(
        "import",
        help="another's ModernBERT as a starting point for train.init_from",
        description="Read a folder of ModernBERT's family in Hugging Face's layout, compare the logits with those of "
        "transformers, and write it as a folder that train.init_from and data.tokenizer take. Needs no GPU.",
    )
    parser.add_argument("folder", type=utf8_path, metavar="FOLDER", help="config.json, safetensors and a tokenizer")
    parser.add_argument("--output", type=utf8_path, required=True, metavar="DIR", help="folder to make")
    parser.set_defaults(command=run)


def run(options: argparse.Namespace) -> int:
    """Import a model behind the gate."""
    from cmbert.export.importing import import_model

    import_model(options.folder, options.output)
    print(f"written to {options.output}; a recipe starts from it by: extends = {str(options.output / 'start.toml')!r}")
    return 0
