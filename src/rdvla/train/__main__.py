"""`python -m rdvla.train --config ...`, short for `python -m rdvla train`, for launchers that start modules."""

import runpy
import sys

sys.argv.insert(1, "train")
runpy.run_module("rdvla", run_name="__main__")
