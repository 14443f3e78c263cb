# /// script
# requires-python = ">=3.11"
# dependencies = ["rdvla[vla-eval]"]
# ///
"""What `vla-eval serve --config ...` starts; the same as `python -m rdvla.integrations.vla_eval`."""

from rdvla.integrations.vla_eval import main

main()
