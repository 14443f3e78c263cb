"""Tokenizer files: one `tokenizer.json`, or the `vocab.json` + `merges.txt` that older checkpoints carry."""

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from rdvla.checkpoints.tensors import read_json
from rdvla.errors import CheckpointError
from rdvla.files import refuse_pointer

# How Qwen2 cuts text before merging: contractions, words, single digits, punctuation, line ends, spaces.
_QWEN2_PIECES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_TOKEN_FLAGS = ("single_word", "lstrip", "rstrip", "normalized", "special")


def read_tokenizer(directory: Path) -> Tokenizer:
    """Read the tokenizer of a released directory.

    Raises:
        CheckpointError: no tokenizer files, or damaged ones.
    """
    whole = directory / "tokenizer.json"
    if whole.is_file():
        return load_tokenizer(whole)
    vocabulary, merges = read_json(directory / "vocab.json"), directory / "merges.txt"
    if not merges.is_file():
        raise CheckpointError(f"'{merges}' is missing; copy the checkpoint again.")
    refuse_pointer(merges, CheckpointError)
    lines = merges.read_text(encoding="utf-8").splitlines()
    pairs = [line.split(" ") for line in lines if line and not line.startswith("#version")]
    damaged = next((pair for pair in pairs if len(pair) != 2), None)
    if damaged is not None:
        raise CheckpointError(f"'{merges}' is damaged at '{' '.join(damaged)}'; copy the checkpoint again.")
    try:
        tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[(left, right) for left, right in pairs]))
    except Exception as error:  # the tokenizers library raises nothing narrower
        raise CheckpointError(f"the tokenizer files in '{directory}' are damaged ({error}).") from error
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_QWEN2_PIECES), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    _add_tokens(tokenizer, directory / "tokenizer_config.json")
    return tokenizer


def load_tokenizer(path: Path) -> Tokenizer:
    """Read a `tokenizer.json`.

    Raises:
        CheckpointError: missing or damaged.
    """
    if not path.is_file():
        raise CheckpointError(f"'{path}' is missing; without it the instruction cannot be read.")
    refuse_pointer(path, CheckpointError)
    try:
        return Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except Exception as error:  # the tokenizers library raises nothing narrower
        raise CheckpointError(f"'{path}' is damaged ({error}); copy the checkpoint again.") from error


def write_tokenizer(directory: Path, tokenizer: Tokenizer) -> None:
    """Write `tokenizer.json` and the older files that the published code reads."""
    document = json.loads(tokenizer.to_str())
    added = {str(token["id"]): token for token in document["added_tokens"]}
    pairs = [pair if isinstance(pair, str) else " ".join(pair) for pair in document["model"]["merges"]]
    (directory / "tokenizer.json").write_text(tokenizer.to_str(), encoding="utf-8")
    (directory / "merges.txt").write_text("#version: 0.2\n" + "\n".join(pairs) + "\n", encoding="utf-8")
    _write(directory / "vocab.json", document["model"]["vocab"])
    _write(directory / "added_tokens.json", {token["content"]: token["id"] for token in added.values()})
    end = "<|endoftext|>"
    _write(directory / "special_tokens_map.json", {"eos_token": end, "pad_token": end})
    _write(
        directory / "tokenizer_config.json",
        {
            "tokenizer_class": "Qwen2Tokenizer",
            "add_prefix_space": False,
            "added_tokens_decoder": {
                number: {"content": token["content"]} | {flag: token[flag] for flag in _TOKEN_FLAGS}
                for number, token in added.items()
            },
            "auto_map": {"AutoProcessor": "processing_prismatic.PrismaticProcessor"},
            "bos_token": None,
            "eos_token": end,
            "pad_token": end,
            "unk_token": None,
            "model_max_length": 2048,
            "processor_class": "PrismaticProcessor",
        },
    )


def _add_tokens(tokenizer: Tokenizer, path: Path) -> None:
    described = read_json(path).get("added_tokens_decoder")
    if not isinstance(described, dict):
        raise CheckpointError(f"'{path}' has no added_tokens_decoder; copy the checkpoint again.")
    for number, token in sorted(described.items(), key=lambda item: int(item[0])):
        flags = {flag: bool(token.get(flag, False)) for flag in _TOKEN_FLAGS}
        tokenizer.add_tokens([AddedToken(token["content"], **flags)])
        if tokenizer.token_to_id(token["content"]) != int(number):
            raise CheckpointError(f"'{path}': '{token['content']}' cannot have id {number} after this vocab.json.")


def _write(path: Path, document: dict[str, Any]) -> None:
    path.write_text(json.dumps(document, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
