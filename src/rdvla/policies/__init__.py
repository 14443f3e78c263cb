"""Where a policy comes from: a checkpoint made ready to act, an expert, a server."""
