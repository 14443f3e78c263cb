"""The policy server, its metrics and its live page."""
