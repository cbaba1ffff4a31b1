"""`python -m saelens_lite.cli COMMAND`, the same as `saelens-lite COMMAND`."""

import sys

from saelens_lite.cli.commands import main

if __name__ == "__main__":
    sys.exit(main())
