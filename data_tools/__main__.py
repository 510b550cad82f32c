"""The program `data_tools`, by its console script and by `python -m data_tools`."""

import sys

from cmbert.standard_streams import use_utf8


def main() -> int:
    """Run one command."""
    use_utf8()
    from data_tools.cli import main

    return main()


if __name__ == "__main__":
    sys.exit(main())
