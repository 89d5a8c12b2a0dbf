"""What is ahead of a chain of blocks and behind it: embeddings, norm, head and loss, as numbers."""

from armillary.models.layers.part import INDEX_BYTES, Part


def learned_positions(part: Part, path: str, features: int) -> None:
    """A learned vector for every token's place, added."""
    weight = part.hold(path, part.tokens, features)
    size = part.size(features)
    part.stream(path, "add", read=size, written=size, back=(size, 0), parameter_bytes=weight)
    part.split(path, "tokens", 0, 1, "tokens")


def words(part: Part, path: str, num_words: int, features: int, *, tied: bool = False) -> None:
    """The table of words, and that it may be cut by words; `tied` where the head is the same."""
    part.embedding(path, num_words, features)
    part.split(
        f"{path}.weight",
        "vocabulary",
        0,
        num_words,
        "words",
        activation_bytes=part.size(features),
        num_calls=1,
        num_tokens=part.tokens,
        **{"parameter_bytes": 0} if tied else {},
    )


def head(part: Part, path: str, features: int, num_words: int, *, tied: str = "") -> None:
    """Logits of every word; `tied` is the path of the table that is also the head's weight."""
    part.linear(path, features, num_words, holds=not tied, cut="columns")
    part.split(
        tied or f"{path}.weight",
        "head",
        0,
        num_words,
        "words",
        activation_bytes=part.size(features),
        exchanged_bytes=part.size(num_words),
        num_calls=1,
        num_tokens=part.tokens,
        parameter_bytes=num_words * features * part.element_bytes,
    )


def cross_entropy(part: Part, num_words: int) -> None:
    """The loss of every token: its logits' softmax is kept, and its gradient is as large."""
    size = part.size(num_words)
    part.stream(
        "", "_log_softmax", read=size, written=size, back=(2 * size, size), saved=size, cut="words"
    )
    indices = part.tokens * INDEX_BYTES
    part.stream("", "nll_loss", read=indices, written=0, back=(indices, size), cut="words")
