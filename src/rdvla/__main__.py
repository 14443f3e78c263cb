"""`python -m rdvla`, for launchers that start modules: `torchrun --nproc-per-node 4 -m rdvla train --config ...`."""

from rdvla.cli.main import main

main()
