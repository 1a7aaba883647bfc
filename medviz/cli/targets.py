"""The written form of a target.

predicted                      the class predicted for each image; of a single logit, the logit
3                              class 3
positive, negative             the one logit of a binary network, or its negative
value:0                        the value 0 of a network that predicts quantities
segmentation:1                 the mean logit of channel 1, everywhere
segmentation:1:predicted       the same, where channel 1 is the largest
segmentation:1:positive        the same, where the logit of channel 1 is above 0
package.module:function        any function from the output to one score for each row
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from medviz.targets import TargetLike

FORMS = (
    "predicted, 3, positive, negative, value:0, segmentation:1, segmentation:1:predicted, segmentation:1:positive or "
    "package.module:function"
)


def parse(text: str) -> TargetLike:
    """Return the target that `text` means.

    Raises:
        ValueError: `text` has none of the forms above.
    """
    from medviz import targets
    from medviz.segmentation import SegmentationTarget

    head, _, rest = text.strip().partition(":")
    plain: dict[str, Any] = {
        "predicted": targets.PredictedTarget,
        "positive": lambda: targets.BinaryTarget(positive=True),
        "negative": lambda: targets.BinaryTarget(positive=False),
    }
    if head in plain and not rest:
        made: TargetLike = plain[head]()
        return made
    if _is_index(head) and not rest:
        return int(head)
    if head == "value" and _is_index(rest):
        return targets.RegressionTarget(int(rest))
    channel, _, mask = rest.partition(":")
    if head == "segmentation" and _is_index(channel) and mask in ("", "predicted", "positive"):
        return SegmentationTarget(int(channel), mask or None)
    if rest and head.replace(".", "").isidentifier() and head not in ("value", "segmentation", *plain):
        return _function(text)
    raise ValueError(f"`--target` {text!r} cannot be read; write {FORMS}.")


def _is_index(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _function(text: str) -> TargetLike:
    from medviz.cli.loading import load_object

    function = load_object(text, "--target")
    if not callable(function):
        raise TypeError(f"`--target` {text!r} is a {type(function).__name__}; expected a function of the output.")
    made: TargetLike = function
    return made
