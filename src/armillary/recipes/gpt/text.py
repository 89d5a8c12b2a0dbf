"""A text of one byte a token, in samples of one length: Python's own language reference."""

import hashlib
from importlib import import_module

import numpy as np
import torch

# Shapes: L bytes of a text, T tokens of a sample
Sample = dict[str, torch.Tensor]


class Text(torch.utils.data.Dataset[Sample]):
    """A text cut into samples of `length` tokens [T], each token with the one after it [T]."""

    def __init__(self, text_L: np.ndarray, length: int) -> None:
        self.text_L, self.length = text_L, length
        self.fingerprint = hashlib.sha256(text_L.tobytes() + str(length).encode()).hexdigest()

    def __len__(self) -> int:
        return (len(self.text_L) - 1) // self.length

    def __getitem__(self, i: int) -> Sample:
        start = i * self.length
        piece = torch.from_numpy(self.text_L[start : start + self.length + 1].astype(np.int64))
        return {"tokens": piece[:-1], "targets": piece[1:], "position": torch.tensor(start)}


def language_reference() -> np.ndarray:
    """The bytes [L] of what `help()` says of the language, topic by topic, each paragraph once.

    Some passages stand under two or more topics (`while` also under `compound`): a split by
    position would otherwise test on what it trained on.
    """
    topics: dict[str, str] = import_module("pydoc_data.topics").topics
    paragraphs = (p.strip("\n") for name in sorted(topics) for p in topics[name].split("\n\n"))
    return np.frombuffer("\n\n".join(dict.fromkeys(paragraphs)).encode(), dtype=np.uint8)
