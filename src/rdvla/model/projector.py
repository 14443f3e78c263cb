"""Small projections into the language model's width."""

import torch.nn.functional as F
from torch import Tensor, nn


class VisionProjector(nn.Module):
    """Patch features to the language model: three linear layers with exact GELU between."""

    def __init__(self, vision_dim: int, hidden_dim: int, output_dim: int) -> None:
        """Project `vision_dim` through `hidden_dim` to `output_dim`."""
        super().__init__()
        self.fc1 = nn.Linear(vision_dim, hidden_dim)
        self.fc2 = nn.Linear(hidden_dim, output_dim)
        self.fc3 = nn.Linear(output_dim, output_dim)

    def forward(self, x: Tensor) -> Tensor:
        """Project the last axis."""
        return self.fc3(F.gelu(self.fc2(F.gelu(self.fc1(x)))))


class StateProjector(nn.Module):
    """The normalised robot state to one token: two linear layers with exact GELU between."""

    def __init__(self, state_dim: int, output_dim: int) -> None:
        """Project `state_dim` to `output_dim`."""
        super().__init__()
        self.fc1 = nn.Linear(state_dim, output_dim)
        self.fc2 = nn.Linear(output_dim, output_dim)

    def forward(self, state_BS: Tensor) -> Tensor:
        """Return `[B, output_dim]`."""
        return self.fc2(F.gelu(self.fc1(state_BS.to(self.fc1.bias.dtype))))
