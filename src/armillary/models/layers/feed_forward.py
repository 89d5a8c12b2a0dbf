"""Feed-forwards as numbers: with GELU or gated, dense or of routed experts."""

from dataclasses import dataclass

from armillary.models.layers.part import INDEX_BYTES, Part
from armillary.spec import Op, Routed, Sum


def gelu(part: Part, path: str, hidden: int, inner: int, *, bias: bool, ends: bool = False) -> None:
    """Two linear maps with GELU between; the second `ends` the block if nothing is kept after."""
    size = part.size(inner)
    part.linear(f"{path}.up", hidden, inner, bias=bias, cut="columns")
    part.stream(path, "gelu", read=size, written=size, back=(2 * size, size), saved=size, cut="all")
    part.linear(f"{path}.down", inner, hidden, bias=bias, cut="inner")
    part.pair([f"{path}.up"], f"{path}.down", hidden, inner, "features", bias, ends=ends)


def gated(
    part: Part, path: str, hidden: int, inner: int, *, keeps: bool = True, ends: bool = False
) -> None:
    """Two linear maps, one gating the other, and a third (SwiGLU, arXiv 2002.05202, eq. 6)."""
    part.linear(f"{path}.gate", hidden, inner, keeps=keeps, forks=not keeps, cut="columns")
    size = part.size(inner)
    part.stream(path, "silu", read=size, written=size, back=(2 * size, size), saved=size, cut="all")
    part.linear(f"{path}.up", hidden, inner, keeps=False, forks=True, cut="columns")
    _multiply(part, path, size, cut="all")
    part.linear(f"{path}.down", inner, hidden, cut="inner")
    begins = [f"{path}.gate", f"{path}.up"]
    part.pair(begins, f"{path}.down", hidden, inner, "features", False, ends=ends)


def _multiply(part: Part, path: str, size: int, cut: str = "", *, experts: bool = False) -> None:
    part.stream(
        path,
        "mul",
        read=2 * size,
        written=size,
        back=(4 * size, 2 * size),
        saved=2 * size,
        kernels=(1, 2),
        cut=cut,
        experts=experts,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """Routed experts: how many, of which width, how many a token takes, and what all share.

    `shared` is the width of the feed-forward that every token takes besides, 0 where there is none;
    `biased`: a bias on the scores evens the load (arXiv 2412.19437, eq. 16). With a `group` tokens
    are given to experts by products with a mask over so many of them, not row by row.
    """

    experts: int
    chosen: int
    inner: int
    shared: int = 0
    gated: bool = True
    biased: bool = True
    group: int = 0


def routed(part: Part, path: str, hidden: int, choice: Choice, *, ends: bool = False) -> None:
    """A router, the chosen experts' weighted sum, and the shared feed-forward: `recipes/moe.py`."""
    _route(part, path, hidden, choice)
    experts = f"{path}.experts"
    shapes = {"gate": (hidden, choice.inner), "up": (hidden, choice.inner)}
    shapes = shapes if choice.gated else {"up": shapes["up"]}
    for name, shape in (shapes | {"down": (choice.inner, hidden)}).items():
        part.hold(f"{experts}.{name}", choice.experts, *shape)
    if choice.group:
        _by_mask(part, experts, hidden, choice, "dispatch")
    else:
        _gather(part, experts, hidden, choice)
    _product(part, experts, choice, hidden, choice.inner)
    rows, n = choice.chosen * part.size(choice.inner), choice.experts
    part.stream(
        experts,
        "silu" if choice.gated else "gelu",
        read=rows,
        written=rows,
        back=(2 * rows, rows),
        saved=rows,
        experts=True,
        kernels=(n, n),
    )
    if choice.gated:
        _product(part, experts, choice, hidden, choice.inner, forks=True)
        _multiply(part, experts, rows, experts=True)
        part.last(num_kernels=n, num_backward_kernels=2 * n)
    _product(part, experts, choice, choice.inner, hidden, keeps=True)
    if choice.group:
        _by_mask(part, experts, hidden, choice, "combine")
    else:
        _scatter(part, experts, hidden, choice)
    part.routed.append(
        Routed(
            path=experts,
            num_experts=choice.experts,
            num_chosen=choice.chosen,
            parameter_bytes=_expert_entries(hidden, choice) * part.element_bytes,
            token_bytes=part.size(hidden),
            num_tokens=part.tokens,
            num_tensors=len(shapes) + 1,
        )
    )
    part.unsplit[f"{path}.router"] = "what it puts out is mixed by softmax along its units"
    if choice.shared and choice.gated:
        ends &= choice.biased
        gated(part, f"{path}.shared", hidden, choice.shared, keeps=False, ends=ends)
        part.add(path, hidden)
    if not choice.biased:
        _balance(part, path, choice)


def _expert_entries(hidden: int, choice: Choice) -> int:
    return choice.experts * hidden * choice.inner * (3 if choice.gated else 2)


def _route(part: Part, path: str, hidden: int, choice: Choice) -> None:
    """Scores, their softmax, the choice, and what tells how even it is."""
    part.linear(f"{path}.router", hidden, choice.experts)
    scores = part.size(choice.experts)
    part.stream(
        path, "_softmax", read=scores, written=scores, back=(2 * scores, scores), saved=scores
    )
    indices = part.tokens * choice.chosen * INDEX_BYTES
    weights = part.size(choice.chosen)
    if choice.biased:
        part.stream(path, "add", read=scores, written=scores, kernels=(1, 0))
    part.stream(path, "topk", read=scores, written=weights + indices, kernels=(1, 0))
    part.stream(
        path,
        "gather",
        kind="gather",
        read=weights + indices,
        written=weights,
        back=(weights + indices, scores),
        unscaled=indices,
    )
    if choice.biased:
        marks = indices // INDEX_BYTES * choice.experts  # a byte for each choice and expert
        part.stream(path, "count", read=indices + marks, written=marks, kernels=(2, 0))


def _balance(part: Part, path: str, choice: Choice) -> None:
    """How even the load is, of every sample, as a loss."""
    choices, scores = part.tokens * choice.chosen, part.size(choice.experts)
    indices, marks = choices * INDEX_BYTES, choices * choice.experts
    told, means = marks * part.element_bytes, 2 * choice.experts * part.element_bytes
    part.stream(
        path,
        "balance",
        read=indices + marks + told + 3 * scores,
        written=marks + told + 3 * scores,
        back=(2 * scores, 2 * scores),
        saved=means,
        kernels=(9, 6),
    )
    part.sums.append(Sum(path=path, sample_bytes=means))


def _gather(part: Part, path: str, hidden: int, choice: Choice) -> None:
    """Tokens sorted by expert, a row for each choice."""
    indices = part.tokens * choice.chosen * INDEX_BYTES
    size = part.size(hidden)
    rows = choice.chosen * size
    part.stream(path, "sort", kind="gather", read=3 * indices, written=3 * indices, kernels=(4, 0))
    part.stream(
        path,
        "index",
        kind="gather",
        read=rows + indices,
        written=rows,
        back=(rows + indices + 2 * size, 3 * size),
        saved=rows,  # which every expert keeps of its own
        unscaled=indices,
        kernels=(1, 3),
    )
    part.stream(path, "split", read=0, written=0, back=(rows, rows), kernels=(0, 1), experts=True)


def _product(
    part: Part,
    path: str,
    choice: Choice,
    inner: int,
    columns: int,
    *,
    keeps: bool = False,
    forks: bool = False,
) -> None:
    """Every expert's product of its rows; where it `forks`, another takes the same rows."""
    rows = part.tokens * choice.chosen
    taken, given = (choice.chosen * part.size(features) for features in (inner, columns))
    flops = 2 * rows * inner * columns
    part.ops.append(
        Op(
            path=path,
            kind="matmul",
            name="mm",
            rows=rows / choice.experts,
            columns=columns,
            inner=inner,
            batch=choice.experts,
            flops=flops,
            read_bytes=taken,
            written_bytes=given,
            parameter_bytes=choice.experts * inner * columns * part.element_bytes,
            saved_bytes=taken if keeps else 0,
            workspace_bytes=given + taken + taken * forks,
            backward_flops=2 * flops,
            backward_read_bytes=2 * given + taken + 2 * taken * forks,
            backward_written_bytes=taken + taken * forks,
            num_kernels=choice.experts,
            num_backward_kernels=(2 + forks) * choice.experts,
            experts=True,
            tokens=True,
        )
    )


def _by_mask(part: Part, path: str, hidden: int, choice: Choice, name: str) -> None:
    """Tokens to experts, or back, by a product with a mask of [group, slots]: with room for twice
    their share an expert, a group of S tokens has S x chosen slots.

    Source: Lepikhin et al. 2020 (GShard), arXiv 2006.16668, algorithms 1 and 2.
    """
    slots = part.tokens * choice.chosen
    mask = part.size(choice.chosen * choice.group)
    part.stream(path, f"{name}_mask", read=mask, written=mask, back=(mask, 0), saved=mask)
    flops = 2 * slots * choice.group * hidden
    part.ops.append(
        Op(
            path=path,
            kind="matmul",
            name=name,
            rows=float(slots),
            columns=hidden,
            inner=choice.group,
            flops=flops,
            read_bytes=mask + part.size(hidden),
            written_bytes=choice.chosen * part.size(hidden),
            saved_bytes=choice.chosen * part.size(hidden),
            backward_flops=2 * flops if name == "combine" else 0,  # a mask alone learns nothing
            tokens=True,
        )
    )


def _scatter(part: Part, path: str, hidden: int, choice: Choice) -> None:
    """Rows put back in their places, weighted, and added up for every token."""
    rows, size = choice.chosen * part.size(hidden), part.size(hidden)
    indices, weights = part.tokens * choice.chosen * INDEX_BYTES, part.size(choice.chosen)
    part.stream(path, "cat", read=rows, written=rows, kernels=(1, 0), experts=True)
    part.stream(
        path,
        "index_copy",
        kind="gather",
        read=2 * rows + indices,
        written=2 * rows,
        back=(rows + indices, rows),
        saved=rows,
        unscaled=indices,
        kernels=(2, 1),
    )
    part.stream(
        path,
        "mul",
        read=rows + weights,
        written=rows,
        back=(3 * rows + weights, 2 * rows + weights),
        saved=rows + weights,
        kernels=(1, 3),
    )
    part.stream(path, "sum", read=rows, written=size, kernels=(1, 0))
