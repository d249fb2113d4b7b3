"""Trees: which leaves are prunable, what they are called, and structures that do not match."""

from collections import OrderedDict, defaultdict
from typing import Any, NamedTuple

import optree
import pytest
import torch
from hypothesis import given

import gprune as gp
from gprune.testing import param_trees
from gprune.testing.strategies import Box
from gprune.trees import _trace, dotted_paths, flatten, leaf_names, unflatten

MATRIX, VECTOR = torch.ones(2, 3), torch.ones(3)


class Layer(NamedTuple):
    weight: Any
    bias: Any


def kept(params: Any, where: Any = None) -> list[str]:
    """The dotted paths that are prunable."""
    leaves, treedef = flatten(gp.prunable(params, where))
    return [
        path for path, leaf in zip(dotted_paths(treedef), leaves, strict=True) if leaf is not None
    ]


TREE = {
    "fc": Layer(MATRIX, VECTOR),
    "box": Box(MATRIX, {"Deep": [MATRIX, VECTOR]}),
    "od": OrderedDict(z=MATRIX, a=VECTOR),
    "ids": torch.ones(2, 2, dtype=torch.int64),
    "scalar": torch.tensor(1.0),
    "not a tensor": 3,
}


def test_by_default_floating_leaves_of_two_dimensions() -> None:
    assert kept(TREE) == ["box.inside", "box.beside.Deep.0", "fc.weight", "od.z"]
    assert kept({"half": MATRIX.half(), "conv": torch.ones(1, 1, 1), "complex": MATRIX + 0j}) == [
        "conv",
        "half",
    ]


@pytest.mark.parametrize(
    ("where", "paths"),
    [
        ("fc.*", ["fc.weight", "fc.bias"]),
        ("*Deep*", ["box.beside.Deep.0", "box.beside.Deep.1"]),
        ("*deep*", []),  # case counts
        ("*.[az]", ["od.z", "od.a"]),
        ("fc.weigh?", ["fc.weight"]),
        (["scalar", "i*"], ["ids", "scalar"]),
        ([], []),
        (lambda path, leaf: path.endswith("bias") or leaf is MATRIX, None),
    ],
)
def test_where(where: Any, paths: list[str] | None) -> None:
    if paths is None:
        paths = ["box.inside", "box.beside.Deep.0", "fc.weight", "fc.bias", "od.z"]
    assert kept(TREE, where) == paths


def test_holes_stay_holes_and_tensors_are_the_same() -> None:
    tree = {"a": None, "b": MATRIX}
    assert gp.prunable(tree, "*") == {"a": None, "b": MATRIX}
    assert gp.prunable(tree, "*")["b"] is MATRIX


@pytest.mark.parametrize("where", [3, [3], object()])
def test_where_must_select(where: Any) -> None:
    with pytest.raises(TypeError, match="a glob"):
        gp.prunable(TREE, where)


def test_names_are_python_source() -> None:
    _, treedef = flatten(TREE)
    names = leaf_names(treedef, "params")
    assert "params['fc'].weight" in names
    assert "params['box'].beside['Deep'][0]" in names
    assert "params['od']['z']" in names


def test_a_dict_is_ranked_in_the_order_of_its_keys() -> None:
    one = {"b": torch.zeros(2), "a": torch.zeros(2)}
    masks = gp.global_unstructured(one, amount=2)
    assert list(masks) == ["b", "a"]
    assert masks["a"].tolist() == [False, False]


@pytest.mark.parametrize(
    ("scores", "words"),
    [
        ({"fc": {"weight": MATRIX}}, r"scores\['fc'\]\['bias'\] is missing"),
        (
            {"fc": {"weight": MATRIX, "bias": VECTOR, "x": VECTOR}},
            r"nothing at scores\['fc'\]\['x'\]",
        ),
        ({"fc": OrderedDict(weight=MATRIX, bias=VECTOR)}, "must have the structure of params"),
    ],
)
def test_structures_that_differ(scores: Any, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        gp.global_unstructured({"fc": {"weight": MATRIX, "bias": VECTOR}}, scores, amount=1)


def test_a_module_is_not_a_tree() -> None:
    with pytest.raises(TypeError, match="named_parameters"):
        gp.keep_all(torch.nn.Linear(2, 2))


def test_vmap_dims() -> None:
    assert gp.vmap_dims({"a": MATRIX, "b": [None, VECTOR]}, 1) == {"a": 1, "b": [None, 1]}


def test_custom_nodes_outside_the_global_namespace_are_leaves() -> None:
    class Other:
        pass

    optree.register_pytree_node(Other, lambda _: ((), None), lambda *_: Other(), namespace="other")
    with pytest.raises(TypeError, match="must be a tensor or None, got Other"):
        gp.keep_all([Other()])


def names_and_paths(treedef: Any) -> tuple[list[str], list[str]]:
    return leaf_names(treedef, "params"), dotted_paths(treedef)


@given(param_trees())
def test_the_walk_under_a_trace_is_that_of_optree(params: Any) -> None:
    """Dynamo runs `_trace` symbolically; here it runs for real, against what eager code gets."""
    found: list[Any] = []
    traced = _trace(params, found)
    leaves, treedef = flatten(params)
    assert all(a is b for a, b in zip(found, leaves, strict=True))
    rebuilt, again = flatten(unflatten(traced, found))
    assert again == treedef
    assert all(a is b for a, b in zip(rebuilt, leaves, strict=True))
    assert traced == _trace(gp.keep_all(params), [])
    ours, theirs = names_and_paths(traced), names_and_paths(treedef)
    assert ours[1] == theirs[1]
    if "Box" not in repr(treedef):  # a custom node's places are named by optree alone
        assert ours[0] == theirs[0]


def test_the_walk_under_a_trace_keeps_dicts_as_they_are() -> None:
    tree = {"b": defaultdict(list, {"z": MATRIX, "a": None}), "a": OrderedDict(z=None, a=MATRIX)}
    found: list[Any] = []
    rebuilt = unflatten(_trace(tree, found), found)
    assert list(rebuilt) == ["b", "a"]
    assert isinstance(rebuilt["b"], defaultdict)
    assert rebuilt["b"].default_factory is list
    assert list(rebuilt["b"]) == list(rebuilt["a"]) == ["z", "a"]
    assert flatten(rebuilt)[1] == flatten(tree)[1]
