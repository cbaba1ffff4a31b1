"""`python -m saelens_lite.train …` is `saelens-lite train …`, for torchrun: `torchrun -m saelens_lite.train
…`."""

import sys

from saelens_lite.cli.commands import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
