"""`python -m saelens_lite.harvest …` is `saelens-lite harvest …`, for torchrun: `torchrun -m
saelens_lite.harvest …`."""

import sys

from saelens_lite.cli.commands import main

if __name__ == "__main__":
    sys.exit(main(["harvest", *sys.argv[1:]]))
