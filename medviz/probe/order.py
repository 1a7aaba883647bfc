"""In which order the numbers of maps lie in memory: on a CPU, many networks are quicker with the channels last."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Sequence, Set
from typing import TypeVar
from weakref import WeakSet

import attrs
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from medviz.errors import first_line
from medviz.incremental.layout import channels_last, order
from medviz.probe.copies import copy_on_write
from medviz.probe.failures import is_out_of_memory
from medviz.probe.runner import Runner
from medviz.probe.starts import holders_of
from medviz.probe.watch import UnknownOperationError, Watch, stop_where_shared

_T = TypeVar("_T")
_log = logging.getLogger("medviz")
_LEAST = 2**14  # voxels: of smaller images, most of the time is not that of the kernels
_PLAIN = {Tensor, nn.Parameter}
_CONVOLUTIONS = {4: nn.Conv2d, 5: nn.Conv3d}  # by the number of axes of an image
_usual: WeakSet[nn.Module] = WeakSet()  # networks that do what is not known to be the same in both orders


@attrs.define(eq=False)
class Order:
    """The order of a model's maps in its passes without a graph: the usual one, or channels last where that is quicker.

    PyTorch's operations take both, and hand on the one that they get. So it is the image that is given so; each pass is
    watched, and made again in the usual order where an operation is not known to do the same in both. The weights stay
    as they are.

    Args:
        runner: the model.
        channels_last: whether images are given so.
        found: all modules of the model.
    """

    runner: Runner
    channels_last: bool
    found: Sequence[nn.Module]

    def run(self, images: Tensor, index: Tensor) -> Tensor:
        """Return the output `(M, N, …)` for `(M, C, *S)`, as `Runner.run`; only inside of `tried`."""
        if not self.channels_last:
            return self.runner.run(images, index)
        # of one channel it is the same memory, which a model may write to
        given = channels_last(copy_on_write(images) if images.shape[1] == 1 else images)
        watch = Watch(self.found)
        output = self.runner.run(copy_on_write(given) if given is images else given, index, copy=False, around=watch)
        watch.check()
        return output.contiguous()  # a target may count on it

    def tried(self, work: Callable[[], _T]) -> _T:
        """Return what `work` does, a pass with its hooks: again, in the usual order, where it fails in the other."""
        if not self.channels_last:
            return work()
        drawn = random.getstate(), np.random.get_state()  # torch's own draws stop the pass before they are made
        try:
            return work()
        except (Exception, UnknownOperationError) as err:
            if isinstance(err, Exception) and is_out_of_memory(err):
                raise
            reason = first_line(err)  # and not the error: it holds the maps of the pass
        self.channels_last = False
        random.setstate(drawn[0])
        np.random.set_state(drawn[1])
        try:
            result = work()
        except Exception:
            self.channels_last = True  # it fails in both
            raise
        _log.info("maps lie in the usual order in memory, for with channels last: %s", reason)
        _usual.add(self.runner.model)
        return result


def of(runner: Runner, images: Tensor, found: Sequence[nn.Module], kinds: Set[type]) -> Order:
    """Return the order of a model's passes over images.

    Channels last are convolutional networks in float32, on a CPU with oneDNN; not those with other norms than
    batch-norm, whose kernels are slower then, or less precise, nor what cannot be watched: what is scripted, what
    tensors of other kinds do, and anything where the caller has switched the watching off.

    Args:
        runner: the model.
        images: `(B, C, *S)`.
        found: all modules of the model.
        kinds: the classes of all tensors that it holds.
    """
    watched = kinds <= _PLAIN and not torch._C._is_torch_function_all_disabled()
    quicker = watched and runner.model not in _usual and _is_quicker(runner, images, found)
    return Order(runner, quicker, found)


def _is_quicker(runner: Runner, images: Tensor, found: Sequence[nn.Module]) -> bool:
    if (runner.device.type, runner.dtype, runner.autocast) != ("cpu", torch.float32, None):
        return False
    kernels = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not kernels or images.ndim not in _CONVOLUTIONS or images[0, 0].numel() < _LEAST:
        return False
    kinds = set(map(type, found))
    norms = [kind for kind in kinds if "Norm" in kind.__name__ and "BatchNorm" not in kind.__name__]
    convolutions = any(issubclass(kind, _CONVOLUTIONS[images.ndim]) for kind in kinds)
    scripted = any(issubclass(kind, torch.jit.ScriptModule) for kind in kinds)
    return convolutions and not scripted and all(issubclass(kind, _BatchNorm) for kind in norms)


def usual_order(maps: Tensor) -> Tensor:
    """Return maps that nobody else holds in the usual order, as the same object; and others as they are."""
    if order(maps) != torch.contiguous_format and holders_of(maps) == 1:
        stop_where_shared(maps)
        maps.data = maps.clone(memory_format=torch.contiguous_format)  # also of one channel, which is contiguous so
    return maps
