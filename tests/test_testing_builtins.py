"""The conformance kit over every built-in plugin, from the entry points: a new one is checked without a line here."""

from __future__ import annotations

from typing import Any

import torch

import medviz.testing
from medviz import registry
from medviz.hookspecs import Plugin

torch.set_num_threads(1)  # the networks are tiny: threads would only wait for each other

QUICK: dict[str, str] = {
    "explainers/guidedbackpropsmooth": "n_samples=5",
    "explainers/integratedgradients": "steps=16",
    "explainers/occlusion": "mask_size=10",
    "explainers/rise": "n_masks=80",
    "explainers/smoothgrad": "n_samples=5",
    "renderers/matshow3d": "dpi=30",
    "renderers/planes": "dpi=30",
}
"""Parameters that save time."""

OTHERS = [
    "explainers/gradcam:layer='deep'",
    "explainers/smoothgrad:n_samples=4,statistic=variance",
    "readers/image:scale=stored",
    "readers/npy:channels='none'",
    "explainers/occlusion:mask_size=10,per_channel=true,occluder=mean_patch,incremental=false",
]
"""Parameters that change what a plugin declares or does."""


def made(kind: str, text: str) -> Plugin:
    """Return the plugin; a sink gets a path with its ending, that the kit puts into a folder of its own."""
    plugin: Any = registry.find(kind, text.partition(":")[0]).load()
    path = {"path": f"map{getattr(plugin, 'suffixes', ('',))[0]}"} if kind == "sinks" else {}
    return registry.get(kind, text, **path)


def instances() -> list[Plugin]:
    own = [e for e in registry.entries() if e.package == "medviz-xai"]
    texts = [(e.kind, f"{e.full_name}:{QUICK.get(f'{e.kind}/{e.name}', '')}".rstrip(":")) for e in own]
    return [made(kind, text) for kind, text in texts] + [
        made(kind, f"medviz-xai/{text}") for kind, _, text in (other.partition("/") for other in OTHERS)
    ]


@medviz.testing.conformance(instances())
def test_builtin(check: Any, instance: Plugin) -> None:
    check(instance)


def test_every_quick_parameter_belongs_to_a_plugin() -> None:
    assert set(QUICK) <= {f"{e.kind}/{e.name}" for e in registry.entries()}
