"""The one engine that plays jobs: a driver that hands them out and alone writes, and pools of workers."""
