"""Where in the image the cells of a layer's grid lie: followed through a pass, operation by operation."""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from medviz.probe import moves
from medviz.probe.layers import Hook, hooked, module_of
from medviz.probe.moves import Moved, Size
from medviz.probe.outputs import first_tensor, tensors_in
from medviz.probe.probe import Probe


@attrs.frozen
class Centres:
    """The centres of the cells of a grid, in voxels of the image: that of cell i lies at `first + i · step`.

    Args:
        first: of the first cell, along each axis.
        step: from one cell to the next, along each axis.
    """

    first: tuple[float, ...]
    step: tuple[float, ...]

    def moved(self, by: Sequence[float], times: Sequence[float]) -> Centres:
        """Return those of another grid, whose cell j lies in this one at `by + j · times`."""
        first = tuple(f + s * b for f, s, b in zip(self.first, self.step, by, strict=True))
        return Centres(first, tuple(s * t for s, t in zip(self.step, times, strict=True)))

    def resample(self, values: Tensor, size: Sequence[int]) -> Tensor:
        """Return `(B, K, *s)` on the image's grid `size`: linear between the centres, and constant beyond them."""
        for axis, (first, step, voxels) in enumerate(zip(self.first, self.step, size, strict=True), start=2):
            last = values.shape[axis] - 1
            place = torch.arange(voxels, dtype=torch.float64, device="cpu").sub(first).div(step).clamp(0, last)
            low = place.floor().clamp(max=max(0, last - 1))
            weight = (place - low).to(values).view(-1, *[1] * (values.ndim - 1 - axis))
            index = low.long().to(values.device)
            lower, upper = (values.index_select(axis, i) for i in (index, (index + 1).clamp(max=last)))
            values = torch.lerp(lower, upper, weight)
        return values


class _Nowhere(enum.Enum):
    """What has no place."""

    ANYWHERE = enum.auto()  # made of a single cell: it says nothing of where
    APART = enum.auto()  # a map was taken apart, such as into tokens; where it is a map again, its size may tell
    LOST = enum.auto()  # its voxels were moved in a way that is not known


Place = Centres | _Nowhere | None  # None: nothing that comes from the image was seen in it


def centres(probe: Probe, grids: Mapping[str, Sequence[int]]) -> list[Centres]:
    """Return where the cells of some layers lie, after one pass over one image.

    Args:
        probe: it is open.
        grids: the names of the modules, with the size of the map of each, `*s`; tokens lie where a grid of that size
            lay.

    Raises:
        ValueError: an operation on the way moves voxels in a way that is not known.
    """
    names = tuple(grids)
    follow: _Follow = probe.remember((centres, names), lambda: _followed(probe, names))
    found = []
    for name, grid in grids.items():
        where = follow.of_layer(name, tuple(grid))
        if where is None:
            raise ValueError(
                f"it is not known where in the image the cells of `layer` {name!r}, {tuple(grid)}, lie: something "
                "before it moves voxels in another way than convolutions, poolings and resizing do, or brings together "
                "maps that lie in different places; leave out aligned=True."
            )
        found.append(where)
    return found


def _followed(probe: Probe, names: Sequence[str]) -> _Follow:
    image = probe.inputs[:1].clone()
    with probe.model() as model, torch.no_grad():
        follow = _Follow(image)
        with hooked([(module_of(model, name), follow.hook(name)) for name in names]), follow:
            probe.run(image, torch.zeros(1, dtype=torch.long, device=image.device))
    return follow


class _Follow(TorchFunctionMode):
    """Notes of every map, while the network runs, where its cells lie."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()
        self._axes = image.ndim
        self._nd = image.ndim - 2
        self._known: Any = WeakTensorKeyDictionary()
        self._of_size: dict[Size, set[Centres]] = {}
        self._kept: dict[str, tuple[Size, Place]] = {}
        self._note(image, Centres((0.0,) * self._nd, (1.0,) * self._nd))

    def hook(self, name: str) -> Hook:
        """Return a forward hook that keeps where the output of a layer lies."""

        def keep(module: Any, given: Any, output: Any) -> None:
            tensor = first_tensor(output)
            if tensor is not None:
                self._kept[name] = tuple(tensor.shape[2:]), self._place(tensor)

        return keep

    def of_layer(self, name: str, grid: Size) -> Centres | None:
        """Return where the cells of a layer lie on such a grid; None: that is not known."""
        size, place = self._kept.get(name, ((), None))
        if isinstance(place, Centres):
            return place if size == grid else self._alone(grid)
        return self._alone(grid) if place is _Nowhere.APART else None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if moves.name_of(func) == "setitem":
            self._note(args[0], self._written(*args))
        for made in tensors_in(result):
            if made not in self._known:
                try:
                    self._note(made, self._made(func, args, kwargs, made))
                except Exception:  # arguments in another form than is known
                    self._note(made, _Nowhere.LOST)
        return result

    def _note(self, tensor: Tensor, where: Place) -> None:
        if where is not None:
            self._known[tensor] = where
        if isinstance(where, Centres):
            self._of_size.setdefault(tuple(tensor.shape[2:]), set()).add(where)

    def _place(self, tensor: Tensor) -> Place:
        place: Place = self._known.get(tensor)
        return place

    def _written(self, target: Tensor, index: Any, value: Any) -> Place:
        """Where lies a map that was written into."""
        where, what = self._place(target), self._place(value) if isinstance(value, Tensor) else None
        if what is None or (where == what and moves.is_along_channels(index, self._axes)):
            return where
        return what if where is None and moves.is_along_channels(index, self._axes) else _Nowhere.LOST

    def _alone(self, grid: Size) -> Centres | None:
        found = self._of_size.get(grid, set())
        return next(iter(found)) if len(found) == 1 else None

    def _made(self, func: Any, args: Any, kwargs: Mapping[str, Any], made: Tensor) -> Place:
        """Where lies what an operation has made."""
        name = moves.name_of(func)
        before = list(tensors_in([*args, *kwargs.values()]))
        places = [self._place(tensor) for tensor in before]
        maps = [(t, place) for t, place in zip(before, places, strict=True) if isinstance(place, Centres)]
        turned = maps and made.ndim == self._axes and moves.swaps(name, args, kwargs, self._axes)
        if _Nowhere.LOST in places or turned:
            return _Nowhere.LOST
        if all(place is None for place in places) or moves.is_constant(name):
            return None
        if made.ndim != self._axes or name in moves.RESHAPES:
            return _Nowhere.APART
        grid = tuple(made.shape[2:])
        if moves.moves(name, self._nd):
            source: Tensor = args[0] if args else kwargs["input"]
            return self._moved(source, moves.moved(name, args, kwargs, tuple(source.shape[2:]), grid), grid)
        if not maps:
            return _Nowhere.APART if _Nowhere.APART in places else _Nowhere.ANYWHERE
        if not moves.keeps(name, args, kwargs, self._axes):
            return _Nowhere.LOST
        here = [place for tensor, place in maps if tuple(tensor.shape[2:]) == grid]
        if not here and _Nowhere.APART in places:
            return _Nowhere.APART  # such as one that a single cell weighs
        if not here and all(n in (1, old) for n, old in zip(grid, maps[0][0].shape[2:], strict=True)):
            return _Nowhere.ANYWHERE  # a mean over an axis
        return _together(here)

    def _moved(self, source: Tensor, moved: Moved, grid: Size) -> Place:
        place = self._place(source)
        if place is _Nowhere.APART and source.ndim == self._axes:
            place = self._alone(tuple(source.shape[2:])) or _Nowhere.LOST
        if not isinstance(place, Centres):
            return place
        if set(source.shape[2:]) == {1} and set(grid) != {1}:
            return _Nowhere.ANYWHERE
        return _Nowhere.LOST if moved is None else place.moved(*moved)


def _together(places: Sequence[Centres]) -> Place:
    """Where maps on one grid lie that are put together: in the middle, where they are less than half a cell apart."""
    if not places:
        return _Nowhere.LOST
    first = places[0]
    if all(place == first for place in places):
        return first
    for axis, step in enumerate(first.step):
        starts = [place.first[axis] for place in places]
        same = all(abs(place.step[axis] - step) < 1e-6 for place in places)
        if not same or max(starts) - min(starts) > step / 2 + 1e-6:
            return _Nowhere.LOST
    middle = [sum(place.first[axis] for place in places) / len(places) for axis in range(len(first.step))]
    return Centres(tuple(middle), first.step)
