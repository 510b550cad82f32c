"""AdamW on ZeRO's partitions, and the question before its step: a step that is skipped moves nothing."""

from collections.abc import Callable, Mapping, Sequence
from inspect import unwrap
from typing import Any, NamedTuple

import torch
import torch.distributed
from torch.optim.adamw import adamw


class Fragment(NamedTuple):
    """The part of one model parameter that lies in a flat tensor of a ZeRO partition."""

    parameter: int
    """Its number in `Layout.parameters`."""
    start: int
    """Its first element's place in the flat tensor."""
    length: int
    offset: int
    """Its first element's place in the flattened parameter."""


class Layout(NamedTuple):
    """Where ZeRO keeps this rank's share of every parameter."""

    fragments: Mapping[torch.Tensor, Sequence[Fragment]]
    """Of each flat fp32 tensor that the optimizer is given, in the same order on every rank."""
    parameters: Sequence[torch.Tensor]
    """The model's; at ZeRO 3 placeholders, whose `ds_shape` is theirs."""
    sizes: torch.Tensor  # (parameters,) float64: elements of each whole parameter, on the device of collectives
    across_ranks: bool
    """Whether other ranks have the rest."""

    @classmethod
    def of(
        cls,
        fragments: Mapping[torch.Tensor, Sequence[Fragment]],
        parameters: Sequence[torch.Tensor],
        device: torch.device,
        *,
        across_ranks: bool,
    ) -> "Layout":
        """Return the layout of `parameters`; `device`: of collectives."""
        counts = [whole_shape(parameter).numel() for parameter in parameters]
        return cls(
            fragments, parameters, torch.tensor(counts, dtype=torch.float64, device=device), across_ranks=across_ranks
        )


def whole_shape(parameter: torch.Tensor) -> torch.Size:
    """Return the shape of a parameter, of which ZeRO 3 leaves a placeholder."""
    return getattr(parameter, "ds_shape", parameter.shape)


def whole_parameters(parameters: Sequence[torch.Tensor]) -> Layout:
    """Return the layout of parameters that nobody has divided."""
    fragments = {p: [Fragment(number, 0, p.numel(), 0)] for number, p in enumerate(parameters)}
    return Layout.of(fragments, parameters, parameters[0].device, across_ranks=False)


class StepDecision(NamedTuple):
    """What the optimizer is told before a step, on the device, so that the host need not wait for it."""

    norm: torch.Tensor  # () fp32: of the whole gradient, over all ranks
    skipped: torch.Tensor  # () fp32: 1 = nothing may move, 0 = the step is taken


LEAST_DIVISOR = torch.finfo(torch.float32).tiny  # 1 / it is finite; that of an eps^2 below is not, and times 0 is NaN
NORM_EPS = 1e-6  # added to the norm before clipping, as DeepSpeed and Megatron do


class AdamW(torch.optim.Optimizer):
    """AdamW (arXiv 1711.05101); with `clip_updates` StableAdamW (arXiv 2304.13013, Algorithm 2).

    StableAdamW divides the learning rate of each parameter by max(1, RMS), RMS = sqrt(mean(g^2 / max(v, eps^2))), where
    v is the bias-corrected second moment that already holds g. Under ZeRO a rank has fragments of parameters in flat
    tensors: `layout` says which, and the sums are added up over the ranks, so that RMS is that of the whole parameter.
    The state is torch AdamW's (step, exp_avg, exp_avg_sq), and so is the kernel that moves the weights.

    max_norm: where `should_step` tells the gradient's norm, the gradient is scaled down to this; 0 = not at all.
    """

    # torch has these step aside for torch.compile, and the first call imports it for that, seconds long, also where
    # nothing is compiled. Nobody compiles an optimizer here.
    add_param_group = unwrap(torch.optim.Optimizer.add_param_group)
    state_dict = unwrap(torch.optim.Optimizer.state_dict)
    zero_grad = unwrap(torch.optim.Optimizer.zero_grad)

    def __init__(
        self,
        groups: list[dict],
        *,
        betas: tuple[float, float],
        eps: float,
        clip_updates: bool,
        max_norm: float = 0.0,
        lr: float = 0.0,
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})
        self.clip_updates, self.max_norm = clip_updates, max_norm
        self.layout: Layout | None = None
        self.should_step: Callable[[], StepDecision] | None = None
        """Asked at the beginning of every call of `step`, of which ZeRO makes several in a step."""

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move the parameters that have gradients, unless `should_step` says no. All ranks call this alike.

        The gradients are overwritten by clipped ones. Skipped or not, the same kernels run: the host learns it later.
        """
        decision = self.should_step() if self.should_step is not None else None
        for group in self.param_groups:
            parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
            for parameter in parameters:
                if not self.state[parameter]:
                    self.state[parameter] |= self._fresh_state(parameter, group)
                self._clip(parameter, decision)
            self._step_group(parameters, group, None if decision is None else decision.skipped)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, with every counter where the kernel reads it."""
        unwrap(torch.optim.Optimizer.load_state_dict)(self, state_dict)
        self.place_counters()

    def place_counters(self) -> None:
        """Put every `step` beside its parameter, fp32 and one of its own.

        torch leaves it where the file had it unless a group says that it is fused, and DeepSpeed's universal form goes
        past torch. On a GPU the fused kernel reads it from the device's memory.
        """
        for parameter, state in self.state.items():
            if "step" in state:
                state["step"] = torch.as_tensor(state["step"]).to(parameter.device, torch.float32, copy=True)

    def _clip(self, parameter: torch.Tensor, decision: StepDecision | None) -> None:
        """Scale the gradient down, as DeepSpeed would, which asks the host whether the norm is finite."""
        if decision is None or not self.max_norm:
            return
        assert parameter.grad is not None
        factor = 1.0 / ((decision.norm + NORM_EPS) / self.max_norm).clamp_min(1.0)
        parameter.grad.mul_(factor.to(parameter.device))

    def _fresh_state(self, parameter: torch.Tensor, group: dict) -> dict[str, torch.Tensor]:
        """Return the state before the first step, in torch AdamW's names and types: the converter knows them."""
        return {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }

    def _step_group(self, parameters: list[torch.Tensor], group: dict, skipped: torch.Tensor | None) -> None:
        """Move the parameters of one group, all of which have clipped gradients and a state."""
        if self.clip_updates:
            self._step_clipped(parameters, group, skipped)
            return
        for parameter in parameters:
            whole = Fragment(0, 0, parameter.numel(), 0)
            self._move(parameter, whole, self.state[parameter]["step"], group, skipped)

    def _known_layout(self) -> Layout:
        if self.layout is None:
            self.layout = whole_parameters([p for every in self.param_groups for p in every["params"]])
        return self.layout

    def _step_clipped(self, parameters: list[torch.Tensor], group: dict, skipped: torch.Tensor | None) -> None:
        layout = self._known_layout()
        placed = [(flat, fragment) for flat in parameters for fragment in layout.fragments[flat]]
        sums = torch.zeros_like(layout.sizes)
        for flat, fragment in placed:
            sums[fragment.parameter] += self._relative_energy(flat, fragment, group).to(sums.device)
        if layout.across_ranks:
            torch.distributed.all_reduce(sums)
        rates = group["lr"] / (sums / layout.sizes).sqrt().clamp_min(1.0)
        # The CPU's kernel takes a number; a GPU's reads an fp32 from the device's memory, and nobody waits for it.
        on_cpu = all(flat.device.type == "cpu" for flat in parameters)
        rates = rates.tolist() if on_cpu else rates.float()
        for flat, fragment in placed:
            step = self.state[flat]["step"].clone()
            self._move(flat, fragment, step, {**group, "lr": rates[fragment.parameter]}, skipped)
        for flat in parameters:
            step = self.state[flat]["step"]
            step += 1.0 if skipped is None else (1.0 - skipped).to(step.device)

    def _relative_energy(self, flat: torch.Tensor, fragment: Fragment, group: dict) -> torch.Tensor:
        """Return the sum of g^2 / max(v, eps^2) over `fragment`, float64."""
        assert flat.grad is not None
        state, (_, beta2) = self.state[flat], group["betas"]
        correction = 1 - beta2 ** (state["step"] + 1)  # of the bias: v = (what is kept) / correction
        gradient = _part(flat.grad, fragment)
        kept = _part(state["exp_avg_sq"], fragment) * beta2
        least = (correction * group["eps"] ** 2).clamp_min(LEAST_DIVISOR)
        kept.addcmul_(gradient, gradient, value=1 - beta2).clamp_min_(least)
        return kept.reciprocal_().mul_(gradient).mul_(gradient).sum(dtype=torch.float64) * correction

    def _move(
        self, flat: torch.Tensor, fragment: Fragment, step: torch.Tensor, group: dict, skipped: torch.Tensor | None
    ) -> None:
        """Let torch's fused AdamW move `fragment` of `flat`; it adds one to `step`, unless `skipped` is 1."""
        assert flat.grad is not None
        state, (beta1, beta2) = self.state[flat], group["betas"]
        adamw(
            [_part(flat, fragment)],
            [_part(flat.grad, fragment)],
            [_part(state["exp_avg"], fragment)],
            [_part(state["exp_avg_sq"], fragment)],
            [],
            [step],
            fused=True,
            # The kernel's word for it: where it is 1, nothing is written. torch would copy it without waiting.
            found_inf=None if skipped is None else skipped.to(flat.device),
            amsgrad=False,
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )


def _part(tensor: torch.Tensor, fragment: Fragment) -> torch.Tensor:
    return tensor.view(-1).narrow(0, fragment.start, fragment.length)
