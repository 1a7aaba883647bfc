"""One model and one batch: the output, activations, gradients and perturbed copies that explainers ask for."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from medviz.errors import suggest
from medviz.hookspecs import Wrappers
from medviz.image import check_batch
from medviz.model_arguments import ModelArguments
from medviz.probe import batching, models
from medviz.probe.clean import CleanPass
from medviz.probe.compiled import Compiled, check_compiled
from medviz.probe.guard import untouched
from medviz.probe.layers import Layer, channel_axis, module_of
from medviz.probe.opened import Opened
from medviz.probe.patched import Patched
from medviz.probe.perturbed import Rows, which_image
from medviz.probe.runner import Runner
from medviz.targets import FixedTarget, Score, fix
from medviz.tensors import wide

Rule = Callable[[], contextlib.AbstractContextManager[Any]]


class Probe:
    """Run one model on one batch, and leave it untouched; used in a `with` block.

    The first question makes one forward pass, in which everything below the shallowest of `layers` runs without a
    graph. Activations, gradients and the output come from that pass; each target costs one backward pass over the part
    above. A layer that was not named costs one more forward pass.

    Args:
        model: the network. `torch.compile` and data-parallel wrappers are taken off; the model is never moved.
        images: `(B, C, *S)`, floating point. They are copied, to the model's device and in its precision.
        layers: the layers that will be asked for; None among them: the automatic choice.
        graph: whether gradients at layers will be asked for.
        output: which part of the model's output is meant: a callable, key, field or position; see `outputs.select`.
        arguments: what the model takes beside the image.
        batch_size: the most rows of perturbed copies at once, or "auto".
        autocast: None: as it is around the call; True, False or a dtype.
        device: where the images go; None: to the model's first parameter.
        progress: show a bar for perturbed copies.
        compiled: run perturbed copies through `torch.compile`; True, or its mode, such as "reduce-overhead".
        wrappers: around the hooks of plugins that an explainer calls itself, such as an occluder.

    Raises:
        TypeError: `model` is no module, or `images` no floating tensor.
        ValueError: `images`, `batch_size`, `device`, `compiled` or `arguments` do not suit; the message says how.
    """

    def __init__(
        self,
        model: nn.Module,
        images: Tensor,
        *,
        layers: Sequence[str | None] = (),
        graph: bool = True,
        output: Callable[[Any], Tensor] | str | int | None = None,
        arguments: ModelArguments | None = None,
        batch_size: batching.BatchSize = "auto",
        autocast: bool | torch.dtype | None = None,
        device: torch.device | str | None = None,
        progress: bool = False,
        compiled: Compiled = False,
        wrappers: Wrappers = (),
    ) -> None:
        model = models.unwrap(model)
        check_batch(images)
        arguments = (arguments or ModelArguments()).of(len(images))
        where, dtype = models.placement(model, images, device)
        cast = models.autocast_dtype(where, autocast)
        self._runner = Runner(model, where, dtype, arguments, output, cast)
        size, compiled = batching.check_batch_size(batch_size), check_compiled(compiled)
        of_these = functools.partial(Opened.of, self._runner, images, layers=layers, graph=graph)
        self._open = functools.partial(of_these, batch_size=size, progress=progress, compiled=compiled)
        self._state: Opened | None = None
        self.wrappers = wrappers

    def __enter__(self) -> Probe:
        if self._state is not None:
            raise RuntimeError("this Probe is open already; make another one for a block inside of its block.")
        self._state = self._open()
        return self

    def __exit__(self, *exception: Any) -> None:
        if self._state is not None:
            stack, self._state = self._state.stack, None
            stack.__exit__(*exception)

    @property
    def _clean(self) -> CleanPass:
        return self._opened().clean

    def _opened(self) -> Opened:
        if self._state is None:
            raise RuntimeError("a Probe works inside of its block: with medviz.Probe(model, images) as probe: …")
        return self._state

    @property
    def inputs(self) -> Tensor:
        """The images `(B, C, *S)` on the model's device, in its precision."""
        return self._opened().inputs

    @property
    def output(self) -> Tensor:
        """The clean output `(B, N)` or `(B, N, *S)`, float32 or float64."""
        return wide(self._clean.output.detach())

    @property
    def autocast(self) -> torch.dtype | None:
        """What the model's operations are cast to; None: nothing is cast."""
        return self._runner.autocast

    def fix(self, target: Any) -> FixedTarget:
        """Return `target` fixed on the clean output: what None, a class or a mask means from now on."""
        if target is not None and type(target) is not int:
            return fix(target, self.output)
        fixed: FixedTarget = self.remember((fix, target), lambda: fix(target, self.output))  # shares its backward pass
        return fixed

    def scores(self, target: Any, output: Tensor | None = None, index: Tensor | None = None) -> Tensor:
        """Return the target's scores `(M,)`, float32 or float64.

        Args:
            target: what is explained.
            output: `(M, N, …)`, from `forward`; None: the clean output.
            index: the image that each row belongs to, `(M,)`; None: row i belongs to image i.

        Raises:
            ValueError: the target does not suit the output, or `index` not the rows.
        """
        output = self.output if output is None else wide(output)
        return self._score(target)(output, self._index(index, len(output)))

    def _score(self, target: Any) -> Score:
        """The target's score, on the images' device: an output may be elsewhere."""
        score, device = self.fix(target).score, self.inputs.device
        return lambda output, index: score(output, index).to(device)

    def forward(self, inputs: Rows, index: Tensor | None = None, replace: Mapping[str, Rows] | None = None) -> Tensor:
        """Return the outputs `(M, N, …)` of rows, float32 or float64, as many at once as `batch_size` allows.

        Args:
            inputs: perturbed copies `(M, C, *S)`; or anything with a length M that makes the rows of a slice.
            index: the image that each row belongs to, `(M,)`: it gets that image's model arguments. None: row i
                belongs to image i, and M is B.
            replace: for each named layer what it is to return instead, `(M, K, *s)`, or what makes the rows of a slice;
                where a layer is called several times, in its last call.

        Raises:
            ValueError: `index` or `replace` do not suit, a layer was not called, or the output is not finite.
        """
        return self._opened().perturbed.run(inputs, self._index(index, len(inputs)), replace or {})

    def scores_of(
        self, target: Any, inputs: Rows, index: Tensor | None = None, replace: Mapping[str, Rows] | None = None
    ) -> Tensor:
        """Return the target's scores `(M,)` of copies, as `forward`; large outputs are never held all at once."""
        return self._opened().perturbed.run(inputs, self._index(index, len(inputs)), replace or {}, self._score(target))

    def forward_patched(self, rows: Patched, target: Any = None, growth: float = 1.0) -> Tensor:
        """Run copies of one image that differ from it inside of a window, but only what that can change.

        Whole copies are run where incremental inference does not prove itself.

        Args:
            rows: the copies.
            target: what is explained; None: everything.
            growth: how much of a feature map, along each axis, is run again at most; below 1 the result is approximate,
                by an error that is measured on a few windows, and logged.

        Returns:
            The outputs `(M, N, …)`, as `forward`; with a target its scores `(M,)`, as `scores_of`.
        """
        reduce = None if target is None else self._score(target)
        return self._opened().perturbed.run_patched(rows, growth, reduce)

    def activation(self, layer: str | None = None) -> Tensor:
        """Return what `layer` returns for the clean images, `(B, K, *s)`, float32 or float64; None: automatic choice.

        Raises:
            ValueError: there is no such layer, it was not called, or it takes no hooks.
        """
        return wide(self._clean.tensor(self.layer_name(layer)).detach()).to(self.inputs.device).contiguous()

    def gradient(self, layer: str | None, target: Any) -> Tensor:
        """Return the gradient of each image's score with respect to the layer's output, `(B, K, *s)`.

        Raises:
            ValueError: as `activation`; or the score does not depend on the layer.
        """
        name, fixed = self.layer_name(layer), self.fix(target)
        gradient = self._clean.gradient(name, fixed)
        if gradient is None:
            raise ValueError(f"the score {fixed.label!r} does not depend on `layer` {name!r}; name another layer.")
        return gradient.to(self.inputs.device).contiguous()

    def input_gradient(
        self, target: Any, inputs: Tensor | None = None, index: Tensor | None = None, rule: Rule | None = None
    ) -> Tensor:
        """Return the gradient of each row's score with respect to its input, `(M, C, *S)`, float32 or float64.

        Args:
            target: what is explained.
            inputs: perturbed copies `(M, C, *S)`; None: the clean images.
            index: the image that each row belongs to, `(M,)`; None: row i belongs to image i.
            rule: makes a context that changes how gradients flow back, around each forward and backward pass.

        Raises:
            ValueError: the score does not depend on the image, or output or gradient are not finite.
        """
        fixed, opened = self.fix(target), self._opened()
        inputs = self.inputs if inputs is None else inputs
        index = self._index(index, len(inputs))

        def run(rows: slice) -> Tensor:
            opened.runner.begin()
            with (rule or contextlib.nullcontext)():
                return opened.runner.gradient(inputs[rows].to(self.inputs), index[rows], fixed)

        return torch.cat(list(opened.batches.each(len(inputs), run, graph=True)))

    def layer_name(self, layer: str | None) -> str:
        """Return `layer`, or the name of the automatic choice where it is None."""
        return self._clean.layer_name(layer)

    def channel_axis(self, layer: str) -> int | None:
        """Return which axis of a layer's output holds its channels, 1 or -1, as the layers tell; None: they do not."""
        module, shape = module_of(self._runner.model, layer), self._clean.tensor(layer).shape
        return channel_axis(module, shape, self._opened().modules)

    def layers(self) -> list[Layer]:
        """Return the layers that one forward pass calls, with the shapes of their outputs; costs two passes."""
        rolling, output = self._clean.roll(graph=False)
        return rolling.layers(output)

    def module_names(self) -> list[str]:
        """Return the dotted names of all sub-modules."""
        return [name for name, _ in self._runner.model.named_modules() if name]

    def parameters_of(self, name: str) -> dict[str, Tensor]:
        """Return the parameters that the module `name` itself holds, such as its weight `(N, K, …)` and bias."""
        try:
            module = self._runner.model.get_submodule(name)
        except AttributeError as err:
            raise ValueError(f"{name!r} is not in the model{suggest(name, self.module_names())}") from err
        return {n: p.detach().to(self.inputs.device) for n, p in module.named_parameters(recurse=False)}

    @contextlib.contextmanager
    def model(self) -> Iterator[nn.Module]:
        """Hand out the model itself, for methods of other libraries; all but the parameters' values is put back."""
        with self._opened().between.lent(), untouched(models.modules(self._runner.model)), torch.enable_grad():
            yield self._runner.model

    def run(self, rows: Tensor, index: Tensor | None = None) -> Tensor:
        """Run the model on `rows` in one pass, as they are, and keep the graph where one is recorded.

        For methods of other libraries, which differentiate by themselves, inside of `model()`: unlike a call of the
        model it hands over the model arguments and returns the part of the output that is meant.

        Args:
            rows: perturbed copies `(M, C, *S)`; a leaf among them may require a gradient.
            index: the image that each row belongs to, `(M,)`; None: row i belongs to image i.

        Returns:
            The output `(M, N, …)`, in the model's precision.
        """
        return self._runner.run(rows, self._index(index, len(rows)), copy=False)

    def _index(self, index: Tensor | None, rows: int) -> Tensor:
        return which_image(index, rows, len(self.inputs)).to(self.inputs.device)

    @property
    def found_mixed(self) -> bool:
        """Whether the output of an image was found to depend on those beside it, before several rows were run."""
        return self._opened().batches.mixed or False

    def rows_at_once(self, graph: bool = False) -> int:
        """Return how many perturbed copies one pass takes; a `graph`, as for `input_gradient`, needs more memory."""
        return self._opened().batches.rows_at_once(graph)

    def bar(self, rows: int) -> tqdm[Any]:
        """Return a progress bar for so many rows, for a method that sends them in parts of one pass; `with` it."""
        return self._opened().batches.bar(rows)

    def remember(self, key: Any, make: Callable[[], Any]) -> Any:
        """Return what `make` returns, made once for this probe: what an explainer needs again for the next target."""
        if key not in (store := self._opened().remembered):
            store[key] = make()
        return store[key]
