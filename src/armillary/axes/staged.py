"""A stage as torch's pipeline schedules drive it, with shapes that differ by micro batch."""

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

from armillary.axes.absent import Meta

if TYPE_CHECKING:
    from armillary.axes.driven import Inputs, Shapes


@cache
def staged_class() -> Any:
    """The class of stages, made once torch is needed."""
    import torch
    from torch.distributed.pipelining._utils import _TensorMeta
    from torch.distributed.pipelining.stage import _PipelineStageBase, _RecvInfo

    class Staged(_PipelineStageBase):
        """torch's stage, told beforehand what comes in and goes out by micro batch.

        Buffers are made when a message is awaited and dropped once used, so that a rank holds as
        many as its schedule has micro batches under way.
        """

        def __init__(self, driven: Any, part: Any, stages: Any, device: Any, group: Any) -> None:
            super().__init__(part.module, part.index, stages.num_stages, device, group)
            self.driven, self.part = driven, part
            self.inputs: Sequence[Inputs] = ()
            self.shapes: Sequence[Shapes] = ()
            self.stage_index_to_group_rank = dict(enumerate(stages.ranks))

        def expect(self, inputs: "Sequence[Inputs]", shapes: "Sequence[Shapes]") -> None:
            """Make ready for a step over these micro batches."""
            self.inputs, self.shapes, self.chunks = inputs, shapes, len(inputs)
            self.has_backward = True
            self.fwd_cache.clear()
            self.bwd_cache.clear()
            self.args_recv_info = {
                i: tuple(_info(meta, self.stage_index - 1) for meta in found.taken)
                for i, found in enumerate(shapes)
            }
            self.grad_recv_info = {
                i: tuple(_info(meta, self.stage_index + 1) for meta in found.handed)
                for i, found in enumerate(shapes)
            }
            num_handed = len(shapes[0].handed)
            self.act_send_info = {i: [self.stage_index + 1] for i in range(num_handed)}
            self.grad_send_info = None

        def _describe(self, chunk: int) -> None:
            """Have torch see the shapes of micro batch `chunk`."""
            taken = tuple(_meta(meta) for meta in self.shapes[chunk].taken)
            self._stage_meta.inputs = taken
            self._stage_meta.input_grads = tuple(m if m.requires_grad else None for m in taken)

        def _await(self, infos: Any) -> None:
            for info in infos:
                if info.buffer is None and info.tensor_meta is not None:
                    meta = info.tensor_meta
                    info.buffer = torch.empty(meta.shape, dtype=meta.dtype, device=self.device)

        # ------------------------------------------------- what torch's schedules call
        def _prepare_forward_infra(self, *args: Any, **kwargs: Any) -> Any:
            return None

        def _prepare_backward_infra(self, *args: Any, **kwargs: Any) -> Any:
            return None

        def _create_grad_recv_info(self, act_send_info: Any) -> Any:
            raise AssertionError("`expect` has made it")

        def _get_init_p2p_neighbors_ops(self) -> Any:
            return []  # neighbours have met when shapes were told

        def get_fwd_recv_ops(self, fwd_chunk_id: int) -> Any:
            if self.is_first:
                return []
            self._await(self.args_recv_info[fwd_chunk_id])
            return super().get_fwd_recv_ops(fwd_chunk_id)

        def get_fwd_send_ops(self, fwd_chunk_id: int) -> Any:
            return [] if self.is_last else super().get_fwd_send_ops(fwd_chunk_id)

        def get_bwd_recv_ops(self, bwd_chunk_id: int) -> Any:
            if self.is_last:
                return []
            self._await(self.grad_recv_info[bwd_chunk_id])
            return super().get_bwd_recv_ops(bwd_chunk_id)

        def get_bwd_send_ops(self, bwd_chunk_id: int) -> Any:
            if self.is_first:
                return []
            self._describe(bwd_chunk_id)
            return super().get_bwd_send_ops(bwd_chunk_id)

        def set_local_bwd_input(self, next_stage_bwd_outputs: Any, mb_index: int) -> None:
            self._await(self.grad_recv_info[mb_index])
            super().set_local_bwd_input(next_stage_bwd_outputs, mb_index)

        def forward_one_chunk(
            self,
            fwd_chunk_id: int,
            args: Any,
            kwargs: Any = None,
            save_forward_output: bool = True,
        ) -> Any:
            inputs, shapes = self.inputs[fwd_chunk_id], self.shapes[fwd_chunk_id]
            received = () if self.is_first else self._retrieve_recv_activations(fwd_chunk_id)
            with self.driven.state_of(self.part, inputs):
                output = self.driven.call(self.part, received, inputs, shapes)
            if not self.is_last:
                output = tuple(_own(tensor, received) for tensor in output)
            self.fwd_cache[fwd_chunk_id] = output, list(received)
            return output

        def backward_one_chunk(
            self,
            bwd_chunk_id: int,
            loss: Any = None,
            full_backward: bool = True,
            last_backward: bool = False,
        ) -> Any:
            self._describe(bwd_chunk_id)
            found = super().backward_one_chunk(
                bwd_chunk_id, loss, full_backward or self.driven.recomputes, last_backward
            )
            for info in self.args_recv_info[bwd_chunk_id]:
                info.buffer = None
            for info in self.grad_recv_info[bwd_chunk_id]:
                info.buffer = None
            return found

        def backward_weight_one_chunk(
            self, bwd_chunk_id: int, last_backward: bool = False
        ) -> Any:
            if not self.driven.recomputes:
                super().backward_weight_one_chunk(bwd_chunk_id, last_backward)

    def _info(meta: Meta, stage: int) -> Any:
        described = _meta(meta)
        return _RecvInfo(f"stage {stage}", stage, None, described)

    def _meta(meta: Meta) -> Any:
        # a size-1 stride order: what is sent is contiguous
        strides = torch.empty(meta.shape, device="meta").stride()
        return _TensorMeta(
            torch.Size(meta.shape), strides, meta.dtype, meta.dtype.is_floating_point
        )

    def _own(tensor: Any, received: Sequence[Any]) -> Any:
        """A tensor that torch may detach in place: no view, and not what came in."""
        is_passed_on = any(tensor is other for other in received)
        return tensor.clone() if is_passed_on or tensor._is_view() else tensor

    return Staged
