"""Lets a torchvision built for CUDA be imported beside a CPU build of torch, which cannot load its compiled operators.

torchvision's Python files refer to two of them by name when they are imported; LeRobot calls neither. So the names are
declared as soon as torchvision is asked for.
"""

import importlib.abc
import sys

OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


class DeclareNames(importlib.abc.MetaPathFinder):
    """Finds nothing; declares the operators when torchvision is first looked for."""

    library = None

    def find_spec(self, name, path=None, target=None):
        """Return None: the usual finders go on."""
        if name == "torchvision" and DeclareNames.library is None:
            import torch

            DeclareNames.library = torch.library.Library("torchvision", "DEF")
            for operator in OPERATORS:
                DeclareNames.library.define(operator)
        return


sys.meta_path.insert(0, DeclareNames())
