import sys

from cmbert.cli import main

if __name__ == "__main__":
    sys.exit(main())
