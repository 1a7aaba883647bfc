"""What a probe holds inside of its block, where the model is frozen and put back at the end."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from medviz.probe import models, order
from medviz.probe.batching import Batches, BatchSize
from medviz.probe.clean import CleanPass
from medviz.probe.compiled import Compiled, CompiledPasses
from medviz.probe.guard import BetweenPasses, in_turn, untouched
from medviz.probe.patched import PatchedPasses
from medviz.probe.perturbed import PerturbedPasses
from medviz.probe.runner import Runner


@attrs.frozen(eq=False)
class Opened:
    """The passes of one probe, and the stack whose end puts the model back."""

    stack: contextlib.ExitStack
    modules: Sequence[nn.Module]
    runner: Runner
    between: BetweenPasses
    inputs: Tensor
    clean: CleanPass
    batches: Batches
    perturbed: PerturbedPasses
    remembered: dict[Any, Any] = attrs.field(factory=dict)

    @classmethod
    def of(
        cls,
        runner: Runner,
        images: Tensor,
        *,
        layers: Sequence[str | None],
        graph: bool,
        batch_size: BatchSize,
        progress: bool,
        compiled: Compiled,
    ) -> Opened:
        """Take the model's state, freeze it, and copy the images to where it is: arguments as for `Probe`."""
        if isinstance(layers, str):
            raise TypeError(f"`layers` is a list of names; got {layers!r}: write [{layers!r}].")
        found = models.modules(runner.model)
        models.check_whole(found)
        with contextlib.ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.no_grad())
            stack.enter_context(torch.autocast(runner.device.type, enabled=False))  # for the model only
            stack.enter_context(models.eager())
            stack.enter_context(in_turn(runner.model))
            state = stack.enter_context(untouched(found))
            between = BetweenPasses(state)
            runner = attrs.evolve(runner, begin=between)
            inputs = images.detach().to(runner.device, runner.dtype, copy=True)
            in_memory = order.of(runner, inputs, found, state.kinds)
            clean = CleanPass(runner, in_memory, inputs, layers, graph)
            stack.callback(clean.close)
            between.differs = clean.differs
            stack.callback(between.close)
            batches = Batches(runner, inputs, batch_size, progress)
            passes = CompiledPasses(runner, compiled) if compiled else None
            perturbed = PerturbedPasses(runner, in_memory, clean, batches, passes, PatchedPasses(runner))
            return cls(stack.pop_all(), found, runner, between, inputs, clean, batches, perturbed)
