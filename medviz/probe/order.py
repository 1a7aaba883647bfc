"""In which order the numbers of maps lie in memory: on a CPU, many networks are quicker with the channels last."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

import attrs
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from medviz.errors import first_line
from medviz.incremental.layout import channels_last, order
from medviz.probe.asking import smaller, widest
from medviz.probe.copies import copy_on_write
from medviz.probe.failures import is_out_of_memory
from medviz.probe.guard import untouched
from medviz.probe.starts import holders_of
from medviz.tensors import of_each_output

if TYPE_CHECKING:
    from medviz.probe.runner import Runner

_T = TypeVar("_T")
_log = logging.getLogger("medviz")
_LEAST = 2**14  # voxels: smaller images are not worth a question
_STEPS = (8, 4, 2)  # the question takes every so manieth voxel along each axis
_TOLERANCE = 1e-5  # of each output
_LARGE = 2**19  # numbers in a weight: to bring more of them into another order takes longer than a convolution gains
_CONVOLUTIONS = {4: nn.Conv2d, 5: nn.Conv3d}  # by the number of axes of an image

# by model: of what modules it was made, how many axes the image had, and whether it gave the same in both orders
_answers: WeakKeyDictionary[nn.Module, tuple[Any, bool]] = WeakKeyDictionary()


@attrs.define(eq=False)
class Order:
    """The order of a model's maps in its passes without a graph: the usual one, or channels last where that is quicker.

    PyTorch's operations take both, and hand on the one that they get. Channels come last from the image on, to the
    first layer of the graph, or to the first convolution with a large weight: for each pass PyTorch brings the weight
    into the order of the map. The model's own weights stay as they are.

    Args:
        channels_last: whether images are given so.
        large: the convolutions with large weights.
    """

    channels_last: bool = False
    large: Sequence[nn.Module] = ()
    _remember: Callable[[], None] = lambda: None

    def copy(self, images: Tensor) -> Tensor:
        """Return a copy of images `(M, C, *S)`, in that order."""
        made = channels_last(images) if self.channels_last else images
        return copy_on_write(images) if made is images else made

    @contextlib.contextmanager
    def passing(self) -> Iterator[None]:
        """Give the convolutions with large weights maps in the usual order, during the block: a pass."""
        handles: list[Any] = []
        try:
            handles += [module.register_forward_pre_hook(_usual) for module in self.large if self.channels_last]
            yield
        finally:
            for handle in handles:
                handle.remove()

    def tried(self, work: Callable[[], _T]) -> _T:
        """Return what `work` does, a pass with its hooks: once more, in the usual order, where it fails in the other.

        A network may look at its numbers in a way that they do not lie in, by `view`, where the image is large only.
        """
        if not self.channels_last:
            return work()
        try:
            return work()
        except Exception as err:
            if is_out_of_memory(err):
                raise
            failed = err
        self.channels_last = False
        try:
            result = work()
        except Exception:
            self.channels_last = True  # the network fails in both
            raise
        _log.info("the usual order in memory, for the network fails with channels last: %s", first_line(failed))
        self._remember()
        return result


def of(runner: Runner, images: Tensor, found: Sequence[nn.Module]) -> Order:
    """Return the order of a model's passes over images.

    Channels last are convolutional networks in float32, on a CPU with oneDNN; not those with other norms than
    batch-norm, whose kernels are slower then, or less precise. Whether the model gives the same is asked once: it runs
    on a small copy of the image in both orders. It might count on how its numbers lie in memory.

    Args:
        runner: the model.
        images: `(B, C, *S)`.
        found: all modules of the model.
    """
    if not _is_quicker(runner, images, found):
        return Order()
    kind, model = _CONVOLUTIONS[images.ndim], runner.model
    asked = (images.ndim, *map(id, found))

    def remember(answer: bool = False) -> None:
        _answers[model] = asked, answer

    made = Order(True, [m for m in found if isinstance(m, kind) and m.weight.numel() >= _LARGE], remember)
    if _answers.get(model, (None, False))[0] != asked:
        remember(_gives_the_same(runner, attrs.evolve(runner, order=made), images, found))
    return made if _answers[model][1] else Order()


def _usual(_: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    return (args[0].contiguous(), *args[1:]) if args and isinstance(args[0], Tensor) else None


def usual_order(maps: Tensor) -> Tensor:
    """Return maps that nobody else holds in the usual order, as the same object; and others as they are."""
    if order(maps) != torch.contiguous_format and holders_of(maps) == 1:
        maps.data = maps.contiguous()
    return maps


def _is_quicker(runner: Runner, images: Tensor, found: Sequence[nn.Module]) -> bool:
    if (runner.device.type, runner.dtype, runner.autocast) != ("cpu", torch.float32, None):
        return False
    if images.ndim not in _CONVOLUTIONS or images[0, 0].numel() < _LEAST or not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    kinds = set(map(type, found))
    norms = [kind for kind in kinds if "Norm" in kind.__name__ and "BatchNorm" not in kind.__name__]
    convolutions = any(issubclass(kind, _CONVOLUTIONS[images.ndim]) for kind in kinds)
    return convolutions and all(issubclass(kind, _BatchNorm) for kind in norms)


def _gives_the_same(usual: Runner, other: Runner, images: Tensor, found: Sequence[nn.Module]) -> bool:
    """Return whether the outputs for two copies of an image are the same: PyTorch runs one in other ways than many.

    A network that takes none but whole images is not asked, and keeps the usual order: to ask would double its time.
    """
    which = widest(images)
    with untouched(found), torch.no_grad():  # it may keep something that suits the smaller images
        for small in smaller(images[which : which + 1], _STEPS):
            rows, index = torch.cat([small, small]), torch.full((2,), which, device=images.device)
            try:
                expected = usual.run(rows, index)
            except Exception:
                continue  # too small for this network, for example
            try:
                error, size = map(of_each_output, (other.run(rows, index) - expected, expected))
            except Exception as err:
                _log.info("the usual order in memory, for the network takes no other: %s", first_line(err))
                return False
            same = bool((error <= _TOLERANCE * size).all())
            if not same:
                _log.info("the usual order in memory, for the network says something else with channels last")
            return same
    return False
