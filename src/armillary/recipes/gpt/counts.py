"""The next byte by counting: how often each byte came after the same few bytes before it.

Source: Witten & Bell 1991, IEEE Transactions on Information Theory 37, 1085, method C: it has no
constant to choose.
"""

import numpy as np

from armillary.recipes.gpt.text import Text

# Shapes: L bytes of a text, V values of a byte, B samples
NUM_BYTES = 256


def score_counts(order: int, train: Text, test: Text) -> dict[str, np.ndarray]:
    """What `predict` gives for the samples of `test` [B], from counts of `train` alone.

    Counting sees the whole text before a byte, the model only its sample: the rival's advantage.
    """
    num_bytes = len(test) * test.length
    target_L = test.text_L[1 : num_bytes + 1]
    share_LV = ngram(order, train.text_L, test.text_L)[1 : num_bytes + 1]
    bits_L = -np.log2(share_LV[np.arange(num_bytes), target_L])
    hits_L = share_LV.argmax(1) == target_L
    return {
        "bits": bits_L.reshape(len(test), -1).mean(1),
        "accuracy": hits_L.reshape(len(test), -1).mean(1),
        "position": np.arange(len(test)) * test.length,
    }


def ngram(order: int, past_L: np.ndarray, text_L: np.ndarray) -> np.ndarray:
    """Share of each byte [L, V] at every place of `text`, from the counts of `past`.

    Each order mixes what followed its context with the order below, which weighs as much as the
    context has different followers. Below order 0 all bytes have the same share.
    """
    share_LV = np.full((len(text_L), NUM_BYTES), 1 / NUM_BYTES)
    for size in range(order + 1):
        context, row = np.unique(contexts(past_L, size), return_inverse=True)
        cells = len(context) * NUM_BYTES
        counts = np.bincount(row * NUM_BYTES + past_L, minlength=cells).reshape(-1, NUM_BYTES)
        now_L = contexts(text_L, size)
        place_L = np.searchsorted(context, now_L).clip(max=len(context) - 1)
        counts_LV = counts[place_L] * (context[place_L] == now_L)[:, None]
        kinds_L1 = np.maximum((counts_LV > 0).sum(1, keepdims=True), 1)
        share_LV = (counts_LV + kinds_L1 * share_LV) / (counts_LV.sum(1, keepdims=True) + kinds_L1)
    return share_LV


def contexts(text_L: np.ndarray, size: int) -> np.ndarray:
    """The `size` <= 7 bytes before each byte as one number [L]; zeros stand before the text."""
    padded = np.concatenate([np.zeros(size, np.int64), text_L.astype(np.int64)])
    found = np.zeros(len(text_L), np.int64)
    for back in range(1, size + 1):
        found += padded[size - back : len(padded) - back] << 8 * (back - 1)
    return found
