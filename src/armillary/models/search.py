"""One pass over the operations of a call, which finds parameters that are cut together."""

from collections.abc import Iterable, Sequence
from math import gcd

from armillary.models.carry import RULES, Cut, NeedsAll, TakenApart, aligned, into_pieces
from armillary.models.operations import Operation, Operations, Value
from armillary.models.region import Hints, Region, Use

WORDS_A_COLUMN = 4
"""Rows for each column from which an embedding is cut by words even where no head is: the sum over
the ranks sends its output, which does not depend on how many words there are."""
CONVOLUTIONS = ("conv1d", "conv2d", "conv3d")


class Search:
    """One pass over the operations; parameters that the hints refuse begin no region."""

    def __init__(self, operations: Operations, hints: Hints, blocks: Sequence[str]) -> None:
        self.operations, self.hints, self.refused = operations, hints, hints.refused
        self.blocks = {f"{path}." for path in blocks}
        self.cuts: dict[int, Cut] = {}
        self.owners: list[Region] = []
        self.learned: set[int] = set()
        values = [v for step in operations.steps for v in (*step.inputs, *step.outputs)]
        self.num_bytes = {v.number: v.num_bytes for v in values}
        self.shapes = {v.parameter: v.shape for v in values if v.parameter}
        self.words: dict[str, tuple[Use, tuple[int, ...]]] = {}
        self.whole: dict[str, str] = {}
        self.positions: dict[str, Region] = {}

    @property
    def regions(self) -> list[Region]:
        """The regions found, each once."""
        return list({id(region): region for region in self.owners}.values())

    def run(self) -> None:
        """Carry the cuts through all operations, and judge what became of the regions."""
        for step in self.operations.steps:
            self._take(step)
            if any(v.parameter or v.number in self.learned for v in step.inputs):
                self.learned |= {v.number for v in step.outputs}
        for number in self.operations.results:
            if (cut := self.cut_of(number)) is not None:
                self._reach_end(cut, number)
        for region in self.regions:
            if not region.has_end and not region.is_head:
                region.fault = region.fault or "no linear map takes what it puts out"
        self._settle_words()
        self._settle_roles()

    def cut_of(self, number: int) -> Cut | None:
        """The cut of a value, None where it is whole or its region failed."""
        cut = self.cuts.get(number)
        return None if cut is None or self.owners[cut.region].fault else cut

    def _take(self, step: Operation) -> None:
        inputs = step.inputs
        met = [cut for v in inputs if (cut := self.cut_of(v.number)) is not None]
        self.block = next((b for b in self.blocks if f"{step.path}.".startswith(b)), "")
        try:
            if any(self.owners[cut.region].block != self.block for cut in met):
                raise NeedsAll("handed on from one block to another")
            if step.name in ("linear", *CONVOLUTIONS):
                self._map(step)
            elif step.name == "embedding":
                self._embed(step)
            elif step.name == "multi_head_attention_forward":
                self._attend_packed(step)
            elif not met:
                self.whole |= {v.parameter: "it is used whole" for v in inputs if v.parameter}
                self._note_positions(step)
            elif step.name == "scaled_dot_product_attention":
                self._attend(step)
            elif step.name == "group_norm":
                self._norm_groups(step)
            elif step.is_pointwise or step.name in ("cat", "stack"):
                self._combine(step)
            elif step.name in ("matmul", "bmm", "__matmul__"):
                self._multiply(step)
            else:
                self._carry(step)
        except NeedsAll as needs:
            for cut in met:
                region = self.owners[cut.region]
                region.is_taken_apart |= isinstance(needs, TakenApart)
                region.fault = f"what it puts out is {needs} in {step.path or 'the model'}"

    def join(self, cuts: Iterable[Cut]) -> Region:
        """The regions of `cuts` as one."""
        first, *others = dict.fromkeys(cut.region for cut in cuts)
        kept = self.owners[first]
        for other in others:
            lost = self.owners[other]
            if lost is kept:
                continue
            kept.take(lost)
            self.owners = [kept if region is lost else region for region in self.owners]
        return kept

    def open(self, units: int, unit: str) -> tuple[int, Region]:
        """A new region and its number."""
        self.owners.append(Region(units=[(units, unit)], block=self.block))
        return len(self.owners) - 1, self.owners[-1]

    # -- what begins and ends regions

    def _map(self, step: Operation) -> None:
        """A linear map or convolution: begins a region, ends one, or runs whole within it."""
        x, weight = step.inputs[0], step.inputs[1]
        bias = step.argument(2, "bias")
        features = len(x.shape) - 1 if step.name == "linear" else 1
        cut = self.cut_of(x.number)
        if not weight.parameter or (bias is not None and not bias.parameter):
            if cut is not None:
                raise NeedsAll(f"given to a {step.name} whose weight is computed")
            return
        if step.name != "linear" and step.argument(6, "groups", 1) != 1:
            if cut is not None:
                raise NeedsAll("given to a convolution of groups")
            self.whole[weight.parameter] = "a convolution of groups"
            return
        if cut is None:
            self._begin(step, x, weight, bias, features)
        elif cut.dim == features and cut.outer == 1:
            region = self.owners[cut.region]
            region.has_end = True
            use = region.uses.setdefault(weight.parameter, Use("row", 1))
            use.sent.append(step.outputs[0].num_bytes)
            use.num_tokens = step.num_tokens(x)
            if bias is not None:
                region.uses.setdefault(bias.parameter, Use("ending", 0))
        elif step.name == "linear" and cut.dim != features:
            self._add_summed(cut, [weight, bias])
            self.cuts[step.outputs[0].number] = cut
        else:
            raise NeedsAll(f"mixed by a {step.name}")

    def _begin(
        self, step: Operation, x: Value, weight: Value, bias: Value | None, features: int
    ) -> None:
        if weight.shape[0] == 1:
            self.refused[weight.parameter] = "it puts out a single feature"
        if weight.parameter in self.refused:
            self.whole[weight.parameter] = self.refused[weight.parameter]
            return
        unit = "features" if step.name == "linear" else "channels"
        number, region = self._region_of(weight.parameter, weight.shape[0], unit)
        use = region.uses.setdefault(weight.parameter, Use("column", 0))
        if bias is not None:
            region.uses.setdefault(bias.parameter, Use("column", 0))
        self._enter(region, use, x)
        use.num_tokens = step.num_tokens(x)
        out = step.outputs[0]
        self.cuts[out.number] = Cut(features, number, weight.shape[0])

    def _region_of(self, parameter: str, units: int, unit: str) -> tuple[int, Region]:
        """The region that this parameter begins, the same for all its calls."""
        for number, region in enumerate(self.owners):
            if parameter in region.uses and region.uses[parameter].kind in ("column", "head"):
                return number, region
        return self.open(units, unit)

    def _enter(self, region: Region, use: Use, x: Value) -> None:
        """The gradient of what a region takes is summed once, where it has one."""
        if x.number in self.learned and x.number not in self._all_entered():
            use.sent.append(x.num_bytes)
            region.entered.add(x.number)

    def _all_entered(self) -> set[int]:
        return {number for region in self.regions for number in region.entered}

    def _embed(self, step: Operation) -> None:
        weight = step.argument(1, "weight")
        plain = not any(step.argument(i, "", None) for i in (3, 5, 6)) and not step.kwargs.get(
            "max_norm"
        )
        if weight.parameter and plain:
            use, _ = self.words.setdefault(weight.parameter, (Use("vocabulary", 0), weight.shape))
            use.num_tokens = step.outputs[0].shape[1] if len(step.outputs[0].shape) == 3 else 0
            use.sent.append(step.outputs[0].num_bytes)
        elif weight.parameter:
            self.whole[weight.parameter] = "an embedding that changes or weighs its rows"

    def _attend_packed(self, step: Operation) -> None:
        """torch's own multi-head attention of a tensor to itself, by heads."""
        query, key, value = step.args[:3]
        met = [cut for v in step.inputs if (cut := self.cut_of(v.number)) is not None]
        if met:
            raise NeedsAll("given to torch's multi-head attention")
        names = ("in_proj_weight", "in_proj_bias", "out_proj_weight", "out_proj_bias")
        weights = [step.argument(i, name) for i, name in zip((5, 6, 11, 12), names, strict=True)]
        packed, packed_bias, out, out_bias = weights
        if packed is None or out is None or not (packed.parameter and out.parameter):
            return
        is_plain = query == key == value and len(query.shape) == 3
        is_plain = is_plain and step.argument(7, "bias_k") is None and not step.argument(9, "")
        if not is_plain or packed.parameter in self.refused:
            self.whole[packed.parameter] = "queries and keys of its attention are other tensors"
            return
        _, region = self._region_of(packed.parameter, step.argument(4, "num_heads"), "num_heads")
        use = region.uses.setdefault(packed.parameter, Use("column", 0, num_pieces=3))
        if packed_bias is not None:
            region.uses.setdefault(packed_bias.parameter, Use("column", 0))
        self._enter(region, use, query)
        use.exchanged.append(3 * query.num_bytes)
        end = region.uses.setdefault(out.parameter, Use("row", 1))
        end.sent.append(query.num_bytes)
        use.num_tokens = end.num_tokens = query.shape[0]
        if out_bias is not None:
            region.uses.setdefault(out_bias.parameter, Use("ending", 0))
        region.has_end = True

    def _note_positions(self, step: Operation) -> None:
        """Parameters that have an entry of their own for every token, such as learned positions."""
        for value in step.inputs:
            if (
                value.parameter
                and len(value.shape) > 1
                and (step.is_pointwise or step.name == "slice")
            ):
                region = Region(block=self.block, units=[(1, "tokens")], has_end=True)
                region.uses[value.parameter] = Use("tokens", 0)
                self.positions[value.parameter] = region

    # -- what carries cuts

    def _attend(self, step: Operation) -> None:
        """Attention by heads: all three are cut by the dim of heads."""
        tensors = step.inputs[:3]
        cuts = [self.cut_of(value.number) for value in tensors]
        heads = len(tensors[0].shape) - 3
        met = [cut for cut in cuts if cut is not None]
        if len(met) < 3 or any(cut.dim != heads or cut.outer > 1 for cut in met) or heads < 1:
            raise NeedsAll("attended to otherwise than by heads")
        region = self.join(met)
        region.units += [
            (tensors[1].shape[heads], "num_key_heads"),
            (tensors[0].shape[heads], "num_heads"),
        ]
        if any(v.parameter or v.number in self.learned for v in step.inputs[3:]):
            raise NeedsAll("attended to with a learned mask")
        self.cuts[step.outputs[0].number] = met[0]

    def _norm_groups(self, step: Operation) -> None:
        x, *weights = step.inputs
        cut = self.cut_of(x.number)
        if cut is None or cut.dim != 1 or cut.outer > 1:
            raise NeedsAll("normed by groups across its units")
        region = self.owners[cut.region]
        region.units.append((step.argument(1, "num_groups"), "num_groups"))
        for weight in weights:
            self._add_inside(cut, weight, 0)
        self.cuts[step.outputs[0].number] = cut

    def _add_inside(self, cut: Cut, value: Value, dim: int) -> None:
        """A parameter whose entries belong to the units of a region."""
        if not value.parameter:
            raise NeedsAll("combined with what the model computes elsewhere")
        self.owners[cut.region].uses.setdefault(value.parameter, Use("inside", dim))

    def _add_summed(self, cut: Cut, values: Iterable[Value | None]) -> None:
        """Parameters that all units use: each rank has a part of their gradient."""
        for value in values:
            if value is None:
                continue
            if value.parameter:
                uses = self.owners[cut.region].uses
                uses.setdefault(value.parameter, Use("summed", 0))
            elif value.number in self.learned:
                raise NeedsAll("combined with what the model computes elsewhere")

    def _combine(self, step: Operation) -> None:
        """Element by element: cut tensors agree, whole ones are cut alike where that is free."""
        result = step.outputs[0]
        cuts = {v.number: c for v in step.inputs if (c := self.cut_of(v.number)) is not None}
        if step.name == "stack":
            raise NeedsAll("stacked")
        if step.name == "cat":
            dim = step.argument(1, "dim", 0) % len(result.shape)
            if len(cuts) < len({v.number for v in step.inputs}) or any(
                c.dim == dim for c in cuts.values()
            ):
                raise NeedsAll("joined with other tensors")
        places = {
            (aligned(cuts[v.number], v, result), cuts[v.number].outer)
            for v in step.inputs
            if v.number in cuts
        }
        if len(places) > 1:
            raise NeedsAll("combined with what is cut otherwise")
        ((dim, outer),) = places
        self.join(cuts.values())
        first = next(iter(cuts.values()))
        for value in step.inputs:
            if value.number not in cuts:
                self._broadcast(first, value, dim - len(result.shape) + len(value.shape))
        for out in step.outputs:
            units = min(c.num_units for c in cuts.values())
            self.cuts[out.number] = Cut(dim, first.region, units, outer)

    def _broadcast(self, cut: Cut, value: Value, dim: int) -> None:
        if dim < 0 or value.shape[dim] == 1:
            self._add_summed(cut, [value])
        elif value.parameter and cut.outer == 1:
            self._add_inside(cut, value, dim)
        elif value.parameter or value.number in self.learned:
            raise NeedsAll("combined with what the model computes elsewhere")

    def _multiply(self, step: Operation) -> None:
        """Products of matrices, many at once: cut alike by a dim before the matrices."""
        cuts = [self.cut_of(value.number) for value in step.inputs]
        result = step.outputs[0]
        met = [cut for cut in cuts if cut is not None]
        dims = {
            (aligned(c, v, result), c.outer) for c, v in zip(cuts, step.inputs, strict=True) if c
        }
        ((dim, outer), *rest) = dims
        if len(met) < 2 or rest or dim >= len(result.shape) - 2 or outer > 1:
            raise NeedsAll("multiplied by a matrix")
        self.join(met)
        self.cuts[result.number] = Cut(dim, met[0].region, min(c.num_units for c in met))

    def _carry(self, step: Operation) -> None:
        """An operation of one cut tensor, by its rule."""
        first, *others = step.inputs
        cut = self.cut_of(first.number)
        if cut is None or step.name not in RULES:
            raise NeedsAll(f"needed whole by {step.name.strip('_')}")
        if others and step.name not in ("layer_norm", "rms_norm"):
            raise NeedsAll(f"needed whole by {step.name.strip('_')}")
        carried = self._in_pieces(cut, step) or RULES[step.name](cut, step)
        self._add_summed(cut, others)
        if carried.num_units != cut.num_units:
            region = self.owners[cut.region]
            region.units.append((carried.num_units, region.units[0][1]))
        for out in step.outputs:
            self.cuts[out.number] = carried

    def _in_pieces(self, cut: Cut, step: Operation) -> Cut | None:
        """The cut of what takes a fused projection apart: its pieces are exchanged."""
        region, first = self.owners[cut.region], step.inputs[0]
        column = next(u for u in region.uses.values() if u.kind == "column")
        if step.name in ("split", "split_with_sizes") and cut.outer == 1:
            if step.argument(2, "dim", 0) % len(first.shape) != cut.dim:
                return None
            column.exchanged.append(first.num_bytes)
            return Cut(cut.dim, cut.region, gcd(*(out.shape[cut.dim] for out in step.outputs)))
        if step.name in ("view", "_unsafe_view") and self.hints.in_pieces & region.uses.keys():
            found = into_pieces(cut, first.shape, step.outputs[0].shape)
            if found is not None:
                column.exchanged.append(first.num_bytes)
                column.num_pieces = found[1]
                return found[0]
        return None

    # -- what became of it

    def _reach_end(self, cut: Cut, number: int) -> None:
        """A cut that the model puts out: the head's, gathered there."""
        region = self.owners[cut.region]
        columns = [use for use in region.uses.values() if use.kind == "column"]
        weight = next(iter(region.uses))
        if region.has_end or any(use.exchanged for use in columns) or len(columns) > 2:
            region.fault = "what it puts out is put out by the model too"
            return
        num_out, num_in = self.shapes[weight][:2]
        if num_out > num_in or weight in self.words:
            region.is_head, region.units = True, [(num_out, "words")]
            for use in columns:
                use.kind = "head"
            columns[0].exchanged.append(self.num_bytes[number])

    def _settle_words(self) -> None:
        """Embeddings of many words, as the head's or far more than their width, are cut by them."""
        heads = {path: r for r in self.regions if r.is_head for path in r.uses}
        num_words = {region.num_units for region in heads.values()}
        for path, (use, (rows, columns)) in self.words.items():
            if path in heads or rows in num_words or rows >= WORDS_A_COLUMN * columns:
                if path in self.refused or path in self.whole:
                    continue
                region = Region(uses={path: use}, units=[(rows, "words")], has_end=True)
                region.shares = path in heads
                self.owners.append(region)
            else:
                self.whole[path] = "too few words to be worth a sum over the ranks"

    def _settle_roles(self) -> None:
        """A parameter that is used in two ways is cut in none."""
        roles: dict[str, list[tuple[Region, str]]] = {}
        for region in self.regions:
            for path, use in region.uses.items():
                kind = "words" if use.kind in ("head", "vocabulary") else use.kind
                roles.setdefault(path, []).append((region, kind))
        for path, found in roles.items():
            kinds = {kind for _, kind in found} - {"ending"}
            is_shared = len(found) > 1 and kinds != {"words"}
            if kinds and kinds != {"summed"} and (is_shared or path in self.whole):
                for region, _ in found:
                    region.fault = region.fault or f"{path} is used in other ways too"
