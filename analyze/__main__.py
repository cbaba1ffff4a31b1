"""`python -m saelens_lite.analyze …` is `saelens-lite analyze …`, for torchrun: `torchrun -m
saelens_lite.analyze …`."""

import sys

from saelens_lite.cli.commands import main

if __name__ == "__main__":
    sys.exit(main(["analyze", *sys.argv[1:]]))
