"""The written form of a plugin: what it means, what is refused, and that what was written is read back."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from medviz.errors import PluginError
from medviz.plugin_strings import parse, written


@pytest.mark.parametrize(
    ("text", "name", "parameters"),
    [
        ("gradcam", "gradcam", {}),
        (" gradcam ", "gradcam", {}),
        ("medviz-xai/gradcam", "medviz-xai/gradcam", {}),
        ("gradcam:", "gradcam", {}),
        ("gradcam:layer=layer4", "gradcam", {"layer": "layer4"}),
        ("png:path=/tmp/a:b=c.png", "png", {"path": "/tmp/a:b=c.png"}),
        ("png:path=C:\\maps\\a.png", "png", {"path": "C:\\maps\\a.png"}),
        (
            "x:a=1,b=.5,c=true,d=None,e=-2e3,f=inf",
            "x",
            {"a": 1, "b": 0.5, "c": True, "d": None, "e": -2e3, "f": math.inf},
        ),
        ("x:a=[1,2],b=(1,2),c={'k': 1}", "x", {"a": [1, 2], "b": (1, 2), "c": {"k": 1}}),
        ("x:layer=[layer3, layer4]", "x", {"layer": ["layer3", "layer4"]}),
        ("x:a='1',b='u,v',c=\"it's\"", "x", {"a": "1", "b": "u,v", "c": "it's"}),
        ("x:a=", "x", {"a": ""}),
        (
            "occlusion:occluder=gaussian(sigma=.3,n=[1,2]),k=1",
            "occlusion",
            {"occluder": "gaussian(sigma=.3,n=[1,2])", "k": 1},
        ),
        ("gaussian(sigma=.3,n=[1,2])", "gaussian", {"sigma": 0.3, "n": [1, 2]}),
        ("gaussian()", "gaussian", {}),
        ("x:a={[]}", "x", {"a": "{[]}"}),
    ],
)
def test_meaning(text, name, parameters):
    assert parse(text) == (name, parameters)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names no plugin"),
        (":a=1", "names no plugin"),
        ("(a=1)", "names no plugin"),
        ("x:a", "is not key=value"),
        ("x:1a=2", "is not key=value"),
        ("x:a=1,,b=2", "is not key=value"),
        ("x:a=1,a=2", "given twice"),
        ("x:a=[1,2", "']' is missing"),
        ("x:a=1]", "does not match"),
        ("x:a=(1]", "does not match"),
        ("x:a='b", "is missing"),
        ("x(a=1", "does not close"),
    ],
)
def test_refusals(text, message):
    with pytest.raises(PluginError) as error:
        parse(text)
    assert message in str(error.value)


def test_written_is_plain_where_it_can_be():
    parameters = {"layer": "layer4", "n": 3, "scale": "max", "path": Path("a/b.png"), "mode": "true", "text": "a,b"}
    assert written("x", parameters) == "x:layer=layer4,n=3,scale=max,path=a/b.png,mode='true',text='a,b'"
    assert written("x", {}) == "x"
    assert written("x", {"a": 1}, nested=True) == "x(a=1)"


names = st.from_regex(r"[a-z][a-z0-9-]{0,8}(/[a-z0-9]{1,8})?", fullmatch=True)
keys = st.from_regex(r"[a-z_][a-z0-9_]{0,8}", fullmatch=True)
awkward = st.text(alphabet="ab1=,:'\"\\[](){} .-", max_size=8)
plain = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | awkward
values = st.text() | st.recursive(
    plain, lambda v: st.lists(v) | st.tuples(v, v) | st.dictionaries(awkward, v), max_leaves=5
)


@settings(derandomize=True, deadline=None, max_examples=300)
@given(names, st.dictionaries(keys, values | st.sampled_from([math.inf, -math.inf]), max_size=3), st.booleans())
def test_what_was_written_is_read_back(name, parameters, nested):
    assert parse(written(name, parameters, nested and bool(parameters))) == (name, parameters)


@settings(derandomize=True, deadline=None)
@given(st.dictionaries(keys, values, max_size=2), keys)
def test_a_nested_plugin_is_read_back_through_its_outer_one(inner, key):
    text = written("inner", inner, nested=True)
    name, outer = parse(written("outer", {key: text, "n": 1} if key != "n" else {key: text}))
    assert name == "outer"
    assert parse(outer[key]) == ("inner", inner)


@pytest.mark.parametrize("value", [(0.0, math.inf), [-math.inf, 2], {"a": math.inf}, (True, None), [[math.inf], "inf"]])
def test_words_inside_of_brackets_are_read_back(value: Any) -> None:
    assert parse(written("x", {"y": value}))[1]["y"] == value


def test_words_that_are_no_values_stay_strings() -> None:
    assert parse("x:y=(info, nothing)")[1]["y"] == "(info, nothing)"
    assert parse("x:y=f(inf)")[1]["y"] == "f(inf)"
