"""Training: L1 regression of action chunks at random depth with truncated backpropagation through time."""
