"""What the axes that split the batch send besides gradients: what is counted over all samples."""

from dataclasses import replace

from armillary.axes.batch.norm import norm_traffic
from armillary.axes.batch.routed import count_traffic
from armillary.axes.batch.times import num_calls, sent_again
from armillary.axes.door import Transfer
from armillary.spec import ModelGraph
from armillary.spec.layouts import Layouts


def counted(axis: str, graph: ModelGraph, layouts: Layouts) -> list[Transfer]:
    """The messages of batch norms and of experts with a capacity, told by the first of the axes
    that split the batch.
    """
    calls = num_calls(layouts)
    told = norm_traffic(axis, graph, layouts) + count_traffic(axis, graph, layouts)
    found = []
    for transfer in told:
        sent = replace(transfer, per_step=transfer.per_step * calls)
        is_forward = sent.collective == "all_gather_into_tensor"
        found += sent_again(sent, graph, layouts) if is_forward else [sent]
    return found
