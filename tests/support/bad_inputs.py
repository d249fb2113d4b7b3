"""The table of bad inputs, as data: a call, the error that it raises, the words of its message.

A row's inputs are made anew for each run, so that a row cannot spoil another. `PARAMS` has ten
entries, in two leaves and a `None` leaf.
"""

import fractions
import functools
import inspect
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch.nn.utils.prune import L1Unstructured

import gprune as gp


class Bad(NamedTuple):
    """A call that must raise.

    Attributes:
        name: the function and what is wrong.
        function: a public callable.
        inputs: makes its positional and keyword arguments.
        error: the class of the exception.
        words: each of which the message holds.
    """

    name: str
    function: Callable[..., Any]
    inputs: Callable[[], tuple[tuple[Any, ...], dict[str, Any]]]
    error: type[Exception]
    words: tuple[str, ...]


def bad(
    function: Callable[..., Any],
    what: str,
    error: type[Exception],
    words: str,
    *args: Any,
    **kwargs: Any,
) -> Bad:
    """A row; words are separated by spaces, what is callable with no name makes its argument."""

    def inputs() -> tuple[tuple[Any, ...], dict[str, Any]]:
        return tuple(map(made, args)), {key: made(value) for key, value in kwargs.items()}

    return Bad(f"{function.__name__}: {what}", function, inputs, error, tuple(words.split()))


class Make(NamedTuple):
    """An argument that is made when the row runs."""

    how: Callable[[], Any]


def made(value: Any) -> Any:
    return value.how() if isinstance(value, Make) else value


# --- what is passed ---------------------------------------------------------------------------


def tree(weight: Any, bias: Any, out: Any) -> Any:
    return {"fc": {"weight": weight, "bias": bias}, "out": out}


def weight() -> torch.Tensor:
    return torch.arange(6.0).reshape(2, 3)


def out() -> torch.Tensor:
    return torch.ones(4)


PARAMS = Make(lambda: tree(weight(), None, out()))
SIGNED = Make(lambda: tree(-weight(), None, out()))
TEN = Make(lambda: torch.arange(10.0))
ENTRIES = 10
LEAF = Make(lambda: [torch.arange(10.0)])
THRESHOLD = Make(lambda: gp.Threshold(torch.tensor(0.0), torch.tensor(0)))


MODULE = Make(lambda: torch.nn.Linear(1, 1))
BYTE = Make(lambda: torch.zeros(1, dtype=torch.uint8))


def nested() -> torch.Tensor:
    return torch.nested.nested_tensor([torch.ones(2), torch.ones(3)], layout=torch.jagged)


def number(value: Any, dtype: torch.dtype | None = None) -> Make:
    return Make(lambda: torch.tensor(value, dtype=dtype))


# --- amounts and sparsities -------------------------------------------------------------------

T, V = TypeError, ValueError

NUMBERS: list[tuple[str, Any, type[Exception], str]] = [
    ("a string", "3", T, "'3'"),
    ("a bool", True, T, "True"),
    ("a bool tensor", number(True), T, "bool"),
    ("complex", 3 + 0j, T, "(3+0j)"),
    ("a complex tensor", number(3 + 0j), T, "complex"),
    ("a set", {1, 2}, T, "{1, 2}"),
    ("NaN", math.nan, V, "nan"),
    ("a NaN tensor", number(math.nan), V, "nan"),
    ("infinity", math.inf, V, "inf"),
    ("minus infinity", -math.inf, V, "-inf"),
    ("a negative int", -1, V, "negative -1"),
    ("a negative float", -0.25, V, "negative -0.25"),
    ("a negative int tensor", number(-1), V, "negative -1"),
    ("a negative float tensor", number(-0.25), V, "negative -0.25"),
    ("a little above 1", math.nextafter(1.0, 2.0), V, "1.0000000000000002"),
    ("a percentage", 80.0, V, "80.0 mean 0.8?"),
    ("a bfloat16 tensor above 1", number(1.5, torch.bfloat16), V, "1.5"),
    ("above the candidates", ENTRIES + 1, V, "11"),
    ("a tensor above the candidates", number(ENTRIES + 1), V, "11"),
    ("beyond 64 bits", 2**70, V, "64 bits"),
    ("a huge fraction", fractions.Fraction(10**400), V, "float"),
    ("a sparse tensor", Make(lambda: torch.tensor(0.5).to_sparse()), T, "0-dim sparse_coo"),
    ("a nested tensor", Make(lambda: nested()), T, "0-dim"),
]
VECTORS = [
    ("one number in a tensor", number([0.5]), V, "0-dim (1,)"),
    ("an empty tensor", number([]), V, "0-dim (0,)"),
]
ABOVE_ONE = [("two", 2, V, "2 at most"), ("a tensor of two", number(2), V, "2 at most")]

TAKERS: list[tuple[Callable[..., Any], Any, dict[str, Any]]] = [
    (gp.global_unstructured, PARAMS, {}),
    (gp.layerwise, LEAF, {}),
    (gp.find_threshold, PARAMS, {}),
    (gp.lowest_unstructured, TEN, {}),
    (gp.l1_unstructured, TEN, {}),
    (gp.random_unstructured, TEN, {"seed": 0}),
]

AMOUNTS = [
    bad(function, f"amount is {what}", error, f"amount {words}", first, amount=value, **more)
    for function, first, more in TAKERS
    for what, value, error, words in NUMBERS + VECTORS * (function is not gp.find_threshold)
]
SPARSITIES = [
    bad(function, f"sparsity is {what}", error, f"sparsity {words}", first, sparsity=value, **more)
    for function, first, more in TAKERS
    for what, value, error, words in NUMBERS
    + ABOVE_ONE
    + VECTORS * (function is not gp.find_threshold)
]
SEVERAL = [
    bad(gp.find_threshold, what, V, words, PARAMS, amount=number(value))
    for what, value, words in [
        ("a matrix of amounts", [[0.5]], "amount 0-dim or 1-D (1, 1)"),
        ("a bad one among amounts", [0.5, 1.5], "amount at most 1 1.5"),
        ("too large a one among counts", [0, ENTRIES + 1], "amount 11"),
    ]
]
COUNTS = [
    bad(gp.num_to_prune, f"amount is {what}", error, f"amount {words}", value, ENTRIES)
    for what, value, error, words in NUMBERS + VECTORS
] + [
    bad(gp.num_to_prune, "candidates are a float", T, "candidates 10.0", 1, 10.0),
    bad(gp.num_to_prune, "candidates are a bool", T, "candidates True", 1, True),
    bad(gp.num_to_prune, "candidates are a tensor", T, "candidates", 1, number(10)),
    bad(gp.num_to_prune, "candidates are negative", V, "candidates -1", 0, -1),
    bad(gp.num_to_prune, "candidates beyond 64 bits", V, "candidates", 0, 2**63),
]
TREES_OF_AMOUNTS = [
    bad(function, f"{name} is {value}", T, name, first, **{name: value}, **more)
    for function, first, more in TAKERS
    if function is not gp.layerwise
    for name in ("amount", "sparsity")
    for value in ([3], [1, 2], [], (3,), {"fc": 3})
]
BOTH_OR_NEITHER = [
    bad(
        function,
        f"given {budget}",
        T,
        f"amount sparsity {got}",
        first,
        **budget,
        **more,
    )
    for function, first, more in TAKERS
    for got, budget in [
        ("neither", {}),
        ("neither", {"amount": None}),
        ("both", {"amount": 1, "sparsity": 0.5}),
        ("both", {"amount": 0, "sparsity": 0}),
    ]
]

THREE_LEFT = Make(lambda: torch.tensor([True] * 3 + [False] * 7))
THREE_IN_A_LIST = Make(lambda: [torch.tensor([True] * 3 + [False] * 7)])
IN_A_LIST = Make(lambda: [torch.tensor([True] * 3 + [False] * 7)])
CANDIDATES = [
    bad(gp.lowest_unstructured, "above what is left", V, "3 4", TEN, mask=THREE_LEFT, amount=4),
    bad(
        gp.global_unstructured,
        "above what is left",
        V,
        "3 4",
        LEAF,
        masks=THREE_IN_A_LIST,
        amount=4,
    ),
    bad(gp.layerwise, "above the smallest leaf", V, "4 5", PARAMS, amount=5),
    bad(
        gp.layerwise,
        "no amount for a leaf",
        V,
        "amount ['fc']['weight'] missing",
        PARAMS,
        amount={"fc": {"bias": None}, "out": 1},
    ),
    bad(
        gp.layerwise,
        "None for a leaf",
        V,
        "amount['fc']['weight'] number",
        PARAMS,
        amount=tree(None, None, 1),
    ),
    bad(
        gp.layerwise,
        "a bool for a leaf",
        T,
        "amount True",
        PARAMS,
        amount=tree(1, None, True),
    ),
]

# --- trees ------------------------------------------------------------------------------------

LIFTED = [
    (gp.global_unstructured, {"amount": 1}),
    (gp.layerwise, {"amount": 1}),
    (gp.find_threshold, {"amount": 1}),
]

BAD_SCORES: list[tuple[str, Callable[[], Any], type[Exception], str]] = [
    ("no bias", lambda: {"fc": {"weight": weight()}, "out": out()}, V, "bias"),
    ("a list for a leaf", lambda: tree(weight(), None, [out()]), V, "scores out"),
    ("more", lambda: {**tree(weight(), None, out()), "more": out()}, V, "scores['more']"),
    ("a list", lambda: [weight(), None, out()], V, "scores structure"),
    ("transposed", lambda: tree(weight().t(), None, out()), V, "['fc']['weight'] (3, 2) (2,"),
    ("of one entry", lambda: tree(weight(), None, torch.ones(1)), V, "scores['out'] (1,) (4,)"),
    ("0-dim", lambda: tree(weight(), None, torch.tensor(1.0)), V, "scores['out'] () (4,)"),
    (
        "two leaves",
        lambda: tree(torch.ones(6), None, torch.ones(3)),
        V,
        "scores['fc']['weight'] (6,) scores['out'] (3,)",
    ),
    ("None at a leaf", lambda: tree(None, None, out()), V, "scores['fc']['weight'] None"),
    (
        "bool",
        lambda: tree(weight().bool(), None, out()),
        T,
        "scores['fc']['weight'] bool cast masks=",
    ),
    (
        "two dtypes",
        lambda: tree(weight().bool(), None, out().cfloat()),
        T,
        "scores['fc']['weight'] bool scores['out'] complex64",
    ),
    ("float8", lambda: tree(weight().to(torch.float8_e5m2), None, out()), T, "float8_e5m2 cast"),
    ("uint16", lambda: tree(weight().to(torch.uint16), None, out()), T, "uint16 cast"),
    ("a list of floats", lambda: tree([1.0] * 6, None, out()), V, "scores ['fc']['weight']"),
    ("a float", lambda: tree(weight(), None, 1.0), T, "scores['out'] tensor float"),
    ("an amount", lambda: 0.5, T, "scores 0.5 amount=0.5 sparsity="),
    ("a name", lambda: "magnitude", T, "scores 'magnitude' gprune.scores.magnitude(params)"),
    ("a function", lambda: gp.scores.magnitude, T, "scores function magnitude; returns for params"),
    ("a partial", lambda: functools.partial(len), T, "scores function len; returns for params"),
    ("a method", lambda: gp.l1_unstructured, T, "scores pruning_method=l1_unstructured"),
    (
        "a class",
        lambda: L1Unstructured,
        T,
        "scores class pruning_method=gprune.l1 gprune.adapter",
    ),
    ("a module", lambda: torch.nn.Linear(1, 1), V, "scores structure params"),
    ("a string", lambda: tree(weight(), None, "1"), T, "scores['out'] tensor str"),
    ("sparse", lambda: tree(weight().to_sparse(), None, out()), T, "['fc']['weight'] to_dense"),
    ("nested", lambda: tree(weight(), None, nested()), T, "scores['out']"),
    ("on another device", lambda: tree(weight(), None, out().to("meta")), V, "scores['out'] meta"),
    (
        "int64 beyond 2^53",
        lambda: tree(weight(), None, torch.full((4,), 2**53 + 1)),
        V,
        "53 int64",
    ),
]
BAD_MASKS: list[tuple[str, Callable[[], Any], type[Exception], str]] = [
    (
        "no bias",
        lambda: {"fc": {"weight": weight().bool()}, "out": out().bool()},
        V,
        "masks structure bias",
    ),
    (
        "transposed",
        lambda: tree(weight().bool().t(), None, out().bool()),
        V,
        "masks['fc']['weight'] (3, 2) (2,",
    ),
    ("of one", lambda: tree(weight().bool(), None, out().bool()[:1]), V, "masks['out'] (1,) (4,)"),
    ("float", lambda: tree(weight(), None, out().bool()), T, "masks['fc']['weight'] float32 bool"),
    (
        "two dtypes",
        lambda: tree(weight().byte(), None, out().int()),
        T,
        "masks['fc']['weight'] uint8 masks['out'] int32",
    ),
    ("a bool", lambda: tree(weight().bool(), None, True), T, "masks['out'] tensor bool"),
    (
        "sparse",
        lambda: tree(weight().bool().to_sparse(), None, out().bool()),
        T,
        "masks['fc']['weight'] to_dense",
    ),
]
AT_HOLES = [
    (
        "a mask at a `None` leaf",
        lambda: tree(weight().bool(), torch.ones(2).bool(), out().bool()),
        V,
        "masks['fc']['bias'] None",
    )
]
FOR_SELECTION = [
    *BAD_MASKS,
    *AT_HOLES,
    ("None at every leaf", lambda: tree(None, None, None), V, "masks None keep_all(params)"),
]

BAD_PARAMS: list[tuple[str, Any, type[Exception], str]] = [
    ("None", None, V, "params prunable"),
    ("an empty dict", {}, V, "params prunable"),
    ("an empty list", [], V, "params prunable"),
    ("`None` leaves only", {"a": None}, V, "params prunable"),
    ("nested `None` leaves", [None, (None, {})], V, "params prunable"),
    ("a float", {"a": {"b": 1.0}}, T, "params['a']['b'] float"),
    ("a string", Make(lambda: [torch.ones(2), "x"]), T, "params[1] str"),
    ("a module", Make(lambda: torch.nn.Linear(1, 1)), T, "params module"),
    ("sparse", Make(lambda: {"a": torch.eye(2).to_sparse()}), T, "params['a'] to_dense"),
    ("nested", Make(lambda: [nested()]), T, "params[0]"),
    ("uninitialized", Make(lambda: [torch.nn.UninitializedParameter()]), T, "params[0] initiali"),
]
UNRANKED = [
    ("bool", Make(lambda: {"a": torch.ones(2).bool()}), T, "params['a'] bool cast"),
    ("complex", Make(lambda: {"a": torch.ones(2).cfloat()}), T, "params['a'] complex64 cast"),
]

SELECTIONS = [
    row
    for function, more in LIFTED
    for row in (
        *(
            bad(function, f"scores: {what}", error, words, PARAMS, Make(scores), **more)
            for what, scores, error, words in BAD_SCORES
        ),
        *(
            bad(function, f"masks: {what}", error, words, PARAMS, masks=Make(masks), **more)
            for what, masks, error, words in FOR_SELECTION
        ),
        *(
            bad(function, f"params: {what}", error, words, params, **more)
            for what, params, error, words in [*BAD_PARAMS, *UNRANKED]
        ),
    )
]
VECTOR = Make(lambda: (torch.tensor([1.0]), 2))
MATRIX_OF_ONE = Make(lambda: (torch.tensor([[1.0]]), torch.tensor([[2]])))
AT_A_THRESHOLD = [
    *(
        bad(
            gp.masks_from_threshold,
            f"scores: {what}",
            error,
            words,
            THRESHOLD,
            PARAMS,
            Make(scores),
        )
        for what, scores, error, words in BAD_SCORES
    ),
    *(
        bad(
            gp.masks_from_threshold,
            f"masks: {what}",
            error,
            words,
            THRESHOLD,
            PARAMS,
            masks=Make(masks),
        )
        for what, masks, error, words in FOR_SELECTION
    ),
    *(
        bad(gp.masks_from_threshold, f"params: {what}", error, words, THRESHOLD, params)
        for what, params, error, words in [*BAD_PARAMS, *UNRANKED]
    ),
    bad(gp.masks_from_threshold, "a number", T, "threshold Threshold int", 3, PARAMS),
    bad(gp.masks_from_threshold, "three numbers", T, "threshold", (1.0, 2, 3), PARAMS),
    bad(
        gp.masks_from_threshold,
        "a value that is a string",
        T,
        "threshold.value '1'",
        ("1", 2),
        PARAMS,
    ),
    bad(
        gp.masks_from_threshold,
        "several values and one index",
        V,
        "threshold.value (1,) threshold.flat_index ()",
        VECTOR,
        PARAMS,
    ),
    bad(
        gp.masks_from_threshold,
        "a value with two dimensions",
        V,
        "threshold.value 0-dim 1-D (1, 1)",
        MATRIX_OF_ONE,
        PARAMS,
    ),
    bad(
        gp.masks_from_threshold, "an index that is a float", T, "flat_index 2.0", (1.0, 2.0), PARAMS
    ),
    bad(
        gp.masks_from_threshold, "an index beyond 64 bits", V, "flat_index 64", (1.0, 2**63), PARAMS
    ),
]

# --- methods ----------------------------------------------------------------------------------


def unmarked(param: torch.Tensor, scores: Any, *, mask: torch.Tensor) -> torch.Tensor:
    return mask


class Typed:
    """It has a type, and is no method."""

    PRUNING_TYPE = "unstructured"


def returns(how: Callable[[], Any]) -> Any:
    @gp.pruning_method("unstructured")
    def method(param: torch.Tensor, scores: Any, *, mask: torch.Tensor) -> Any:
        return how()

    return method


@gp.pruning_method("structured")
def structured(param: torch.Tensor, scores: Any, *, mask: torch.Tensor) -> torch.Tensor:
    return mask


@gp.pruning_method("unstructured")
def pruned_by_hand(param: torch.Tensor, scores: Any, *, mask: torch.Tensor) -> torch.Tensor:
    return mask


positional = functools.partial(gp.lowest_unstructured, torch.ones(10))

FLOORS: list[tuple[str, Any, type[Exception], str]] = [
    ("a string", "1", T, "min_per_leaf '1'"),
    ("a bool", True, T, "min_per_leaf True"),
    ("a list", [1], T, "min_per_leaf [1]"),
    ("numbers", number([1, 2]), V, "min_per_leaf 0-dim (2,)"),
    ("negative", -1, V, "min_per_leaf negative -1"),
    ("a negative fraction", -0.5, V, "min_per_leaf negative -0.5"),
    ("a percentage", 20.0, V, "min_per_leaf 20.0 mean 0.2?"),
    ("NaN", math.nan, V, "min_per_leaf nan"),
    ("more than the amount leaves", 2, V, "amount 7 of 10 min_per_leaf 2 most 6"),
    ("a fraction that leaves too few", 0.5, V, "amount 7 of 10 min_per_leaf 0.5 most 5"),
]
FLOORED = [
    bad(gp.global_unstructured, f"floor: {what}", e, words, PARAMS, amount=7, min_per_leaf=floor)
    for what, floor, e, words in FLOORS
] + [
    bad(
        gp.global_unstructured,
        "floor: for a user's method",
        T,
        "pruned_by_hand min_per_leaf method of gprune",
        PARAMS,
        pruning_method=pruned_by_hand,
        min_per_leaf=1,
    ),
    bad(
        gp.layerwise,
        "floor: for each leaf alone",
        T,
        "lowest_unstructured() 'min_per_leaf'",
        PARAMS,
        amount=1,
        min_per_leaf=1,
    ),
]

GIVEN_METHODS: list[tuple[str, Any, dict[str, Any], type[Exception], str]] = [
    ("unmarked", unmarked, {}, T, "unmarked pruning_method"),
    ("an object with a type", Typed(), {}, T, "Typed pruning_method"),
    ("a string", "lowest", {}, T, "method 'lowest' gprune.l1_unstructured"),
    ("None", None, {}, T, "None pruning_method"),
    ("structured", structured, {}, T, "structured layerwise"),
    ("a structured partial", functools.partial(structured), {}, T, "structured layerwise"),
    ("a positional partial", positional, {}, T, "keyword"),
    (
        "colour",
        gp.lowest_unstructured,
        {"amount": 1, "colour": 3},
        T,
        "lowest_unstructured() 'colour'",
    ),
    (
        "colour for a partial",
        functools.partial(gp.l1_unstructured, amount=1),
        {"colour": 3},
        T,
        "l1_unstructured() 'colour'",
    ),
    (
        "lowest with a seed",
        gp.lowest_unstructured,
        {"amount": 1, "seed": 3},
        T,
        "lowest_unstructured() 'seed'",
    ),
    (
        "random without a seed",
        gp.random_unstructured,
        {"amount": 1},
        T,
        "random_unstructured() missing 'seed'",
    ),
    ("a float seed", gp.random_unstructured, {"amount": 1, "seed": 0.5}, T, "seed 0.5"),
    ("a bool seed", gp.random_unstructured, {"amount": 1, "seed": True}, T, "seed True"),
    ("a string seed", gp.random_unstructured, {"amount": 1, "seed": "x"}, T, "seed 'x'"),
    ("a large seed", gp.random_unstructured, {"amount": 1, "seed": 2**64}, V, "seed 64"),
    ("identity with an amount", gp.identity, {"amount": 1}, T, "identity() 'amount'"),
    ("an amount too many", returns(lambda: None), {"amount": 1}, T, "method() 'amount'"),
    ("too short", returns(lambda: torch.ones(9).bool()), {}, V, "method (10,) (9,)"),
    ("two dimensions", returns(lambda: torch.ones(2, 5).bool()), {}, V, "method (10,) (2, 5)"),
    ("floats", returns(lambda: torch.ones(10)), {}, V, "method bool float32"),
    ("a list", returns(lambda: [True] * 10), {}, V, "method bool"),
    ("nothing", returns(lambda: None), {}, V, "method None"),
]
METHODS = [
    bad(function, f"method: {what}", error, words, first, pruning_method=method, **more)
    for function, first in [(gp.global_unstructured, PARAMS), (gp.layerwise, LEAF)]
    for what, method, more, error, words in GIVEN_METHODS
    # layerwise takes structured methods, and calls a method with the leaf as it is
    if function is gp.global_unstructured or "structured" not in what
]

DIMS: list[tuple[str, Any, type[Exception], str]] = [
    ("a float", 0.5, T, "dim 0.5"),
    ("a bool", True, T, "dim True"),
    ("a string", "0", T, "dim '0'"),
    ("no dims", (), T, "dim ()"),
    ("a set", {0}, T, "dim {0}"),
    ("beyond the last", 1, V, "dim 1 (10,)"),
    ("before the first", -2, V, "dim -2 (10,)"),
    ("one dim twice", (0, -1), V, "dim (0, -1) once"),
    ("a function to a float", lambda path, leaf: 0.5, T, "dim function 0.5"),
    ("a function to a dim beyond the last", lambda path, leaf: (0, 3), V, "dim (0, 3) (10,)"),
]
WITHIN = [
    bad(function, f"dim is {what}", error, words, first, amount=1, dim=dim, **more)
    for function, first, more in TAKERS
    if function not in (gp.global_unstructured, gp.find_threshold)
    for what, dim, error, words in DIMS
] + [
    bad(gp.global_unstructured, "a dim", V, "dim layerwise", PARAMS, amount=1, dim=0),
    bad(
        gp.layerwise,
        "groups of a single entry",
        V,
        "params['out'] dim single (4, 1) prunable()",
        Make(lambda: tree(weight(), None, torch.ones(4, 1))),
        amount=0.5,
        dim=-1,
    ),
    bad(
        gp.layerwise,
        "groups of a single entry along two dims",
        V,
        "params['out'] dims (1, 2) single (4, 1, 1)",
        Make(lambda: tree(weight(), None, torch.ones(4, 1, 1))),
        amount=0.5,
        dim=gp.input_dims,
    ),
]

ONES = Make(lambda: torch.ones(3))
KEEP_TWO = Make(lambda: [torch.ones(2).bool()])
FOUR = Make(lambda: torch.ones(4).bool())
BOOL = Make(lambda: torch.ones(3).bool())
SPARSE = Make(lambda: torch.ones(3).to_sparse())
ONE_TENSOR: list[tuple[str, tuple[Any, ...], Any, type[Exception], str]] = [
    ("a longer mask", (ONES,), FOUR, V, "mask (4,) (3,)"),
    ("a float mask", (ONES,), ONES, T, "mask bool"),
    ("a list for a mask", (ONES,), [True] * 3, T, "mask list"),
    ("a sparse mask", (ONES,), Make(lambda: BOOL.how().to_sparse()), T, "mask to_dense"),
    ("a list for param", ([1.0, 2.0],), None, T, "param list"),
    ("a dict for param", ({"a": ONES},), None, T, "param dict layerwise"),
    ("None for param", (None,), None, T, "param NoneType"),
    ("a bool param", (BOOL,), None, T, "param bool cast"),
    ("a sparse param", (SPARSE,), None, T, "param to_dense"),
    ("a mask for scores", (ONES, BOOL), None, T, "scores bool cast mask="),
    ("a list for scores", (ONES, [1.0, 2.0]), None, T, "scores list"),
    ("longer scores", (ONES, Make(lambda: torch.ones(4))), None, V, "scores (4,) (3,)"),
    ("complex scores", (ONES, Make(lambda: torch.ones(3).cfloat())), None, T, "scores complex64"),
    ("sparse scores", (ONES, SPARSE), None, T, "scores to_dense"),
]
METHODS_OF_ONE_TENSOR = [
    bad(function, what, error, words, *args, mask=mask, **more)
    for function, more in [
        (gp.lowest_unstructured, {"amount": 1}),
        (gp.l1_unstructured, {"amount": 1}),
        (gp.random_unstructured, {"amount": 1, "seed": 0}),
        (gp.identity, {}),
    ]
    for what, args, mask, error, words in ONE_TENSOR
] + [
    bad(gp.random_unstructured, "a float seed", T, "seed 0.5", TEN, amount=1, seed=0.5),
    bad(gp.random_unstructured, "no seed", T, "random_unstructured seed", TEN, amount=1),
    bad(gp.input_dims, "a path alone", T, "leaf tensor NoneType", "fc.weight", None),
    bad(gp.pruning_method, "another kind", V, "unstructured 'global'", "global"),
    bad(gp.pruning_method, "no kind", V, "unstructured None", None),
]

# --- patterns -----------------------------------------------------------------------------------

MATRIX = Make(lambda: torch.arange(10.0).reshape(10, 1))
OF_GROUPS: list[tuple[Callable[..., Any], dict[str, Any]]] = [
    (gp.ln_structured, {"n": 2, "dim": 0}),
    (gp.random_structured, {"dim": 0, "seed": 0}),
    (gp.blocks, {"shape": (1, 1)}),
]
PATTERN_BUDGETS = [
    bad(function, f"{name} is {what}", error, f"{name} {words}", MATRIX, **{name: value}, **more)
    for function, more in OF_GROUPS
    for name in ("amount", "sparsity")
    for what, value, error, words in (NUMBERS if name == "amount" else [*NUMBERS, *ABOVE_ONE])
] + [
    bad(
        function,
        f"given {got}",
        T,
        f"{function.__name__}() amount sparsity",
        MATRIX,
        **budget,
        **more,
    )
    for function, more in OF_GROUPS
    for got, budget in [("neither", {}), ("both", {"amount": 1, "sparsity": 0.5})]
]
CHANNEL_DIMS: list[tuple[str, Any, type[Exception], str]] = [
    ("a float", 0.5, T, "dim int 0.5"),
    ("a bool", True, T, "dim int True"),
    ("a tuple", (0, 1), T, "dim int (0, 1)"),
    ("None", None, T, "dim int None"),
    ("beyond the last", 2, IndexError, "2 (10, 1)"),
    ("before the first", -3, IndexError, "-3 (10, 1)"),
]
PATTERN_ROWS = [
    bad(function, f"dim is {what}", error, words, MATRIX, amount=1, dim=dim, **more)
    for function, more in [(gp.ln_structured, {"n": 2}), (gp.random_structured, {"seed": 0})]
    for what, dim, error, words in CHANNEL_DIMS
] + [
    bad(gp.ln_structured, "a vector", V, "two dimensions (10,)", TEN, amount=1, n=2, dim=0),
    bad(gp.random_structured, "a vector", V, "two (10,)", TEN, amount=1, dim=0, seed=0),
    bad(gp.random_structured, "a float seed", T, "seed 0.5", MATRIX, amount=1, dim=0, seed=0.5),
    bad(gp.ln_structured, "another norm", T, "n 'l2'", MATRIX, amount=1, n="l2", dim=0),
    bad(gp.ln_structured, "a bool norm", T, "n True", MATRIX, amount=1, n=True, dim=0),
    bad(gp.ln_structured, "a complex norm", T, "n 1j", MATRIX, amount=1, n=1j, dim=0),
    bad(gp.ln_structured, "a NaN norm", V, "n nan", MATRIX, amount=1, n=math.nan, dim=0),
    bad(gp.ln_structured, "a tensor", T, "n tensor", MATRIX, amount=1, n=number(2), dim=0),
    bad(gp.ln_structured, "nuclear", V, "three (10, 1)", MATRIX, amount=1, n="nuc", dim=0),
    bad(
        gp.ln_structured,
        "a float mask",
        T,
        "mask float32",
        MATRIX,
        mask=MATRIX,
        amount=1,
        n=2,
        dim=0,
    ),
    bad(gp.ln_structured, "a longer mask", V, "mask (4,)", MATRIX, mask=FOUR, amount=1, n=2, dim=0),
    bad(gp.random_structured, "a list", T, "param list", [1.0], amount=1, dim=0, seed=0),
    bad(gp.n_of_m, "more than m", V, "n=5 m=4", TEN, n=5, m=4),
    bad(gp.n_of_m, "a negative n", V, "n=-1 m=4", TEN, n=-1, m=4),
    bad(gp.n_of_m, "an m of 0", V, "n=0 m=0", TEN, n=0, m=0),
    bad(gp.n_of_m, "a float n", T, "n 2.0", TEN, n=2.0, m=4),
    bad(gp.n_of_m, "a bool m", T, "m True", TEN, n=1, m=True),
    bad(gp.n_of_m, "a string dim", T, "dim '0'", TEN, n=1, m=2, dim="0"),
    bad(gp.n_of_m, "no such dim", V, "dim 1 (10,)", TEN, n=1, m=2, dim=1),
    bad(gp.n_of_m, "several dims", T, "dim int (0, 1)", MATRIX, n=1, m=2, dim=(0, 1)),
    bad(
        gp.n_of_m, "a function to dims", T, "(1,); out -> int", MATRIX, n=1, m=2, dim=gp.input_dims
    ),
    bad(gp.n_of_m, "a group of one", V, "dim 1 single (10, 1) prunable", MATRIX, n=1, m=2),
    bad(gp.n_of_m, "no dims", V, "dim 0 ()", Make(lambda: torch.tensor(1.0)), n=1, m=2),
    bad(gp.n_of_m, "a bool param", T, "param bool", FOUR, n=1, m=2),
    bad(gp.n_of_m, "a mask for scores", T, "scores mask=", FOUR, FOUR, n=1, m=2),
    bad(gp.blocks, "an int shape", T, "shape 2", TEN, amount=1, shape=2),
    bad(gp.blocks, "no shape", T, "shape ()", TEN, amount=1, shape=()),
    bad(gp.blocks, "a string shape", T, "shape '22'", TEN, amount=1, shape="22"),
    bad(gp.blocks, "a float shape", T, "shape (2.0,)", TEN, amount=1, shape=(2.0,)),
    bad(gp.blocks, "a block of nothing", V, "shape (0,)", TEN, amount=1, shape=(0,)),
    bad(gp.blocks, "too many dims", V, "(10,) (2, 2)", TEN, amount=1, shape=(2, 2)),
    bad(gp.check_n_of_m, "too many", V, "masks[0] 1 of 2 dim", KEEP_TWO, n=1, m=2),
    bad(
        gp.check_n_of_m,
        "groups of one",
        V,
        "masks[0] dim 0 single (1, 2)",
        Make(lambda: [torch.ones(1, 2).bool()]),
        n=1,
        m=2,
        dim=0,
    ),
    bad(gp.check_n_of_m, "scores", T, "masks[0] float32", Make(lambda: [torch.ones(2)]), n=1, m=2),
    bad(gp.check_n_of_m, "a float n", T, "n 0.5", KEEP_TWO, n=0.5, m=2),
    bad(gp.check_n_of_m, "more than m", V, "n=3 m=2", KEEP_TWO, n=3, m=2),
]

# --- masks, scores, schedules -----------------------------------------------------------------

NO_TENSORS: list[tuple[str, Any, str]] = [
    ("sparse", Make(lambda: {"a": torch.eye(2).bool().to_sparse()}), "['a'] to_dense"),
    ("nested", Make(lambda: [nested()]), "[0]"),
    ("uninitialized", Make(lambda: [torch.nn.UninitializedParameter()]), "[0] initiali"),
    ("a float", {"a": 1.0}, "['a'] float"),
    ("two leaves", {"a": 1.0, "b": ["x"]}, "['a'] float ['b'][0] str"),
]
ON_MASKS = [
    bad(function, f"masks: {what}", error, words, PARAMS, Make(masks))
    for function in (gp.apply_masks, gp.straight_through, gp.summary)
    for what, masks, error, words in [*BAD_MASKS, *AT_HOLES]
] + [
    row
    for what, value, words in NO_TENSORS
    for row in (
        *(
            bad(function, what, T, f"params{words}", value, value)
            for function in (gp.apply_masks, gp.straight_through, gp.summary)
        ),
        bad(gp.keep_all, what, T, f"params{words}", value),
        bad(gp.masks_from_zeros, what, T, f"params{words}", value),
        bad(gp.scores.magnitude, what, T, f"params{words}", value),
        bad(gp.scores.random, what, T, f"params{words}", value, seed=0),
        bad(gp.num_pruned, what, T, f"masks{words}", value),
        bad(gp.sparsity, what, T, f"masks{words}", value),
        bad(gp.intersect, what, T, f"masks[0]{words}", value),
    )
]
NO_MASKS = Make(lambda: tree(None, None, None))
KEEP_THREE = Make(lambda: [torch.ones(3).bool()])
REST = [
    bad(gp.num_pruned, "scores", T, "masks[0] float32 bool", Make(lambda: [torch.ones(2)])),
    bad(gp.sparsity, "scores", T, "masks[0] float32 bool", Make(lambda: [torch.ones(2)])),
    bad(gp.intersect, "nothing", T, "intersect() at least one"),
    bad(
        gp.intersect,
        "other `None` leaves",
        V,
        "masks[1][0] None masks[0][0] tensor",
        KEEP_TWO,
        [None],
    ),
    bad(
        gp.intersect,
        "other shapes",
        V,
        "masks[1][0] (3,) masks[0][0] (2,)",
        KEEP_TWO,
        Make(lambda: [torch.ones(3).bool()]),
    ),
    bad(gp.intersect, "other structures", V, "masks[1] structure masks[0]", KEEP_TWO, []),
    bad(gp.intersect, "floats", T, "masks[1][0] float32", KEEP_TWO, Make(lambda: [torch.ones(2)])),
    bad(gp.pack_masks, "floats", T, "masks[0] float32 bool", Make(lambda: [torch.ones(2)])),
    bad(gp.pack_masks, "a number", T, "masks[0] tensor int", [1]),
    *(
        bad(gp.unpack_masks, what, error, words, packed, PARAMS)
        for what, packed, error, words in [
            (
                "masks",
                Make(lambda: tree(weight() > 0, None, None)),
                T,
                "packed['fc']['weight'] bool",
            ),
            ("a list", Make(lambda: [torch.ones(1)]), V, "packed structure params"),
            ("a number", Make(lambda: tree(1, None, None)), T, "packed['fc']['weight'] int"),
            (
                "too long",
                Make(lambda: tree(BYTE.how(), None, torch.zeros(2).byte())),
                V,
                "packed['out'] (2,) (4,) (1,)",
            ),
            (
                "not flat",
                Make(lambda: tree(BYTE.how().view(1, 1), None, None)),
                V,
                "packed['fc']['weight'] (1, 1) (2, 3) (1,)",
            ),
            (
                "at a `None` leaf",
                Make(lambda: tree(None, BYTE.how(), None)),
                V,
                "packed['fc']['bias'] None",
            ),
            (
                "on another device",
                Make(lambda: tree(BYTE.how().to("meta"), None, None)),
                V,
                "packed['fc']['weight'] meta cpu",
            ),
        ]
    ),
    *(
        bad(function, what, T, f"{name} {words}", params)
        for function, name in [(gp.prunable, "params"), (gp.vmap_dims, "tree")]
        for what, params, words in [
            ("a module", MODULE, "module dict(module.named_parameters())"),
            (
                "a module in a dict",
                Make(lambda: {"fc": MODULE.how()}),
                "module dict(module.named_parameters())",
            ),
            (
                "a generator",
                Make(lambda: MODULE.how().parameters()),
                "generator dict(module.named_parameters())",
            ),
        ]
    ),
    bad(gp.prunable, "a string for a tree", T, "params tree 'fc.weight'", "fc.weight"),
    bad(gp.prunable, "a number", T, "where 3", PARAMS, 3),
    bad(gp.prunable, "a list with a number", T, "where ['a', 3]", PARAMS, ["a", 3]),
    bad(gp.prunable, "a tensor", T, "where tensor", PARAMS, Make(lambda: torch.ones(2))),
    bad(gp.prunable, "a set", T, "where {'a'}", PARAMS, {"a"}),
    bad(gp.prunable, "a number to exclude", T, "exclude 3", PARAMS, exclude=3),
    bad(
        gp.straight_through,
        "float8",
        T,
        "params['a'] float8_e5m2 cast",
        Make(lambda: {"a": torch.ones(2).to(torch.float8_e5m2)}),
        Make(lambda: {"a": torch.ones(2).bool()}),
    ),
    *(
        bad(gp.straight_through, f"decay is {what}", error, words, PARAMS, NO_MASKS, decay=decay)
        for what, decay, error, words in [
            ("a string", "x", T, "decay 'x'"),
            ("a bool", True, T, "decay True"),
            ("negative", -0.5, V, "decay negative -0.5"),
            ("NaN", math.nan, V, "decay finite nan"),
            ("infinite", math.inf, V, "decay finite inf"),
            ("a negative tensor", number(-0.5), V, "decay negative tensor(-0.5000)"),
            ("an infinite tensor", number(math.inf), V, "decay finite tensor(inf)"),
            ("a bool tensor", number(True), T, "decay bool"),
            ("two numbers", number([0.5, 0.5]), V, "decay 0-dim (2,)"),
        ]
    ),
    bad(gp.scores.magnitude, "bool", T, "bool cast", Make(lambda: [torch.ones(2).bool()])),
    bad(gp.scores.random, "a float seed", T, "seed 0.5", PARAMS, seed=0.5),
    bad(gp.scores.random, "no seed", T, "seed", PARAMS),
    bad(gp.scores.random, "a bool seed", T, "seed True", PARAMS, seed=True),
    bad(gp.scores.random, "seeds", V, "seed 0-dim (2,)", PARAMS, seed=number([1, 2])),
    bad(gp.scores.random, "a large seed", V, "seed 64", PARAMS, seed=-(2**64)),
]

# --- scores of gradients, losses and forward passes -------------------------------------------


def loss(params: Any, *args: Any) -> torch.Tensor:
    return (params["fc"]["weight"] ** 2).sum() + (params["out"] ** 3).sum()


def a_loss_for_each(params: Any, *args: Any) -> torch.Tensor:
    return params["out"] ** 2


def integers(params: Any, *args: Any) -> torch.Tensor:
    return (params["out"] > 0).sum()


def a_float(params: Any, *args: Any) -> float:
    return float(params["out"].detach().sum())


def a_pole(params: Any, *args: Any) -> torch.Tensor:
    """The gradient of one leaf is infinite, for the weight 0 is in it."""
    return params["fc"]["weight"].abs().sqrt().sum() + (params["out"] ** 2).sum()


def forward(params: Any, x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.linear(x, params["fc"]["weight"])


def unseen(params: Any, x: torch.Tensor) -> torch.Tensor:
    return x @ params["fc"]["weight"].T.clone()


def overflowing(params: Any, x: torch.Tensor) -> torch.Tensor:
    return forward(params, x).sum() * 1e30 * params["out"].sum() * 1e30


Sc = gp.scores
EXAMPLES = Make(lambda: torch.ones(2, 3))
BATCHES = Make(lambda: [torch.ones(2, 3)])
NAN = Make(lambda: tree(weight(), None, torch.tensor([1.0, math.nan, 1.0, 1.0])))
NO_OUT = Make(lambda: tree(weight(), None, None))
INTEGERS = Make(lambda: tree(weight(), None, torch.ones(4, dtype=torch.int64)))
TWO_INTEGERS = Make(lambda: tree(weight().int(), None, torch.ones(4, dtype=torch.int64)))
FLOAT8 = Make(lambda: tree(weight(), None, out().to(torch.float8_e5m2)))
SHORT = Make(lambda: tree(weight(), None, torch.ones(3)))
OTHER = Make(lambda: [weight(), None, out()])

LOSSES: list[tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]] = [
    (Sc.snip, (), {}),
    (Sc.grasp, (), {}),
    (Sc.fisher, (EXAMPLES,), {}),
    (Sc.hessian_diagonal, (), {"seed": 0}),
]
OF_A_LOSS = [
    row
    for score, args, more in LOSSES
    for row in (
        bad(
            score,
            "a loss of shape (4,)",
            V,
            "loss_fn (4,) mean",
            a_loss_for_each,
            PARAMS,
            *args,
            **more,
        ),
        bad(score, "an integer loss", T, "loss_fn int64", integers, PARAMS, *args, **more),
        bad(score, "a loss that is a float", T, "loss_fn float", a_float, PARAMS, *args, **more),
        bad(score, "no loss", T, "function str", "loss", PARAMS, *args, **more),
        bad(
            score,
            "an infinite gradient",
            V,
            "['fc']['weight'] infinity",
            a_pole,
            PARAMS,
            *args,
            **more,
        ),
        bad(score, "a NaN parameter", V, "['out'] NaN", loss, NAN, *args, **more),
        bad(score, "an integer leaf", T, "params['out'] int64 None", loss, INTEGERS, *args, **more),
        bad(
            score,
            "two integer leaves",
            T,
            "['weight'] int32 ['out'] int64",
            loss,
            TWO_INTEGERS,
            *args,
            **more,
        ),
        bad(score, "float8", T, "params['out'] float8 cast", loss, FLOAT8, *args, **more),
        bad(score, "no tensor", V, "params tensor", loss, {"a": None}, *args, **more),
        bad(
            score,
            "a module",
            T,
            "params module",
            loss,
            Make(lambda: torch.nn.Linear(1, 1)),
            *args,
            **more,
        ),
    )
]
PAIRS: list[tuple[Callable[..., Any], str, Callable[[Any], tuple[Any, ...]]]] = [
    (Sc.taylor, "grads", lambda grads: (PARAMS, grads)),
    (Sc.obd, "diagonal", lambda diagonal: (PARAMS, diagonal)),
    (Sc.movement, "scores", lambda scores: (scores, PARAMS, PARAMS)),
    (Sc.movement, "grads", lambda grads: (PARAMS, PARAMS, grads)),
    (Sc.wanda, "input_norms", lambda norms: (PARAMS, norms)),
    (Sc.ria, "input_norms", lambda norms: (PARAMS, norms)),
]
OF_PAIRS = [
    row
    for score, name, call in PAIRS
    for row in (
        bad(score, f"NaN in {name}", V, f"{name}['out'] NaN", *call(NAN)),
        bad(score, f"integers in {name}", T, f"{name}['out'] int64", *call(INTEGERS)),
        bad(score, f"a short leaf of {name}", V, f"{name}['out'] (3,) (4,)", *call(SHORT)),
        bad(score, f"another structure of {name}", V, f"{name} structure", *call(OTHER)),
        bad(
            score,
            f"no leaf of {name}",
            V,
            "['out'] None"
            if score not in (Sc.wanda, Sc.ria)
            else "linear convolution params['out'] exclude=['out']",
            *call(NO_OUT),
        ),
    )
] + [
    row
    for score, call in [
        (Sc.taylor, lambda params: (params, PARAMS)),
        (Sc.obd, lambda params: (params, PARAMS)),
        (Sc.movement, lambda params: (PARAMS, params, PARAMS)),
        (Sc.wanda, lambda params: (params, PARAMS)),
        (Sc.ria, lambda params: (params, PARAMS)),
        (Sc.normalize_l2, lambda scores: (scores,)),
        (Sc.lamp, lambda params: (params,)),
    ]
    for row in (
        bad(score, "NaN", V, "['out'] NaN", *call(NAN)),
        bad(score, "an integer leaf", T, "['out'] int64 None", *call(INTEGERS)),
        bad(score, "a float", T, "['a'] float", *call({"a": 1.0})),
    )
]
NEGATIVE = [
    bad(
        Sc.normalize_l2,
        "weights",
        V,
        "scores['fc']['weight'] negative magnitude(params)",
        SIGNED,
    ),
    *(
        bad(
            score,
            "negative norms",
            V,
            "input_norms['fc']['weight'] negative params",
            PARAMS,
            SIGNED,
        )
        for score in (Sc.wanda, Sc.ria)
    ),
]
OF_RIA = [
    bad(Sc.ria, what, error, words, PARAMS, PARAMS, **more)
    for what, error, words, more in [
        ("a string for a power", T, "power 'x'", {"power": "x"}),
        ("a bool for a power", T, "power True", {"power": True}),
        ("a tensor for a power", T, "power tensor(1.)", {"power": number(1.0)}),
        ("a negative power", V, "power negative -1", {"power": -1}),
        ("an infinite power", V, "power finite inf", {"power": math.inf}),
        ("no such dim", V, "params['out'] dim 1 (4,)", {"dim": 1}),
        ("a string for a dim", T, "params['fc']['weight'] dim 'x'", {"dim": "x"}),
        ("one dim twice", V, "params['out'] dim once (0, -1)", {"dim": (0, -1)}),
    ]
]
MODULE = Make(lambda: torch.nn.Linear(3, 2))
NO_FUNCTIONS = [
    bad(function, what, T, f"{name} {words}", value, *rest, **more)
    for function, name, rest, more in [
        (Sc.input_norms, "forward", (PARAMS, BATCHES), {}),
        (Sc.input_gram, "forward", (PARAMS, BATCHES), {}),
        (Sc.synflow, "forward", (PARAMS, (1, 3)), {}),
        (Sc.iterative_synflow, "forward", (PARAMS, (1, 3)), {"sparsity": 0.5}),
        (Sc.snip, "loss_fn", (PARAMS,), {}),
        (Sc.grasp, "loss_fn", (PARAMS,), {}),
        (Sc.fisher, "loss_fn", (PARAMS, EXAMPLES), {}),
        (Sc.hessian_diagonal, "loss_fn", (PARAMS,), {"seed": 0}),
        (Sc.accumulate, "grad_fn", (BATCHES,), {}),
    ]
    for what, value, words in [
        ("a module for a function", MODULE, "Linear functional_call(module, params, args)"),
        ("the parameters first", PARAMS, "function dict"),
    ]
] + [
    bad(function, what, T, f"batches {words}", *first, batches)
    for function, first in [
        (Sc.input_norms, (forward, PARAMS)),
        (Sc.input_gram, (forward, PARAMS)),
        (Sc.accumulate, (forward,)),
    ]
    for what, batches, words in [
        ("one tensor for batches", Make(lambda: torch.ones(2, 3)), "(2, 3) rows [tensor]"),
        ("one dict for batches", Make(lambda: {"x": torch.ones(2, 3)}), "dict keys [batch]"),
        ("None for batches", None, "None [batch]"),
    ]
]
OF_A_FORWARD = [
    bad(Sc.synflow, "integers", T, "forward int64", integers, PARAMS, (1, 3)),
    bad(Sc.synflow, "a list", T, "forward list", lambda params, x: [x], PARAMS, (1, 3)),
    bad(
        Sc.synflow,
        "an overflow",
        V,
        "flow['fc']['weight'] flow['out'] float64",
        overflowing,
        PARAMS,
        (1, 3),
    ),
    bad(Sc.synflow, "an integer leaf", T, "params['out'] int64", forward, INTEGERS, (1, 3)),
    bad(Sc.synflow, "a float in the shape", T, "input_shape 3.0", forward, PARAMS, (1, 3.0)),
    bad(Sc.synflow, "a negative size", V, "input_shape -1", forward, PARAMS, (-1, 3)),
    bad(Sc.synflow, "a number for a shape", T, "int", forward, PARAMS, 3),
    *(
        bad(
            Sc.iterative_synflow,
            what,
            error,
            words,
            forward,
            PARAMS,
            (1, 3),
            **{"sparsity": 0.5, **more},
        )
        for what, error, words, more in [
            ("a sparsity of 80", V, "sparsity 80", {"sparsity": 80}),
            ("a string for a sparsity", T, "sparsity 'x'", {"sparsity": "x"}),
            ("no rounds", V, "rounds 0", {"rounds": 0}),
            ("a float for rounds", T, "rounds 2.0", {"rounds": 2.0}),
            (
                "masks that do not fit",
                V,
                "masks['out'] (3,) (4,)",
                {"masks": Make(lambda: tree(None, None, torch.ones(3).bool()))},
            ),
            (
                "masks of another structure",
                V,
                "masks structure params",
                {"masks": Make(lambda: [torch.ones(4).bool()])},
            ),
        ]
    ),
    bad(
        Sc.iterative_synflow, "integers", T, "forward int64", integers, PARAMS, (1, 3), sparsity=0.5
    ),
    bad(Sc.input_norms, "no batches", V, "batches empty", forward, PARAMS, []),
    bad(
        Sc.input_norms,
        "an exhausted iterator",
        V,
        "batches empty",
        forward,
        PARAMS,
        Make(lambda: iter(())),
    ),
    bad(Sc.input_norms, "a number for batches", T, "iterable", forward, PARAMS, 3),
    bad(
        Sc.input_norms, "nothing is seen", V, "forward linear convolution", unseen, PARAMS, BATCHES
    ),
    bad(
        Sc.input_norms,
        "an infinite input",
        V,
        "['fc']['weight'] infinity",
        forward,
        PARAMS,
        Make(lambda: [torch.full((2, 3), math.inf)]),
    ),
    bad(Sc.input_norms, "an integer leaf", T, "params['out'] int64", forward, INTEGERS, BATCHES),
]
OF_MANY = [
    bad(
        Sc.taylor,
        "an overflow",
        V,
        "params[0] overflows float64",
        Make(lambda: [torch.full((2,), 1e30)]),
        Make(lambda: [torch.full((2,), 1e30)]),
    ),
    bad(
        Sc.taylor,
        "an overflow in float64",
        V,
        "params[0] overflows scale",
        Make(lambda: [torch.full((2,), 1e200, dtype=torch.float64)]),
        Make(lambda: [torch.full((2,), 1e200, dtype=torch.float64)]),
    ),
    bad(Sc.fisher, "no examples", V, "args", loss, PARAMS),
    bad(
        Sc.fisher,
        "an empty batch",
        V,
        "args examples",
        loss,
        PARAMS,
        Make(lambda: torch.ones(0, 3)),
    ),
    bad(Sc.fisher, "a number among examples", V, "args[1] ()", loss, PARAMS, EXAMPLES, number(3.0)),
    bad(Sc.fisher, "a float for examples", T, "args[0] float", loss, PARAMS, 1.0),
    bad(
        Sc.fisher,
        "other numbers of examples",
        V,
        "args[0] (2,) args[1] (3,)",
        loss,
        PARAMS,
        EXAMPLES,
        Make(lambda: torch.ones(3)),
    ),
    bad(Sc.fisher, "no chunk", V, "chunk_size 0", loss, PARAMS, EXAMPLES, chunk_size=0),
    bad(
        Sc.fisher,
        "a float for a chunk",
        T,
        "chunk_size 2.0",
        loss,
        PARAMS,
        EXAMPLES,
        chunk_size=2.0,
    ),
    bad(Sc.hessian_diagonal, "no seed", T, "seed", loss, PARAMS),
    bad(Sc.hessian_diagonal, "a float seed", T, "seed 0.5", loss, PARAMS, seed=0.5),
    bad(Sc.hessian_diagonal, "no probes", V, "num_probes 0", loss, PARAMS, seed=0, num_probes=0),
    bad(
        Sc.hessian_diagonal,
        "a bool for probes",
        T,
        "num_probes True",
        loss,
        PARAMS,
        seed=0,
        num_probes=True,
    ),
    bad(Sc.accumulate, "no batches", V, "batches empty", lambda batch: batch, []),
    bad(
        Sc.accumulate,
        "an exhausted iterator",
        V,
        "batches empty",
        lambda batch: batch,
        Make(lambda: iter(())),
    ),
    bad(Sc.accumulate, "a number for batches", T, "iterable", lambda batch: batch, 3),
    bad(
        Sc.accumulate,
        "NaN in the second batch",
        V,
        "grads['out'] NaN",
        lambda batch: batch,
        Make(lambda: [PARAMS.how(), NAN.how()]),
    ),
    bad(
        Sc.accumulate,
        "another structure",
        V,
        "grads structure",
        lambda batch: batch,
        Make(lambda: [PARAMS.how(), OTHER.how()]),
    ),
    bad(
        Sc.accumulate,
        "a leaf less",
        V,
        "grads['out'] None zeros",
        lambda batch: batch,
        Make(lambda: [PARAMS.how(), NO_OUT.how()]),
    ),
    bad(
        Sc.accumulate,
        "a leaf less at first",
        V,
        "grads['out'] None zeros",
        lambda batch: batch,
        Make(lambda: [NO_OUT.how(), PARAMS.how()]),
    ),
    bad(
        Sc.accumulate,
        "integers",
        T,
        "grads['out'] int64",
        lambda batch: batch,
        Make(lambda: [INTEGERS.how()]),
    ),
]

S = gp.schedules
RAMP: dict[str, Any] = {"begin": 0, "end": 10}
SCHEDULED: list[tuple[Callable[..., Any], dict[str, Any]]] = [
    (S.constant, {}),
    (S.one_shot, {"step": 3}),
    (S.linear, RAMP),
    (S.polynomial, RAMP),
    (S.exponential, RAMP),
    (S.cosine, RAMP),
]
SCHEDULES = [
    bad(function, f"sparsity is {value!r}", error, f"sparsity {value!r}", value, **more)
    for function, more in SCHEDULED
    for value, error in [
        ("x", T),
        (True, T),
        (None, T),
        (1j, T),
        (-0.5, V),
        (1.5, V),
        (80, V),
        (math.nan, V),
    ]
] + [
    bad(S.linear, "begin is end", V, "begin=5 end=5", 0.5, begin=5, end=5),
    bad(S.polynomial, "begin is after end", V, "begin=6 end=5", 0.5, begin=6, end=5),
    bad(S.linear, "initial above 1", V, "initial 2", 0.5, initial=2, **RAMP),
    bad(S.polynomial, "initial is a string", T, "initial 'x'", 0.5, initial="x", **RAMP),
    bad(S.polynomial, "a power of 0", V, "power 0", 0.5, power=0, **RAMP),
    bad(S.polynomial, "a negative power", V, "power -1", 0.5, power=-1, **RAMP),
    bad(S.one_shot, "no step", T, "step", 0.5),
    bad(S.one_shot, "a string step", T, "step 'x'", 0.5, step="x"),
    bad(S.one_shot, "steps", T, "step tensor", 0.5, step=number([1, 2])),
    bad(S.linear, "begins", T, "begin tensor", 0.5, begin=number([1, 2]), end=3),
    bad(S.linear, "a string end", T, "end 'x'", 0.5, begin=1, end="x"),
    bad(S.polynomial, "ends", T, "end tensor", 0.5, begin=1, end=number([1, 2])),
    bad(S.polynomial, "powers", T, "power tensor", 0.5, power=number([1, 2]), **RAMP),
    bad(S.exponential, "all", V, "exponential below 1", 1.0, **RAMP),
    bad(S.exponential, "all at first", V, "exponential below 1", 0.5, initial=1, **RAMP),
    bad(S.cosine, "begin is end", V, "begin=5 end=5", 0.5, begin=5, end=5),
    bad(S.every, "a float begin", T, "begin 0.5", 3, begin=0.5, end=9, freq=1),
    bad(S.every, "a bool end", T, "end True", 3, begin=0, end=True, freq=1),
    bad(S.every, "a tensor for freq", T, "freq tensor", 3, begin=0, end=9, freq=number(1)),
    bad(S.every, "a freq of 0", V, "freq 0", 3, begin=0, end=9, freq=0),
    bad(S.every, "an end before begin", V, "begin=9 end=0", 3, begin=9, end=0, freq=1),
    bad(S.polynomial, "a bool power", T, "power True", 0.5, power=True, **RAMP),
]

# --- allocation -----------------------------------------------------------------------------------

A = gp.allocation
ALLOCATIONS = (
    [
        bad(function, f"sparsity is {what}", error, f"sparsity {words}", PARAMS, sparsity=value)
        for function in (A.uniform, A.erdos_renyi)
        for what, value, error, words in [*NUMBERS, *ABOVE_ONE]
    ]
    + [
        bad(function, what, error, words, PARAMS, sparsity=0.5, **more)
        for function in (A.uniform, A.erdos_renyi)
        for what, more, error, words in [
            ("a list of overrides", {"overrides": [0.5]}, T, "overrides dict globs 'head.*' [0.5]"),
            ("a key that is no glob", {"overrides": {3: 0.5}}, T, "overrides globs 3"),
            ("a string override", {"overrides": {"fc*": "x"}}, T, "overrides['fc*'] 'x'"),
            ("a bool override", {"overrides": {"fc*": True}}, T, "overrides['fc*'] True"),
            ("an override above 1", {"overrides": {"fc*": 1.5}}, V, "overrides['fc*'] 1.5"),
            ("a percentage", {"overrides": {"fc*": 80}}, V, "overrides['fc*'] 80; mean 0.8"),
            ("a NaN override", {"overrides": {"fc*": math.nan}}, V, "overrides['fc*'] nan"),
            ("a glob for a `None` leaf", {"overrides": {"fc.bias": 0}}, V, "'fc.bias' 'fc.weight'"),
            ("too dense overrides", {"overrides": {"*": 0}}, V, "sparsity 5 of 10 10"),
            ("a float floor", {"min_kept": 0.5}, T, "min_kept 0.5"),
            ("a bool floor", {"min_kept": True}, T, "min_kept True"),
            ("a negative floor", {"min_kept": -1}, V, "min_kept -1"),
            ("a floor beyond the total", {"min_kept": 4}, V, "sparsity 5 min_kept 8"),
        ]
    ]
    + [
        bad(A.erdos_renyi, "a string kernel", T, "kernel 'x'", PARAMS, sparsity=0.5, kernel="x"),
        bad(A.uniform, "a float", T, "params['a'] float", {"a": 1.0}, sparsity=0.5),
        bad(A.erdos_renyi, "a float", T, "params['a'] float", {"a": 1.0}, sparsity=0.5),
        bad(A.erdos_renyi, "no sparsity", T, "sparsity", PARAMS),
    ]
    + [
        bad(A.owl, what, error, words, PARAMS, scores, **{"sparsity": 0.5, "group": len, **more})
        for what, scores, more, error, words in [
            *(
                (f"sparsity is {what}", PARAMS, {"sparsity": value}, error, f"sparsity {words}")
                for what, value, error, words in [*NUMBERS, *ABOVE_ONE]
            ),
            ("a string for a group", PARAMS, {"group": "layers.*"}, T, "group function 'layers.*'"),
            (
                "a list for a group",
                PARAMS,
                {"group": lambda path: [path]},
                T,
                "group('fc.weight') hashable ['fc.weight']",
            ),
            ("a string outlier", PARAMS, {"outlier": "x"}, T, "outlier 'x'"),
            ("a negative outlier", PARAMS, {"outlier": -1}, V, "outlier negative -1"),
            ("an infinite outlier", PARAMS, {"outlier": math.inf}, V, "outlier finite inf"),
            ("a bool width", PARAMS, {"width": True}, T, "width True"),
            ("a NaN width", PARAMS, {"width": math.nan}, V, "width 0.5 nan"),
            ("a wide width", PARAMS, {"width": 0.6}, V, "width from 0 to 0.5 0.6"),
            ("no scores", None, {}, T, "scores None wanda"),
            ("a number for scores", 0.5, {}, T, "scores 0.5"),
            ("NaN", NAN, {}, V, "scores['out'] NaN"),
            ("weights", SIGNED, {}, V, "scores['fc']['weight'] negative wanda"),
            ("a short leaf", SHORT, {}, V, "scores['out'] (3,) (4,)"),
            ("another structure", OTHER, {}, V, "scores structure params"),
            ("no leaf", NO_OUT, {}, V, "scores['out'] None"),
        ]
    ]
    + [
        bad(A.owl, "no prunable leaf", V, "params None", [None], [None], sparsity=0, group=len),
        bad(A.owl, "a float", T, "params['a'] float", {"a": 1.0}, PARAMS, sparsity=0, group=len),
        bad(A.owl, "no group", T, "group", PARAMS, PARAMS, sparsity=0.5),
    ]
)

# --- pruners ------------------------------------------------------------------------------------

P = gp.pruners
ALWAYS = Make(lambda: lambda step: step >= 0)
HALF = Make(lambda: gp.schedules.constant(0.5))
EXCHANGE: dict[str, Any] = {"fraction": HALF, "due": ALWAYS, "seed": 0}
BUILDERS: list[tuple[Callable[..., Any], Any, dict[str, Any]]] = [
    (P.gradual, HALF, {"due": ALWAYS}),
    (P.iterative, 0.5, {"due": ALWAYS}),
    (P.static_sparse, 0.5, {"seed": 0}),
    (P.sparse_evolution, 0.5, EXCHANGE),
    (P.rigl, 0.5, EXCHANGE),
]


def build_and_init(params: Any, function: Callable[..., Any], first: Any, more: Any) -> Any:
    """The first call of a pruner of `BUILDERS`."""
    return function(made(first), **{name: made(value) for name, value in more.items()}).init(params)


def build_and_update(params: Any, function: Callable[..., Any], first: Any, more: Any) -> Any:
    """A call of `update` after a right `init`."""
    pruner = function(made(first), **{name: made(value) for name, value in more.items()})
    right = made(PARAMS)
    return pruner.update(params, pruner.init(right), right)


PRUNERS = (
    [
        bad(
            function,
            f"{name} is no function",
            T,
            f"{name} function 0.5",
            first,
            **{**more, name: 0.5},
        )
        for function, first, more in BUILDERS
        for name in ("due", "fraction", "score_fn", "allocation", "prune")
        if name in inspect.signature(function).parameters
    ]
    + [
        bad(function, what, error, words, first, **{**more, "seed": seed})
        for function, first, more in BUILDERS
        if "seed" in more
        for what, seed, error, words in [
            ("a float seed", 0.5, T, "seed 0.5"),
            ("a large seed", 2**64, V, "seed 64"),
            ("seeds", number([1, 2]), V, "seed 0-dim (2,)"),
        ]
    ]
    + [
        bad(build_and_update, function.__name__, T, "params module", MODULE, function, first, more)
        for function, first, more in BUILDERS
    ]
    + [
        bad(P.gradual, "a due number", T, "due every 9 freq=9", HALF, due=9),
        bad(
            P.rigl,
            "a percentage for a fraction",
            T,
            "fraction constant(30)",
            0.5,
            **{**EXCHANGE, "fraction": 30},
        ),
        bad(P.gradual, "a sparsity for a schedule", T, "schedule constant(0.5)", 0.5, due=ALWAYS),
        bad(P.gradual, "no due", T, "due", HALF),
        bad(
            P.gradual,
            "an allocation for each leaf of one ranking",
            T,
            "allocation uniform global_unstructured prune=gprune.layerwise",
            HALF,
            due=ALWAYS,
            allocation=A.uniform,
        ),
        bad(
            P.gradual,
            "no due step at the end",
            V,
            "step 10 9 end=12",
            Make(lambda: gp.schedules.linear(0.5, **RAMP)),
            due=functools.partial(S.every, begin=0, end=10, freq=3),
        ),
        *(
            bad(
                build_and_init, function.__name__, T, "params module", MODULE, function, first, more
            )
            for function, first, more in BUILDERS
        ),
        bad(P.iterative, "a string amount", T, "amount 'x'", "x", due=ALWAYS),
        bad(P.iterative, "a float rewind_to", T, "rewind_to 0.5", 0.5, due=ALWAYS, rewind_to=0.5),
        bad(P.iterative, "a negative rewind_to", V, "rewind_to -1", 0.5, due=ALWAYS, rewind_to=-1),
        *(
            bad(function, "a percentage", V, "sparsity 80.0; mean 0.8", 80, **more)
            for function, first, more in BUILDERS
            if "seed" in more
        ),
        bad(P.static_sparse, "a string sparsity", T, "sparsity 'x'", "x", seed=0),
        bad(P.rigl, "a schedule for a sparsity", T, "sparsity Constant", HALF, **EXCHANGE),
        bad(gp.agreement, "other `None` leaves", V, "others[0] None masks[0]", KEEP_TWO, [None]),
        bad(gp.agreement, "other shapes", V, "others[0] (3,) masks[0] (2,)", KEEP_TWO, KEEP_THREE),
        bad(gp.agreement, "other structures", V, "others structure", KEEP_TWO, []),
        bad(gp.agreement, "scores", T, "masks[0] float32", Make(lambda: [torch.ones(2)]), KEEP_TWO),
    ]
)

R = gp.reconstruct
ROWS = Make(lambda: torch.arange(8.0).view(2, 4))
KEPT = Make(lambda: torch.tensor([[True, True, False, False]] * 2))
GRAM = Make(lambda: torch.eye(4))
SKEWED = Make(lambda: torch.eye(4) + torch.tensor([0.0, 0.0, 0.0, 1.0]).view(4, 1))
NOT_FINITE = Make(lambda: torch.full((4, 4), math.nan))
NEGATIVE_GRAM = Make(lambda: -torch.eye(4))
INDEFINITE = Make(lambda: torch.eye(4) + 9 * torch.eye(4).flip(0))
TOO_SMALL = Make(lambda: torch.eye(3))


def parts(params: Any, x: torch.Tensor) -> torch.Tensor:
    weight = params["fc"]["weight"]
    return x[:, :1] @ weight[:, :1].T + x[:, 1:] @ weight[:, 1:].T


def first_row(params: Any, x: torch.Tensor) -> torch.Tensor:
    weight = params["long"]
    return x @ weight[:2].T, x @ weight[2:].T


def whole_and_parts(params: Any, x: torch.Tensor) -> torch.Tensor:
    weight = params["fc"]["weight"]
    return x @ weight.T + x @ weight[:1].T


def half_a_kernel(params: Any, x: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.conv1d(x, params["conv"][:1])


def return_a_list(block: Any, params: Any, inputs: Any) -> Any:
    return [params, params]


REBUILT = [
    bad(Sc.input_gram, "no batches", V, "batches empty", forward, PARAMS, []),
    bad(Sc.input_gram, "nothing is seen", V, "forward linear convolution", unseen, PARAMS, BATCHES),
    bad(
        Sc.input_gram,
        "a glob that matches nothing",
        V,
        "where 'no.*' params",
        forward,
        PARAMS,
        BATCHES,
        where="no.*",
    ),
    bad(
        Sc.input_gram,
        "an infinite input",
        V,
        "['fc']['weight'] infinity",
        forward,
        PARAMS,
        Make(lambda: [torch.full((2, 3), math.inf)]),
    ),
    bad(Sc.input_gram, "an integer leaf", T, "params['out'] int64", forward, INTEGERS, BATCHES),
    bad(
        Sc.input_gram,
        "inputs in parts",
        V,
        "params['fc']['weight'] inputs where=",
        parts,
        PARAMS,
        BATCHES,
    ),
    bad(
        Sc.input_gram,
        "parts of different sizes",
        V,
        "params['long'] equal where=",
        first_row,
        Make(lambda: {"long": torch.ones(5, 3)}),
        BATCHES,
    ),
    bad(
        Sc.input_gram,
        "a weight as a whole and in parts",
        V,
        "params['fc']['weight'] whole where=",
        whole_and_parts,
        PARAMS,
        BATCHES,
    ),
    bad(
        Sc.input_gram,
        "a part of a kernel",
        V,
        "params['conv'] part where=",
        half_a_kernel,
        Make(lambda: {"conv": torch.ones(2, 3, 1)}),
        Make(lambda: [torch.ones(1, 3, 5)]),
    ),
    *(
        bad(function, what, error, words, *args, **kwargs)
        for function, before, more in [
            (R.refit, (ROWS, KEPT), {}),
            (R.swap, (ROWS, KEPT), {}),
            (R.sparsegpt, (ROWS,), {"amount": 0.5}),
        ]
        for what, error, words, args, kwargs in [
            ("a Gram matrix of another size", V, "grams (3, 3) (2, 4)", (*before, TOO_SMALL), more),
            ("a Gram matrix with NaN", V, "grams NaN", (*before, NOT_FINITE), more),
            ("a skewed Gram matrix", V, "grams symmetric", (*before, SKEWED), more),
            ("a negative diagonal", V, "grams negative", (*before, NEGATIVE_GRAM), more),
            (
                "an integer Gram matrix",
                T,
                "grams int64",
                (*before, Make(lambda: torch.eye(4).long())),
                more,
            ),
            (
                "another structure",
                V,
                "grams structure",
                (*before, Make(lambda: [torch.eye(4)])),
                more,
            ),
            ("a dim that is not there", V, "params dim 5", (*before, GRAM), {**more, "dim": 5}),
            ("a string for a dim", T, "params dim 'x'", (*before, GRAM), {**more, "dim": "x"}),
        ]
    ),
    *(
        bad(function, what, error, words, *args, **kwargs, damping=damping)
        for function, args, kwargs in [
            (R.refit, (ROWS, KEPT, GRAM), {}),
            (R.sparsegpt, (ROWS, GRAM), {"amount": 0.5}),
        ]
        for what, error, words, damping in [
            ("a negative damping", V, "damping -1", -1.0),
            ("an infinite damping", V, "damping inf", math.inf),
            ("a string for the damping", T, "damping 'x'", "x"),
        ]
    ),
    *(
        bad(
            function,
            "Gram matrices of packed experts without dim",
            V,
            "grams (4, 8, 8) (4, 4, 8) dim=",
            Make(lambda: torch.ones(4, 4, 8)),
            *more,
            Make(lambda: torch.eye(8).repeat(4, 1, 1)),
            **kwargs,
        )
        for function, more, kwargs in [
            (R.refit, (Make(lambda: torch.ones(4, 4, 8).bool()),), {}),
            (R.swap, (Make(lambda: torch.ones(4, 4, 8).bool()),), {}),
            (R.sparsegpt, (), {"amount": 0.5}),
        ]
    ),
    bad(
        R.refit,
        "a skewed matrix with an outlier",
        V,
        "grams symmetric",
        ROWS,
        KEPT,
        Make(
            lambda: torch.diag(torch.tensor([1.0, 1.0, 1.0, 1e6])) + torch.eye(4).roll(1, 1) * 0.9
        ),
    ),
    bad(
        R.refit,
        "a matrix with nothing on its diagonal",
        V,
        "grams symmetric",
        ROWS,
        KEPT,
        Make(lambda: torch.eye(4).roll(1, 1)),
    ),
    bad(
        R.sparsegpt,
        "a symmetric matrix with nothing on its diagonal",
        V,
        "grams semidefinite",
        ROWS,
        Make(lambda: torch.eye(4).flip(0)),
        amount=0.5,
    ),
    bad(R.refit, "an indefinite matrix", V, "grams semidefinite", ROWS, KEPT, INDEFINITE),
    bad(R.sparsegpt, "an indefinite matrix", V, "grams semidefinite", ROWS, INDEFINITE, amount=0.5),
    bad(R.refit, "no Gram matrix", V, "grams None mask input_gram", ROWS, KEPT, None),
    bad(R.swap, "no Gram matrix", V, "grams None mask input_gram", ROWS, KEPT, None),
    bad(R.sparsegpt, "no Gram matrix", V, "grams nothing prune input_gram", ROWS, None, amount=0.5),
    bad(R.refit, "masks of numbers", T, "masks float32", ROWS, ROWS, GRAM),
    bad(R.swap, "masks of numbers", T, "masks float32", ROWS, ROWS, GRAM),
    bad(R.swap, "no rounds", V, "rounds 0", ROWS, KEPT, GRAM, rounds=0),
    bad(R.swap, "a group of nothing", V, "m 0", ROWS, KEPT, GRAM, m=0),
    bad(R.sparsegpt, "no amount", T, "sparsegpt amount sparsity", ROWS, GRAM),
    bad(R.sparsegpt, "an amount and a pattern", T, "amount n m", ROWS, GRAM, amount=0.5, n=2, m=4),
    bad(R.sparsegpt, "n without m", T, "n=2 m=None", ROWS, GRAM, n=2),
    bad(R.sparsegpt, "n above m", V, "n=5 m=4", ROWS, GRAM, n=5, m=4),
    bad(R.sparsegpt, "an amount of 80", V, "amount 80", ROWS, GRAM, amount=80.0),
    bad(
        R.sparsegpt, "no columns in a block", V, "block_size 0", ROWS, GRAM, amount=1, block_size=0
    ),
    bad(R.sequential, "no function", T, "prune_block str", [], [], BATCHES, "x"),
    bad(
        R.sequential,
        "a module for a block",
        T,
        "blocks[0] Linear",
        Make(lambda: [torch.nn.Linear(3, 2)]),
        [ROWS],
        BATCHES,
        len,
    ),
    bad(R.sequential, "more params than blocks", V, "0 blocks 1", [], [ROWS], BATCHES, len),
    bad(R.sequential, "a dict of params", T, "list block dict", [forward], {"a": 1}, BATCHES, len),
    bad(R.sequential, "no batches", V, "batches empty", [forward], [PARAMS], [], len),
    bad(R.sequential, "one tensor for batches", T, "(2, 4) [tensor]", [], [], ROWS, len),
    bad(
        R.sequential,
        "a list for a pair",
        T,
        "prune_block (params, masks) list",
        [forward],
        [PARAMS],
        BATCHES,
        return_a_list,
    ),
]

BAD = [
    *AMOUNTS,
    *SPARSITIES,
    *SEVERAL,
    *COUNTS,
    *TREES_OF_AMOUNTS,
    *BOTH_OR_NEITHER,
    *CANDIDATES,
    *SELECTIONS,
    *AT_A_THRESHOLD,
    *METHODS,
    *FLOORED,
    *WITHIN,
    *METHODS_OF_ONE_TENSOR,
    *PATTERN_BUDGETS,
    *PATTERN_ROWS,
    *ON_MASKS,
    *REST,
    *OF_A_LOSS,
    *OF_PAIRS,
    *NEGATIVE,
    *OF_RIA,
    *NO_FUNCTIONS,
    *OF_A_FORWARD,
    *REBUILT,
    *OF_MANY,
    *SCHEDULES,
    *ALLOCATIONS,
    *PRUNERS,
]
