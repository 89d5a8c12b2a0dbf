"""A stage as torch's pipeline schedules drive it, with shapes that differ by micro batch."""

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from armillary.axes.stages.absent import Meta

if TYPE_CHECKING:
    from armillary.axes.stages.line import Inputs, Shapes


@cache
def staged_class() -> Any:
    """The class of stages, made once torch is needed."""
    from torch.distributed.pipelining.stage import _PipelineStageBase

    return type("Staged", (_Staged, _PipelineStageBase), {})


class _Staged:
    """torch's stage, told beforehand what comes in and goes out by micro batch.

    Buffers are made when a message is awaited and dropped once used, so that a rank holds as many
    as its schedule has micro batches under way. The methods that take chunks are those that torch's
    schedules call.
    """

    def __init__(self, driven: Any, part: Any, stages: Any, device: Any, group: Any) -> None:
        base: Any = super()
        base.__init__(part.module, part.index, stages.num_stages, device, group)
        self.device = device
        self.driven, self.part = driven, part
        self.inputs: Sequence[Inputs] = ()
        self.shapes: Sequence[Shapes] = ()
        self.stage_index_to_group_rank = dict(enumerate(stages.ranks))

    def expect(self, inputs: "Sequence[Inputs]", shapes: "Sequence[Shapes]") -> None:
        """Make ready for a step over these micro batches."""
        stage: Any = self
        stage.inputs, stage.shapes, stage.chunks = inputs, shapes, len(inputs)
        stage.has_backward = True
        stage.fwd_cache.clear()
        stage.bwd_cache.clear()
        before, after = stage.stage_index - 1, stage.stage_index + 1
        stage.args_recv_info = {
            i: tuple(_info(meta, before) for meta in found.taken) for i, found in enumerate(shapes)
        }
        stage.grad_recv_info = {
            i: tuple(_info(meta, after) for meta in found.handed) for i, found in enumerate(shapes)
        }
        stage.act_send_info = {i: [after] for i in range(len(shapes[0].handed))}
        stage.grad_send_info = None

    def _describe(self, chunk: int) -> None:
        """Have torch see the shapes of micro batch `chunk`."""
        taken = tuple(_meta(meta) for meta in self.shapes[chunk].taken)
        stage: Any = self
        stage._stage_meta.inputs = taken
        stage._stage_meta.input_grads = tuple(m if m.requires_grad else None for m in taken)

    def _await(self, infos: Any) -> None:
        import torch

        for info in infos:
            if info.buffer is None and info.tensor_meta is not None:
                meta = info.tensor_meta
                info.buffer = torch.empty(meta.shape, dtype=meta.dtype, device=self.device)

    # ------------------------------------------------------------------ before the first step
    def _prepare_forward_infra(self, *args: Any, **kwargs: Any) -> Any:
        return None

    def _prepare_backward_infra(self, *args: Any, **kwargs: Any) -> Any:
        return None

    def _create_grad_recv_info(self, act_send_info: Any) -> Any:
        raise AssertionError("`expect` has made it")

    def _get_init_p2p_neighbors_ops(self) -> Any:
        return []  # neighbours have met when shapes were told

    # ------------------------------------------------------------------------------- messages
    def get_fwd_recv_ops(self, fwd_chunk_id: int) -> Any:
        stage: Any = self
        base: Any = super()
        if stage.is_first:
            return []
        self._await(stage.args_recv_info[fwd_chunk_id])
        return base.get_fwd_recv_ops(fwd_chunk_id)

    def get_fwd_send_ops(self, fwd_chunk_id: int) -> Any:
        stage: Any = self
        base: Any = super()
        return [] if stage.is_last else base.get_fwd_send_ops(fwd_chunk_id)

    def get_bwd_recv_ops(self, bwd_chunk_id: int) -> Any:
        stage: Any = self
        base: Any = super()
        if stage.is_last:
            return []
        self._await(stage.grad_recv_info[bwd_chunk_id])
        return base.get_bwd_recv_ops(bwd_chunk_id)

    def get_bwd_send_ops(self, bwd_chunk_id: int) -> Any:
        stage: Any = self
        base: Any = super()
        if stage.is_first:
            return []
        self._describe(bwd_chunk_id)
        return base.get_bwd_send_ops(bwd_chunk_id)

    def set_local_bwd_input(self, next_stage_bwd_outputs: Any, mb_index: int) -> None:
        stage: Any = self
        base: Any = super()
        self._await(stage.grad_recv_info[mb_index])
        base.set_local_bwd_input(next_stage_bwd_outputs, mb_index)

    # ---------------------------------------------------------------------------- computation
    def forward_one_chunk(
        self, fwd_chunk_id: int, args: Any, kwargs: Any = None, save_forward_output: bool = True
    ) -> Any:
        stage: Any = self
        line = self.driven.line
        inputs, shapes = self.inputs[fwd_chunk_id], self.shapes[fwd_chunk_id]
        received = () if stage.is_first else stage._retrieve_recv_activations(fwd_chunk_id)
        with line.state_of(self.part, inputs):
            output = line.call(self.part, received, inputs, shapes)
        if not stage.is_last:
            output = tuple(_own(tensor, received) for tensor in output)
        stage.fwd_cache[fwd_chunk_id] = output, list(received)
        return output

    def backward_one_chunk(
        self,
        bwd_chunk_id: int,
        loss: Any = None,
        full_backward: bool = True,
        last_backward: bool = False,
    ) -> Any:
        stage: Any = self
        base: Any = super()
        self._describe(bwd_chunk_id)
        is_full = full_backward or self.driven.recomputes
        base.backward_one_chunk(bwd_chunk_id, loss, is_full, last_backward)
        infos = (*stage.args_recv_info[bwd_chunk_id], *stage.grad_recv_info[bwd_chunk_id])
        for info in infos:
            info.buffer = None

    def backward_weight_one_chunk(self, bwd_chunk_id: int, last_backward: bool = False) -> Any:
        base: Any = super()
        if not self.driven.recomputes:
            base.backward_weight_one_chunk(bwd_chunk_id, last_backward)


def _info(meta: Meta, stage: int) -> Any:
    from torch.distributed.pipelining.stage import _RecvInfo

    return _RecvInfo(f"stage {stage}", stage, None, _meta(meta))


def _meta(meta: Meta) -> Any:
    import torch
    from torch.distributed.pipelining._utils import _TensorMeta

    shape, has_gradient = torch.Size(meta.shape), meta.dtype.is_floating_point
    strides = torch.empty(shape, device="meta").stride()  # what is sent is contiguous
    return _TensorMeta(shape, strides, meta.dtype, has_gradient)


def _own(tensor: Any, received: Sequence[Any]) -> Any:
    """A tensor that torch may detach in place: no view, and not what came in."""
    is_passed_on = any(tensor is other for other in received)
    return tensor.clone() if is_passed_on or tensor._is_view() else tensor
