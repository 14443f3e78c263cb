"""Vision-language-action policies that decide how long to think."""

__version__ = "0.1.0"
