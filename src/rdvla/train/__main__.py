"""`python -m rdvla.train --config ...`, short for `rdvla train`, for launchers that start modules."""

import sys

from rdvla.cli.main import main

sys.argv.insert(1, "train")
main()
