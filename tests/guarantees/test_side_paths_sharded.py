"""Sharded leaves in transforms, compiled, and from a warm cache: each gave a wrong answer once."""

from __future__ import annotations

import os
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._functorch.config
import torch._inductor.config
from torch.distributed.tensor import Replicate, Shard

import gprune as gp
from tests.support.sharded_cases import Sharding, all_well, differences, placed
from tests.support.workers import Workers

pytestmark = pytest.mark.slow

SHARDING = Sharding((2,), [(Shard(0),), (Shard(1),), (Replicate(),), None])


def whole_tree() -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(5, 4), torch.randn(3, 7), torch.randn(6), torch.randn(2, 2)]


def whole_masks() -> list[torch.Tensor]:
    return [torch.arange(x.numel()).view(x.shape) % 3 > 0 for x in whole_tree()]


# --- inside torch.func.grad -----------------------------------------------------------------

APPLY: dict[str, Callable[[Any, Any], Any]] = {
    "apply_masks": gp.apply_masks,
    "straight_through": gp.straight_through,
    "straight_through, decay": lambda params, masks: gp.straight_through(params, masks, decay=0.5),
}


def sum_of_squares(tree: list[torch.Tensor]) -> torch.Tensor:
    """Of the DTensors: torch does not add a plain tensor to them."""
    return sum((x**2).sum() for x in tree[:3])


def check_gradients(name: str, masks_are: str) -> list[str]:
    """A DTensor that a gradient tracks no longer looks like one; a mask that it does not does."""

    def gradients(params: Any, given: Any) -> tuple[Any, Any]:
        def loss(params: Any, masks: Any) -> tuple[torch.Tensor, Any]:
            if masks_are == "chosen within":
                masks = gp.global_unstructured(params, sparsity=0.5)
            applied = APPLY[name](params, given if masks_are == "a closure" else masks)
            return sum_of_squares(applied), applied

        return torch.func.grad(loss, has_aux=True)(params, given)

    got = gradients(placed(whole_tree(), SHARDING), placed(whole_masks(), SHARDING))
    expected = gradients(whole_tree(), whole_masks())
    return [
        *differences("gradients", got[0], expected[0], SHARDING),
        *differences("masked parameters", got[1], expected[1], SHARDING),
    ]


@pytest.mark.parametrize("masks_are", ["a closure", "an argument", "chosen within"])
@pytest.mark.parametrize("name", APPLY)
def test_masked_parameters_inside_grad(name: str, masks_are: str) -> None:
    all_well(2, check_gradients, name, masks_are)


PRUNE: dict[str, Callable[[Any], Any]] = {
    "global": lambda p: gp.global_unstructured(p, amount=20),
    "layerwise": lambda p: gp.layerwise(p, amount=0.5),
    "threshold": lambda p: gp.masks_from_threshold(gp.find_threshold(p, amount=20), p),
    "random": lambda p: gp.global_unstructured(
        p, pruning_method=gp.random_unstructured, seed=0, amount=20
    ),
}


def check_first_call(name: str, leaves: int) -> list[str]:
    """Select within a gradient, in a process that has selected nothing before."""

    def loss(params: Any) -> tuple[torch.Tensor, Any]:
        return sum_of_squares(params), PRUNE[name](params)

    whole, sharding = whole_tree()[:leaves], SHARDING._replace(placements=SHARDING[1][:leaves])
    _, got = torch.func.grad(loss, has_aux=True)(placed(whole, sharding))
    return differences("masks", got, PRUNE[name](whole), sharding)


@pytest.mark.parametrize("leaves", [3, 4], ids=["DTensors", "and a plain leaf"])
@pytest.mark.parametrize("name", PRUNE)
def test_selection_inside_grad_is_the_first_call_of_a_process(name: str, leaves: int) -> None:
    workers = Workers(2)  # started for this call, and for no other
    try:
        answers = workers.run(check_first_call, name, leaves)
    finally:
        workers.stop()
    assert answers == [[], []]


# --- stacked models -------------------------------------------------------------------------------


def check_stacked(name: str) -> list[str]:
    """Three models, stacked along the first dim: each is pruned as if it were alone."""
    torch.manual_seed(0)
    whole = [torch.randn(3, *leaf.shape) for leaf in whole_tree()]
    sharding = Sharding((2,), [(Shard(1),), (Shard(2),), (Replicate(),), None])
    prune = PRUNE[name]
    got = torch.vmap(lambda p: gp.apply_masks(p, prune(p)))(placed(whole, sharding))
    each = [gp.apply_masks(model, prune(model)) for model in zip(*whole, strict=True)]
    expected = [torch.stack(leaves) for leaves in zip(*each, strict=True)]
    return differences("masked parameters", got, expected, sharding)


@pytest.mark.parametrize("name", PRUNE)
def test_vmap_over_stacked_models(name: str) -> None:
    all_well(2, check_stacked, name)


UNSHARDED_ONLY: dict[str, Callable[[Any], Any]] = {
    "dim": lambda p: gp.layerwise(p, amount=1, dim=0),
    "n of m": lambda p: gp.layerwise(p, pruning_method=gp.n_of_m, n=1, m=2),
}


def check_refusal(name: str) -> list[str]:
    """A function that needs unsharded leaves says so, inside a gradient as outside."""
    sharded = placed(whole_tree()[:3], SHARDING._replace(placements=SHARDING[1][:3]))
    messages = []
    for inside in (False, True):

        def loss(params: Any) -> torch.Tensor:
            UNSHARDED_ONLY[name](params)
            return sum_of_squares(params)

        try:
            torch.func.grad(loss)(sharded) if inside else loss(sharded)
        except ValueError as error:
            messages.append(str(error))
    if len(messages) != 2 or messages[0] != messages[1] or "full_tensor" not in messages[0]:
        return [f"the messages are {messages}"]
    return []


@pytest.mark.parametrize("name", UNSHARDED_ONLY)
def test_a_refusal_is_the_same_inside_grad(name: str) -> None:
    all_well(2, check_refusal, name)


def check_keep_all() -> list[str]:
    """The masks that keep all entries are placed as the parameters, inside a gradient too."""

    def loss(params: Any) -> tuple[torch.Tensor, Any]:
        return sum_of_squares(params), gp.keep_all(params)

    whole, sharding = whole_tree(), SHARDING
    _, got = torch.func.grad(loss, has_aux=True)(placed(whole, sharding))
    return differences("masks", got, gp.keep_all(whole), sharding)


def test_keep_all_inside_grad() -> None:
    all_well(2, check_keep_all)


# --- compiled counts ------------------------------------------------------------------------

COUNTS: dict[str, Callable[[Any, Any], Any]] = {
    "num_pruned": lambda masks, others: gp.num_pruned(masks),
    "sparsity": lambda masks, others: gp.sparsity(masks),
    "agreement": lambda masks, others: list(gp.agreement(masks, others)),
}


def check_compiled_count(name: str, backend: str) -> list[str]:
    count = COUNTS[name]
    others = [~mask for mask in whole_masks()]
    others[0][0] = True
    torch.compiler.reset()
    compiled = torch.compile(lambda a, b: count(a, b), fullgraph=True, backend=backend)
    with torch._inductor.config.patch(force_disable_caches=True):  # see the warm cache below
        got = compiled(placed(whole_masks(), SHARDING), placed(others, SHARDING))
    expected = count(whole_masks(), others)
    return [] if repr(got) == repr(expected) else [f"{name} is {got}, expected {expected}"]


@pytest.mark.parametrize(
    ("name", "backend"),
    [
        *((name, "aot_eager") for name in COUNTS),
        *(pytest.param(name, "inductor", marks=pytest.mark.long) for name in COUNTS),
    ],
)
def test_compiled_counts(name: str, backend: str) -> None:
    all_well(2, check_compiled_count, name, backend)


# --- compiled, from a cache that another rank or another run has filled ---------------------


def check_cached(mesh: tuple[int, ...], shapes: list[list[int]]) -> list[str]:
    """Compile what every rank and every run compiles: the second run loads it from the cache."""
    axes = len(mesh)
    torch.manual_seed(0)
    whole = [torch.randn(shape) for shape in shapes]
    where: list[Any] = [(Shard(0),) * axes, (Shard(0), Shard(1))[:axes], (Replicate(),) * axes]
    sharding = Sharding(mesh, [where[i % 3] for i in range(len(whole))])

    def step(params: Any, masks: Any, sparsity: Any) -> list[Any]:
        return [
            *gp.global_unstructured(params, masks=masks, sparsity=sparsity),
            *gp.layerwise(params, masks=masks, sparsity=sparsity),
        ]

    compiled = torch.compile(step, fullgraph=True)
    at = torch.tensor(0.5, dtype=torch.float64)
    got = compiled(placed(whole, sharding), gp.keep_all(placed(whole, sharding)), at)
    expected = step(whole, gp.keep_all(whole), at)
    n = len(whole)
    return [
        *differences("global", got[:n], expected[:n], sharding),
        *differences("layerwise", got[n:], expected[n:], sharding),
    ]


def check_cached_in(folder: Path, mesh: tuple[int, ...], shapes: list[list[int]]) -> list[str]:
    """Call `check_cached` with torch's caches in a folder that all ranks and all runs share.

    A rank that fails writes its traceback to the folder and exits. Its connections are closed then,
    so the ranks that wait for it fail too, and do not wait until they time out.
    """
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "cache")
    torch.compiler.reset()
    try:
        with (
            torch._inductor.config.patch(fx_graph_cache=True),
            torch._functorch.config.patch(enable_autograd_cache=True),
        ):
            return check_cached(mesh, shapes)
    except Exception:
        error_file(folder, torch.distributed.get_rank()).write_text(traceback.format_exc())
        os._exit(1)


def error_file(folder: Path, rank: int) -> Path:
    return folder / f"rank {rank}"


UNEVEN = [[5, 4], [3, 7], [6], [7]]
EQUAL = [[8, 4], [4, 8], [8], [16]]


def run_ranks(mesh: tuple[int, ...], shapes: list[list[int]], folder: Path) -> list[str]:
    """Run the check in fresh processes, one for each rank; give what they find or raise."""
    workers = Workers(torch.Size(mesh).numel())
    try:
        answers = workers.run(check_cached_in, folder, mesh, shapes)
    finally:
        workers.stop()
    return [
        "\n".join(answer) if answer is not None else take_error(folder, rank)
        for rank, answer in enumerate(answers)
    ]


def take_error(folder: Path, rank: int) -> str:
    """Read what a rank has raised; remove it, so that the next run cannot find it."""
    text = error_file(folder, rank).read_text()
    error_file(folder, rank).unlink()
    return text


REFUSED = ("expected size", "gprune lost another rank")


@pytest.mark.long
@pytest.mark.parametrize(
    ("mesh", "shapes"),
    [
        pytest.param((2,), EQUAL, id="2 ranks-equal"),
        pytest.param((2,), UNEVEN, id="2 ranks-uneven"),
        pytest.param((2, 2), EQUAL, id="2 x 2 ranks-equal"),
        pytest.param((2, 2), UNEVEN, id="2 x 2 ranks-uneven"),
    ],
)
def test_compiled_with_a_warm_cache(
    mesh: tuple[int, ...], shapes: list[list[int]], tmp_path: Path
) -> None:
    """The masks are those of the whole tensors on every rank, in the second run too.

    torch's cache does not tell the ranks of unevenly sharded DTensors apart. A rank that loads the
    graph of another refuses its own shards, with or without gprune: `assert_size_stride` fails in
    the code of Inductor. That is no wrong mask, and it is torch's to mend, so it is let pass.
    """
    for run in range(2):
        wrong = [
            f"run {run}, rank {rank}: {text}"
            for rank, text in enumerate(run_ranks(mesh, shapes, tmp_path))
            if text and not (shapes is UNEVEN and any(refusal in text for refusal in REFUSED))
        ]
        assert not wrong, "\n".join(wrong)


# --- weights rebuilt row by row -------------------------------------------------------------------


def check_rebuilt(placement: str) -> list[str]:
    """The rows of a weight do not meet, so each rank rebuilds its own."""
    sharding = Sharding((2,), [(Shard(0) if placement == "rows" else Replicate(),)])
    torch.manual_seed(0)
    weight, x = torch.randn(7, 8), torch.randn(40, 8) @ torch.randn(8, 8)
    gram, mask = x.mT @ x, torch.rand(7, 8) < 0.5
    [params], [masks] = placed([weight], sharding), placed([mask], sharding)
    swapped = gp.reconstruct.swap(weight, mask, gram)
    refitted = gp.reconstruct.refit(weight, mask, gram)
    got = gp.reconstruct.refit(params, masks, gram)
    near = torch.allclose(got.full_tensor(), refitted, rtol=1e-5, atol=1e-6)
    return [
        *differences("swap", [gp.reconstruct.swap(params, masks, gram)], [swapped], sharding),
        *(["refit differs by more than rounding"] if not near else []),
        *(["refit has other placements"] if got.placements != params.placements else []),
    ]


def check_gram(placement: str) -> list[str]:
    """Of sharded weights, and of sharded inputs, whose products are partial sums."""
    sharding = Sharding((2,), [(Shard(0) if placement == "rows" else Replicate(),)])
    torch.manual_seed(0)
    weight, x = torch.randn(7, 8), torch.randn(40, 8)
    want = gp.scores.input_gram(lambda p, x: torch.nn.functional.linear(x, p), weight, [x])
    [params] = placed([weight], sharding)
    found = []
    for place in (Replicate(), Shard(0)):
        [inputs] = placed([x], Sharding((2,), [(place,)]))
        got = gp.scores.input_gram(lambda p, x: torch.nn.functional.linear(x, p), params, [inputs])
        if not torch.allclose(got, want, rtol=1e-5, atol=1e-5):
            found.append(f"another Gram matrix for inputs placed as {place}")
    return found


@pytest.mark.parametrize("placement", ["rows", "whole"])
def test_gram_matrices_of_dtensors(placement: str) -> None:
    all_well(2, check_gram, placement)


@pytest.mark.parametrize("placement", ["rows", "whole"])
def test_rows_are_rebuilt_where_they_are(placement: str) -> None:
    all_well(2, check_rebuilt, placement)


def check_columns_are_refused() -> list[str]:
    sharding = Sharding((2,), [(Shard(1),)])
    weight, mask, gram = torch.ones(4, 6), torch.ones(4, 6, dtype=torch.bool), torch.eye(6)
    [params], [masks] = placed([weight], sharding), placed([mask], sharding)
    found = []
    for function in (gp.reconstruct.refit, gp.reconstruct.swap):
        try:
            function(params, masks, gram)
        except ValueError as error:
            if "only rows may be sharded" not in str(error):
                found.append(str(error))
        else:
            found.append(f"{function.__name__} raised no error")
    return found


def test_columns_that_are_sharded_are_refused() -> None:
    all_well(2, check_columns_are_refused)
