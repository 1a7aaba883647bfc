"""Run the checks of a plugin's kind over an instance: as rows of a plain call, or as tests of pytest."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from medviz import naming
from medviz.errors import suggest
from medviz.hookspecs import Plugin
from medviz.testing.checks import CHECKS
from medviz.testing.outcome import Check, ConformanceError, NotApplicable, Row, describe_error

ExpectedFailures = Mapping[str, str]


def checks_for(instance: Plugin) -> list[Check]:
    """Return the checks for the kind of `instance`, each a plain function `check_*(instance)`.

    A check returns None; it raises `ConformanceError` where the plugin is wrong, and `NotApplicable` where the plugin's
    capabilities leave it nothing to check.

    Raises:
        TypeError: not an instance of a plugin.
    """
    if not isinstance(instance, Plugin):
        raise TypeError(f"the kit checks instances of plugins, such as MyMethod(); got {instance!r}.")
    return list(CHECKS[instance.kind])


def check(instance: Plugin, expected_failures: ExpectedFailures | None = None) -> list[Row]:
    """Run all checks of its kind over one plugin instance; no check's failure is raised.

    Args:
        instance: the plugin as it is to be used; small parameters (few samples, a small window) make it quick.
        expected_failures: from the name of a check to the reason why this plugin is allowed to fail it. A check that is
            listed and passes counts as failed, so that the list cannot outlive its reasons.

    Returns:
        One row for each check, in their order.

    Raises:
        TypeError: `instance` is no instance of a plugin, or a reason is no text.
        ValueError: `expected_failures` names a check that there is not.
    """
    checks = checks_for(instance)
    expected = _known(expected_failures, checks)
    return [_row(one, instance, expected.get(one.__name__)) for one in checks]


def conformance(
    instances: Iterable[Plugin], expected_failures: ExpectedFailures | None = None
) -> Callable[[Callable[..., Any]], Any]:
    """Decorate a test function so that pytest runs each check over each instance, one test each.

    The function takes `check` and `instance` and calls one with the other:

        @medviz.testing.conformance([MyMethod(), MyMethod(scale=2.0)])
        def test_conformance(check, instance):
            check(instance)

    Args:
        instances: plugins of any kinds, as they are to be used.
        expected_failures: as for `check`, for all the instances; such a test is a strict xfail.

    Raises:
        ImportError: pytest is not installed.
        TypeError, ValueError: as for `check`; or there are no instances.
    """
    try:
        import pytest
    except ImportError as err:
        raise ImportError(
            "medviz.testing.conformance makes tests of pytest: python -m pip install pytest. "
            "medviz.testing.check(instance) needs none."
        ) from err
    if isinstance(instances, Plugin):
        raise TypeError(f"`instances` is a list; write [{instances!r}].")
    pairs = [(one, instance) for instance in instances for one in checks_for(instance)]
    if not pairs:
        raise ValueError("`instances` is empty; give at least one instance of a plugin.")
    expected = _known(expected_failures, [one for one, _ in pairs])
    parameters = [
        pytest.param(
            one,
            instance,
            id=f"{_label(instance)}-{one.__name__}",
            marks=[pytest.mark.xfail(reason=expected[one.__name__], strict=True)] if one.__name__ in expected else [],
        )
        for one, instance in pairs
    ]
    return pytest.mark.parametrize(("check", "instance"), parameters)


def _row(one: Check, instance: Plugin, reason: str | None) -> Row:
    try:
        one(instance)
    except NotApplicable as skipped:
        return Row(one.__name__, "skipped", str(skipped))
    except (Exception, SystemExit) as err:
        message = str(err) if isinstance(err, ConformanceError) else f"the check ended with {describe_error(err)}"
        if reason is not None:
            return Row(one.__name__, "xfailed", f"{reason} ({message})")
        return Row(one.__name__, "failed", message)
    if reason is not None:
        return Row(one.__name__, "failed", f"it passes, but was expected to fail: {reason}. Remove it from the list.")
    return Row(one.__name__, "passed")


def _known(expected_failures: ExpectedFailures | None, checks: Iterable[Check]) -> ExpectedFailures:
    if expected_failures is not None and not isinstance(expected_failures, Mapping):
        raise TypeError(f"`expected_failures` is {expected_failures!r}; expected a dict from checks to reasons.")
    expected = dict(expected_failures or {})
    known = {one.__name__ for one in checks}
    for name, reason in expected.items():
        if name not in known:
            raise ValueError(f"`expected_failures` names {name!r}, which is not a check{suggest(str(name), known)}")
        if not isinstance(reason, str) or not reason.strip():
            raise TypeError(f"`expected_failures` gives {reason!r} for {name!r}; expected the reason, a sentence.")
    return expected


def _label(instance: Plugin) -> str:
    """Return a short name for the tests: the plugin string; a sink's path, different in every run, is left out."""
    return naming.origin(instance).name if instance.kind == "sinks" else naming.describe(instance)
