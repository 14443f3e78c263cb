import pytest
import torch

from rdvla.model import recorded


@pytest.fixture
def graphs(monkeypatch):
    """Compiles nothing, but captures whole graphs as any backend does; returns them."""
    found = []

    def backend(graph, examples):
        found.append(graph)
        return graph.forward

    torch._dynamo.reset()
    monkeypatch.setattr(recorded, "BACKEND", backend)
    yield found
    torch._dynamo.reset()
