"""Evaluation: episodes in parallel processes, a durable log, rates with intervals."""
