"""Muon on ZeRO's partitions: momentum made orthogonal, each matrix whole on one rank.

A rank holds fragments of matrices, cut anywhere. After accumulation and clipping, once per step, the fragments of each
matrix go to its owner in one all-to-all, in bf16; the owner makes the matrix orthogonal and sends the fragments back.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed

from cmbert.cluster.distributed import gather_from_ranks
from cmbert.model.cost import NEWTON_SCHULZ_ELEMENTS, NEWTON_SCHULZ_STEPS, newton_schulz_flops, share_out
from cmbert.zero.optim import AdamW, Fragment, Layout, whole_shape

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of Newton-Schulz: the steepest at zero, for few steps (Keller Jordan's Muon)
LEAST_NORM = 1e-7  # by which a matrix is divided (likewise)
UPDATE_RMS = 0.2  # of an update's elements: about that of AdamW, so that its learning rates do (arXiv 2502.16982)


class Matrix(NamedTuple):
    """A matrix that is made orthogonal: rows of a parameter."""

    parameter: int
    offset: int
    """Its first element's place in the flattened parameter."""
    rows: int
    columns: int

    @property
    def size(self) -> int:
        """Elements."""
        return self.rows * self.columns

    @property
    def flops(self) -> int:
        """Operations of Newton-Schulz."""
        return newton_schulz_flops(self.rows, self.columns)

    @property
    def scale(self) -> float:
        """What an orthogonal update is multiplied by for elements of UPDATE_RMS."""
        return UPDATE_RMS * max(self.rows, self.columns) ** 0.5


class Piece(NamedTuple):
    """What one rank holds of one matrix, in one of its flat tensors."""

    matrix: int
    flat: int
    start: int
    """Its first element's place in the flat tensor."""
    length: int
    offset: int
    """Its first element's place in the matrix."""


class Muon(AdamW):
    """Muon for the groups marked "orthogonal", AdamW for the others.

    The update is that of torch.optim.Muon with adjust_lr_fn "match_rms_adamw": momentum in Nesterov's form, five
    Newton-Schulz steps in bf16, scaled by 0.2 sqrt(max(rows, columns)) (arXiv 2502.16982), decoupled weight decay. The
    momentum is kept as `exp_avg`, the name that DeepSpeed's converter knows; there is no second moment.

    stacked: the parameters of those groups, and how many matrices lie in each.
    """

    def __init__(
        self, groups: list[dict], *, stacked: Mapping[torch.Tensor, int], momentum: float, **options: Any
    ) -> None:
        super().__init__([{"orthogonal": False, **group} for group in groups], clip_updates=False, **options)
        self.stacked, self.momentum = stacked, momentum
        self._exchanges: tuple[Layout | None, dict[tuple[torch.Tensor, ...], Exchange]] = (None, {})

    def _fresh_state(self, parameter: torch.Tensor, group: dict) -> dict[str, torch.Tensor]:
        state = super()._fresh_state(parameter, group)
        return _without_second_moment(state) if group["orthogonal"] else state

    def place_counters(self) -> None:
        """As AdamW's; what DeepSpeed's universal form has in place of a second moment is let go."""
        super().place_counters()
        layout = self._known_layout()  # ZeRO 3 has empty groups between steps
        for flat, fragments in layout.fragments.items():
            state = self.state.get(flat)
            if state and any(layout.parameters[part.parameter] in self.stacked for part in fragments):
                self.state[flat] = _without_second_moment(state)

    def _step_group(self, parameters: list[torch.Tensor], group: dict, skipped: torch.Tensor | None) -> None:
        if not group["orthogonal"]:
            super()._step_group(parameters, group, skipped)
            return
        if not parameters:  # ZeRO 3 steps one group at a time, and the others are empty on every rank
            return
        exchange = self._exchange(parameters)
        taken = [self._taken(flat, skipped) for flat in parameters]
        directions = [self._direction(flat, is_taken) for flat, is_taken in zip(parameters, taken, strict=True)]
        owned = exchange.gather(directions)
        for matrices in exchange.batches(owned):
            matrices.copy_(orthogonalise(matrices))
        exchange.scatter(owned, directions, group["lr"])
        for flat, update, is_taken in zip(parameters, directions, taken, strict=True):
            flat.mul_(1 - group["lr"] * group["weight_decay"] * is_taken)
            flat.sub_(update.mul_(is_taken))

    def _taken(self, flat: torch.Tensor, skipped: torch.Tensor | None) -> torch.Tensor:
        """Return 1 if the step is taken, else 0, beside `flat`; count it."""
        step = self.state[flat]["step"]
        taken = torch.ones_like(step) if skipped is None else (1.0 - skipped).to(step.device)
        step += taken
        return taken

    def _direction(self, flat: torch.Tensor, taken: torch.Tensor) -> torch.Tensor:
        """Take the gradient into the momentum, unless the step is skipped; return Nesterov's mean of both."""
        gradient = flat.grad
        assert gradient is not None
        gradient.masked_fill_(taken == 0, 0.0)  # what is not finite would not be 0 when multiplied by 0
        average = self.state[flat]["exp_avg"].lerp_(gradient, (1 - self.momentum) * taken)
        return gradient.lerp_(average, self.momentum)

    def _exchange(self, flats: Sequence[torch.Tensor]) -> "Exchange":
        """Return how the matrices of these flat tensors get to their owners and back. All ranks call this alike."""
        layout, key = self._known_layout(), tuple(flats)
        if self._exchanges[0] is not layout:
            self._exchanges = (layout, {})
        if key not in self._exchanges[1]:
            mine = [list(layout.fragments[flat]) for flat in flats]
            held = gather_from_ranks(mine) if layout.across_ranks else [mine]
            numbers = sorted({fragment.parameter for flat in itertools.chain(*held) for fragment in flat})
            matrices = [
                matrix
                for number in numbers
                for matrix in matrices_of(
                    number, whole_shape(layout.parameters[number]), self.stacked[layout.parameters[number]]
                )
            ]
            rank = torch.distributed.get_rank() if layout.across_ranks else 0
            self._exchanges[1][key] = Exchange(matrices, held, rank, layout.sizes.device)
        return self._exchanges[1][key]


def _without_second_moment(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Put one zero, repeated, in its place: DeepSpeed's converter asks for a tensor, and this one takes no memory."""
    nothing = state["exp_avg"].new_zeros(1).expand(state["exp_avg"].shape)
    return {**state, "exp_avg_sq": nothing}


def matrices_of(number: int, shape: Sequence[int], count: int) -> list[Matrix]:
    """Return the `count` matrices of equal shape that lie one above the other in a parameter."""
    rows, columns = shape[0] // count, shape[1]
    return [Matrix(number, index * rows * columns, rows, columns) for index in range(count)]


def orthogonalise(matrices: torch.Tensor) -> torch.Tensor:
    """Return matrices (B, m, n) whose singular values lie about 1, 0.5 to 1.5, and whose singular vectors are the same.

    Newton-Schulz with the polynomial of Keller Jordan's Muon, in the precision of its input, for which bf16 will do.
    """
    first, second, third = COEFFICIENTS
    is_tall = matrices.shape[1] > matrices.shape[2]
    found = matrices.mT if is_tall else matrices
    found = found / found.norm(dim=(1, 2), keepdim=True).clamp_min(LEAST_NORM)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = found @ found.mT
        found = torch.baddbmm(found, torch.baddbmm(gram, gram, gram, beta=second, alpha=third), found, beta=first)
    return found.mT if is_tall else found


class Exchange:
    """Which pieces of which matrices go to whom. Every rank makes the same plan and knows its own part."""

    def __init__(
        self, matrices: list[Matrix], held: Sequence[Sequence[Sequence[Fragment]]], rank: int, device: torch.device
    ):
        """held: the fragments of each rank in each flat tensor. device: of collectives."""
        self.matrices, self.device, self.is_alone = matrices, device, len(held) == 1
        owners = share_out([matrix.flops for matrix in matrices], len(held))
        of_ranks = [sorted(_pieces(matrices, flats), key=lambda p: (owners[p.matrix], p)) for flats in held]
        self.mine = of_ranks[rank]
        self.sent = [sum(p.length for p in self.mine if owners[p.matrix] == other) for other in range(len(held))]
        came = [[p for p in pieces if owners[p.matrix] == rank] for pieces in of_ranks]
        self.received = [sum(p.length for p in pieces) for pieces in came]
        owned = [number for number, owner in enumerate(owners) if owner == rank]
        self.owned = sorted(owned, key=lambda number: (matrices[number].rows, matrices[number].columns, number))
        """Matrices of this rank; those of one shape lie side by side."""
        place, end = {}, 0
        for number in self.owned:
            place[number], end = end, end + matrices[number].size
        self.to_ranks, arrived, end = list[tuple[int, int]](), list[tuple[int, int, int]](), 0
        for piece in itertools.chain(*came):  # as the all-to-all delivers them, by rank
            target = place[piece.matrix] + piece.offset
            self.to_ranks.append((target, piece.length))
            arrived.append((target, end, piece.length))
            end += piece.length
        self.to_matrices = [(source, length) for _, source, length in sorted(arrived)]

    def _parts(self, flats: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Return this rank's pieces as views of `flats`, in the order in which they are sent."""
        return [flats[p.flat].view(-1).narrow(0, p.start, p.length) for p in self.mine]

    def gather(self, flats: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return this rank's matrices, whole, end to end, of what all ranks have of them in `flats`; bf16."""
        sent = self._empty(sum(self.sent))
        _copy(self._parts(flats), sent.split([p.length for p in self.mine]))
        return _put_together(self._all_to_all(sent, self.sent, self.received), self.to_matrices)

    def batches(self, owned: torch.Tensor) -> Iterator[torch.Tensor]:
        """Yield this rank's matrices, (B, m, n) of one shape each, as views of `owned`."""
        place = 0
        for shape, group in itertools.groupby(self.owned, key=lambda n: self.matrices[n][2:]):
            left, size = len(list(group)), shape[0] * shape[1]
            while left:
                count = min(left, max(1, NEWTON_SCHULZ_ELEMENTS // size))
                yield owned.narrow(0, place, count * size).view(count, *shape)
                place, left = place + count * size, left - count

    def scatter(self, owned: torch.Tensor, flats: Sequence[torch.Tensor], rate: float) -> None:
        """Send the matrices back, into what all ranks have of them in `flats`, times `rate` and their scales."""
        values = self._all_to_all(_put_together(owned, self.to_ranks), self.received, self.sent)
        parts = self._parts(flats)
        _copy(values.split([p.length for p in self.mine]), parts)
        if parts:
            torch._foreach_mul_(parts, [rate * self.matrices[p.matrix].scale for p in self.mine])

    def _all_to_all(self, values: torch.Tensor, sent: list[int], received: list[int]) -> torch.Tensor:
        if self.is_alone:
            return values
        found = self._empty(sum(received))
        torch.distributed.all_to_all_single(found, values, received, sent)
        return found

    def _empty(self, length: int) -> torch.Tensor:
        return torch.empty(length, dtype=torch.bfloat16, device=self.device)


def _copy(sources: Sequence[torch.Tensor], targets: Sequence[torch.Tensor]) -> None:
    if sources:  # a rank may have nothing but padding
        torch._foreach_copy_(list(targets), list(sources))


def _put_together(values: torch.Tensor, places: Sequence[tuple[int, int]]) -> torch.Tensor:
    return torch.cat([values.narrow(0, start, length) for start, length in places]) if places else values


def _pieces(matrices: Sequence[Matrix], flats: Sequence[Sequence[Fragment]]) -> Iterator[Piece]:
    """Cut a rank's fragments at the bounds of matrices."""
    of_parameter: dict[int, list[int]] = {}
    for number, matrix in enumerate(matrices):
        of_parameter.setdefault(matrix.parameter, []).append(number)
    for flat, fragments in enumerate(flats):
        for fragment in fragments:
            for number in of_parameter[fragment.parameter]:
                matrix = matrices[number]
                first = max(fragment.offset, matrix.offset)
                last = min(fragment.offset + fragment.length, matrix.offset + matrix.size)
                if first < last:
                    start = fragment.start + first - fragment.offset
                    yield Piece(number, flat, start, last - first, first - matrix.offset)
