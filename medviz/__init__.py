"""medviz: what did the network look at?

The public names are loaded when they are first used: `import medviz` imports neither torch nor matplotlib.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

_PUBLIC = {
    "medviz.attribution": ("Attribution",),
    "medviz.errors": ("PluginError",),
    "medviz.explainers.layered": ("LayerExplainer",),
    "medviz.files": ("atomic",),
    "medviz.hookspecs": ("Explainer", "Occluder", "Plugin", "Reader", "Renderer", "Sink", "Wrapper", "hookimpl"),
    "medviz.image": ("Image",),
    "medviz.model_arguments": ("per_image",),
    "medviz.naming": ("describe",),
    "medviz.pipeline": ("explain",),
    "medviz.probe": ("Probe",),
    "medviz.registry": (
        "field",
        "get_explainer",
        "get_occluder",
        "get_reader",
        "get_renderer",
        "get_sink",
        "names",
        "prefer",
    ),
    "medviz.relay": ("read",),
    "medviz.renderers.map_renderer": ("MapRenderer",),
    "medviz.rendering": ("Rendering",),
    "medviz.results": ("ResultKey",),
    "medviz.segmentation": ("SegmentationTarget",),
    "medviz.sinks.file_sink": ("FileSink", "PictureSink"),
    "medviz.targets": (
        "BinaryTarget",
        "CallableTarget",
        "ClassTarget",
        "FixedTarget",
        "PredictedTarget",
        "RegressionTarget",
        "Target",
    ),
}
_HOME = {name: module for module, names_ in _PUBLIC.items() for name in names_}

if TYPE_CHECKING:
    from medviz.attribution import Attribution as Attribution
    from medviz.errors import PluginError as PluginError
    from medviz.explainers.layered import LayerExplainer as LayerExplainer
    from medviz.files import atomic as atomic
    from medviz.hookspecs import Explainer as Explainer
    from medviz.hookspecs import Occluder as Occluder
    from medviz.hookspecs import Plugin as Plugin
    from medviz.hookspecs import Reader as Reader
    from medviz.hookspecs import Renderer as Renderer
    from medviz.hookspecs import Sink as Sink
    from medviz.hookspecs import Wrapper as Wrapper
    from medviz.hookspecs import hookimpl as hookimpl
    from medviz.image import Image as Image
    from medviz.model_arguments import per_image as per_image
    from medviz.naming import describe as describe
    from medviz.pipeline import explain as explain
    from medviz.probe import Probe as Probe
    from medviz.registry import field as field
    from medviz.registry import get_explainer as get_explainer
    from medviz.registry import get_occluder as get_occluder
    from medviz.registry import get_reader as get_reader
    from medviz.registry import get_renderer as get_renderer
    from medviz.registry import get_sink as get_sink
    from medviz.registry import names as names
    from medviz.registry import prefer as prefer
    from medviz.relay import read as read
    from medviz.renderers.map_renderer import MapRenderer as MapRenderer
    from medviz.rendering import Rendering as Rendering
    from medviz.results import ResultKey as ResultKey
    from medviz.segmentation import SegmentationTarget as SegmentationTarget
    from medviz.sinks.file_sink import FileSink as FileSink
    from medviz.sinks.file_sink import PictureSink as PictureSink
    from medviz.targets import BinaryTarget as BinaryTarget
    from medviz.targets import CallableTarget as CallableTarget
    from medviz.targets import ClassTarget as ClassTarget
    from medviz.targets import FixedTarget as FixedTarget
    from medviz.targets import PredictedTarget as PredictedTarget
    from medviz.targets import RegressionTarget as RegressionTarget
    from medviz.targets import Target as Target

__all__ = sorted([*_HOME, "__version__"])


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'medviz' has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
