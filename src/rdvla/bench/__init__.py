"""How fast is it? Ours against the released computation, interleaved, with the physical floor beside it."""
