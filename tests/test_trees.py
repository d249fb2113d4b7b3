"""Trees: which leaves are prunable, what they are called, and structures that do not match."""

from collections import OrderedDict, defaultdict
from typing import Any, NamedTuple

import optree
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import gprune as gp
from gprune.testing import param_trees
from gprune.testing.strategies import Box
from gprune.trees import _trace, dotted_paths, flatten, leaf_names, unflatten
from tests.support import reference
from tests.support.assertions import assert_same_structure

MATRIX, VECTOR = torch.ones(2, 3), torch.ones(3)


class Layer(NamedTuple):
    weight: Any
    bias: Any


def kept(params: Any, where: Any = None, exclude: Any = None) -> list[str]:
    """The dotted paths that are prunable."""
    leaves, treedef = flatten(gp.prunable(params, where, exclude=exclude))
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


class Block(torch.nn.Module):
    """A module with every kind of parameter of two dimensions that is not a weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = torch.nn.Embedding(5, 4)
        self.attention = torch.nn.MultiheadAttention(4, 2, add_bias_kv=True)
        self.norm = torch.nn.LayerNorm((3, 4))
        self.bias_net = torch.nn.Linear(4, 3)  # names of modules do not count
        self.conv = torch.nn.Conv1d(4, 3, 2)
        self.rnn = torch.nn.LSTM(4, 3)
        self.cls_token = torch.nn.Parameter(torch.ones(1, 1, 4))
        self.pos_embed = torch.nn.Parameter(torch.ones(1, 5, 4))
        self.position_table = torch.nn.Parameter(torch.ones(5, 4))
        self.mask_tokens = torch.nn.Parameter(torch.ones(2, 4))
        self.tokenizer = torch.nn.Parameter(torch.ones(2, 4))  # no part of it is "token"
        self.head = torch.nn.Linear(4, 5, bias=False)
        self.head.weight = self.embed_tokens.weight


WEIGHTS_OF_BLOCK = [
    "attention.in_proj_weight",
    "attention.out_proj.weight",
    "bias_net.weight",
    "conv.weight",
    "embed_tokens.weight",
    "rnn.weight_hh_l0",
    "rnn.weight_ih_l0",
    "tokenizer",
]


def nested(flat: dict[str, Any]) -> dict[str, Any]:
    """The tree of dicts whose dotted paths are the keys of a flat dict."""
    tree: dict[str, Any] = {}
    for path, leaf in flat.items():
        *owners, name = path.split(".")
        node = tree
        for owner in owners:
            node = node.setdefault(owner, {})
        node[name] = leaf
    return tree


def test_by_default_biases_norms_tokens_and_positions_are_left_out() -> None:
    """In a flat dict with dotted keys and in nested dicts; a tied embedding is chosen."""
    flat = dict(Block().named_parameters())
    assert kept(flat) == WEIGHTS_OF_BLOCK
    assert kept(nested(flat)) == WEIGHTS_OF_BLOCK
    assert kept({"model": flat}) == [f"model.{path}" for path in WEIGHTS_OF_BLOCK]


def test_a_norm_is_known_by_a_bias_of_its_shape_in_the_same_node() -> None:
    other = torch.ones(2, 4)
    assert kept({"weight": MATRIX, "bias": MATRIX}) == []
    assert kept({"weight": MATRIX, "bias": other}) == ["weight"]
    assert kept({"ln.weight": MATRIX, "bias": MATRIX, "b.bias": MATRIX}) == ["ln.weight"]
    assert kept({"ln": {"weight": MATRIX}, "bias": MATRIX}) == ["ln.weight"]
    assert kept({"ln": {"scale": MATRIX, "bias": None}}) == ["ln.scale"]
    assert kept(Layer(MATRIX, MATRIX)) == []


def test_the_lengths_of_weight_norm_are_left_out() -> None:
    matrix, conv = torch.ones(3, 4), torch.ones(3, 4, 2)
    lengths = torch.ones(3, 1)
    assert kept({"fc": {"weight_g": lengths, "weight_v": matrix}}) == ["fc.weight_v"]
    assert kept({"weight_g": torch.ones(1, 1, 2), "weight_v": conv}) == ["weight_v"]
    new = torch.nn.utils.parametrizations.weight_norm(torch.nn.Conv1d(4, 3, 2))
    assert kept(dict(new.named_parameters())) == ["parametrizations.weight.original1"]
    # two weights of other names, of one shape, or alone
    assert kept({"g": lengths, "v": matrix}) == ["g", "v"]
    assert kept({"weight_g": matrix, "weight_v": matrix}) == ["weight_g", "weight_v"]
    assert kept({"weight_g": lengths, "weight_v": conv}) == ["weight_g", "weight_v"]
    assert kept({"weight_g": torch.ones(2, 4), "weight_v": matrix}) == ["weight_g", "weight_v"]
    assert kept({"weight_g": lengths, "original0": lengths}) == ["original0", "weight_g"]


def test_leaves_without_names_are_chosen_by_shape() -> None:
    assert kept([MATRIX, [MATRIX, VECTOR], (MATRIX,)]) == ["0", "1.0", "2.0"]
    assert kept(MATRIX) == [""]
    assert kept(VECTOR) == []
    assert kept({3: MATRIX, 4: VECTOR}) == ["3"]
    assert kept({"biases": [MATRIX]}) == ["biases.0"]


@pytest.mark.parametrize("where", [None, "*weight*", lambda path, leaf: "weight" in path])
@pytest.mark.parametrize(
    "exclude",
    ["*.weight_?h_*", ["*_ih_*", "rnn.*_hh_*"], lambda path, leaf: path.startswith("rnn.")],
)
def test_exclude_takes_from_what_is_chosen(where: Any, exclude: Any) -> None:
    flat = dict(Block().named_parameters())
    chosen = kept(flat, where)
    assert kept(flat, where, exclude) == [p for p in chosen if not p.startswith("rnn.")]
    assert kept(flat, where, []) == chosen


@pytest.mark.long
def test_the_default_and_exclude_trace_whole() -> None:
    flat = dict(Block().named_parameters())
    trees = {"flat": flat, "nested": nested(flat), "list": list(flat.values())}

    def count(params: Any) -> Any:
        masks = gp.keep_all(gp.prunable(params, exclude=["rnn.*", "list.0"]))
        return params["flat"]["conv.weight"] * 2, masks

    compiled = torch.compile(count, backend="eager", fullgraph=True)
    eager, traced = count(trees)[1], compiled(trees)[1]
    assert kept(traced, lambda path, leaf: True) == kept(eager, lambda path, leaf: True)
    assert len(kept(eager, lambda path, leaf: True)) > 2 * len(WEIGHTS_OF_BLOCK) - 4
    torch._dynamo.reset()


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


def test_none_stays_none_and_tensors_are_the_same() -> None:
    tree = {"a": None, "b": MATRIX}
    assert gp.prunable(tree, "*") == {"a": None, "b": MATRIX}
    assert gp.prunable(tree, "*")["b"] is MATRIX


@pytest.mark.parametrize("where", [3, [3], object()])
def test_where_must_select(where: Any) -> None:
    with pytest.raises(TypeError, match="where must be None, a glob"):
        gp.prunable(TREE, where)
    with pytest.raises(TypeError, match="exclude must be None, a glob"):
        gp.prunable(TREE, exclude=where)


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


@pytest.mark.parametrize(
    ("where", "chosen"),
    [
        (None, ["fc.weight", "head.fc.weight"]),
        ("fc.*", ["fc.bias", "fc.weight"]),
        ("*fc.weight", ["fc.weight", "head.fc.weight"]),
        (["fc.b*", "norm.?eight"], ["fc.bias", "norm.weight"]),
        ("FC.*", []),
        ([], []),
        (lambda path, leaf: leaf.numel() == 2, ["fc.bias", "norm.weight"]),
    ],
)
def test_prunable(where: Any, chosen: list[str]) -> None:
    params = {
        "norm": {"weight": torch.ones(2)},
        "fc": {"weight": torch.ones(2, 3), "bias": torch.ones(2)},
        "head": {"fc": {"weight": torch.ones(1, 3)}, "ids": torch.ones(1, 3).int()},
    }
    tree = gp.prunable(params, where)
    assert_same_structure(tree, params)
    paths = ["fc.bias", "fc.weight", "head.fc.weight", "head.ids", "norm.weight"]
    kept = reference.leaves(tree)
    assert [path for path, leaf in zip(paths, kept, strict=True) if leaf is not None] == chosen
    for leaf, param in zip(kept, reference.leaves(params), strict=True):
        assert leaf is None or leaf is param


@given(param_trees(), st.integers(-1, 2))
def test_vmap_dims_have_the_structure_of_the_tree(params: Any, dim: int) -> None:
    dims = gp.vmap_dims(params, dim)
    assert_same_structure(dims, params)
    assert reference.leaves(dims) == [
        None if leaf is None else dim for leaf in reference.leaves(params)
    ]
