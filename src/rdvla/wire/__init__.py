"""The protocol between a robot and a policy server: codec, messages, layouts of an observation. No torch."""
