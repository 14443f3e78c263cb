"""Is this machine exact? Environment, rendering, built-in reference numbers, and any directory of recorded values."""
