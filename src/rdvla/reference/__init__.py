"""The plain published computation that tests, doctor and benchmarks compare with; it shares no code with the model."""
