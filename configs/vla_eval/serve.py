# /// script
# requires-python = ">=3.11"
# dependencies = ["rdvla[vla-eval]"]
#
# [tool.uv.sources]
# rdvla = { path = "../..", editable = true }
# ///
"""What `vla-eval serve --config ...` starts, in an environment that `uv` makes from this checkout.

The same as `python -m rdvla.integrations.vla_eval`.
"""

from rdvla.integrations.vla_eval import main

main()
