"""From an instruction to token ids."""

from collections.abc import Iterable, Sequence

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor


class Prompt:
    """Formats instructions and tokenises them, padded on the right."""

    def __init__(self, tokenizer: Tokenizer, template: str) -> None:
        """Use `tokenizer` on `template` with `{instruction}` replaced by the lower-cased instruction."""
        self.tokenizer = tokenizer
        self.template = template

    def __call__(self, instructions: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Return ids int64 `[B, L]` (padding is id 0, never read) and lengths int64 `[B]`."""
        ids = [self.encode(instruction) for instruction in instructions]
        lengths = torch.tensor([len(row) for row in ids])
        padded = torch.zeros(len(ids), int(lengths.max()), dtype=torch.long)
        for row, values in zip(padded, ids, strict=True):
            row[: len(values)] = torch.tensor(values)
        return padded, lengths

    def encode(self, instruction: str) -> list[int]:
        """Return the ids of one formatted instruction."""
        text = self.template.replace("{instruction}", instruction.lower().strip())
        ids: list[int] = self.tokenizer.encode(text, add_special_tokens=False).ids
        return ids


def train_tokenizer(instructions: Iterable[str], *, vocab_size: int = 512) -> Tokenizer:
    """Train a byte-level BPE on `instructions` (lower-cased). Any other text still encodes, in more pieces."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator((text.lower() for text in sorted(set(instructions))), trainer)
    return tokenizer
