"""The proof as a page: what composes with what, and every layout with its worst tensor."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from armillary.spec import page
from armillary.verify.matrix import WRONG, refusals

if TYPE_CHECKING:
    from armillary.verify.matrix import Rows
    from armillary.verify.proof import Proof

STATES = ("wrong", "failed")


def render(proofs: "Sequence[Proof]", composition: Sequence["Rows"]) -> str:
    """The page of `proofs`, of which there are some, with the tables of `composition`;
    self-contained. What is wrong comes first.
    """
    plain: list[dict[str, Any]] = [proof.to_dict() for proof in proofs]
    for proof in plain:
        proof["findings"].sort(key=lambda finding: finding["state"] not in STATES)
    states = [finding["state"] for proof in plain for finding in proof["findings"]]
    counts = {
        "equal": states.count("equal"),
        "wrong": sum(states.count(state) for state in STATES),
        "refused": states.count("refused"),
    }
    told = [(d, refusals(proof.findings)) for d, proof in zip(plain, proofs, strict=True)]
    return page.render(
        "armillary.verify",
        proofs=told,
        composition=composition,
        counts=counts,
        tolerance=plain[0]["tolerance"],
        versions=plain[0]["versions"],
        wrong_states=STATES,
        wrong_word=WRONG,
    )
