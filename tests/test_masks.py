"""What is done with masks: application, structure, counts and intersections."""

import math
import re
from pathlib import Path
from typing import Any

import optree
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file
from torch.distributed.tensor import Shard

import gprune as gp
from gprune.testing import param_trees, prior_masks
from tests.support import reference
from tests.support.assertions import (
    assert_are_masks,
    assert_entries,
    assert_equal_masks,
    assert_same,
    assert_same_structure,
)
from tests.support.cases import map_tensors
from tests.support.sharded_cases import all_well, mesh_of, place


@given(param_trees(), st.data())
def test_application(params: Any, data: st.DataObject) -> None:
    masks = data.draw(prior_masks(params))
    assert_entries(gp.apply_masks(params, masks), reference.apply_masks(params, masks), params)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("apply", [gp.apply_masks, gp.straight_through])
def test_what_is_masked_is_zero_whatever_it_was(apply: Any, dtype: torch.dtype) -> None:
    weights = torch.tensor([math.nan, math.inf, -math.inf, -2.0, 3.0], dtype=dtype)
    masked = apply([weights], [torch.zeros(5, dtype=torch.bool)])[0]
    assert masked.dtype == dtype
    assert masked.tolist() == [0.0] * 5
    kept = apply([weights], [torch.ones(5, dtype=torch.bool)])[0]
    assert kept[1:].equal(weights[1:])
    assert kept[0].isnan()


@given(param_trees(dtypes=[torch.float32, torch.float64]), st.data())
def test_straight_through_is_the_masked_value_with_a_dense_gradient(
    params: Any, data: st.DataObject
) -> None:
    params = map_tensors(lambda leaf: leaf.detach().clone().requires_grad_(), params)
    masks = data.draw(prior_masks(params))
    through = gp.straight_through(params, masks)
    assert_entries(through, reference.apply_masks(params, masks), params)
    leaves = optree.tree_leaves(params)
    total = sum(leaf.sum() for leaf in optree.tree_leaves(through))
    for leaf, grad in zip(leaves, torch.autograd.grad(total, leaves), strict=True):
        assert (grad[leaf.isfinite()] == 1).all()


@given(
    param_trees(dtypes=[torch.float32, torch.float64]),
    st.data(),
    st.sampled_from([0.0, 2.0**-12, 0.5, 3]),
    st.booleans(),
)
def test_what_is_masked_decays(
    params: Any, data: st.DataObject, decay: float, as_tensor: bool
) -> None:
    """The decay adds to any gradient; here the gradients are 1, 2, 3, ..."""
    params = map_tensors(lambda x: x.detach().clamp(-8, 8).requires_grad_(), params)
    masks = data.draw(prior_masks(params))
    given = torch.tensor(decay) if as_tensor else decay
    through = gp.straight_through(params, masks, decay=given)
    assert_entries(through, reference.apply_masks(params, masks), params)
    slopes = map_tensors(lambda x: torch.arange(1.0, x.numel() + 1).view(x.shape), params)
    pairs = zip(optree.tree_leaves(through), optree.tree_leaves(slopes), strict=True)
    total = sum((leaf * slope).sum() for leaf, slope in pairs)
    grads = iter(torch.autograd.grad(total, optree.tree_leaves(params)))
    want = reference.decayed(params, masks, slopes, decay)
    for leaf, expected in zip(reference.leaves(params), want, strict=True):
        if leaf is not None:
            got = next(grads)
            wanted = torch.tensor(expected, dtype=torch.float64).view(leaf.shape)
            torch.testing.assert_close(got.double(), wanted, rtol=1e-6, atol=1e-12)


def decayed_cubes(params: Any, masks: Any, decay: Any) -> torch.Tensor:
    return sum((leaf**3).sum() for leaf in gp.straight_through(params, masks, decay=decay))


NESTED = {
    "grad": lambda p, m, d: torch.func.grad(decayed_cubes)(p, m, d),
    "vmap of grad": lambda p, m, d: torch.vmap(torch.func.grad(decayed_cubes), (0, 0, None))(
        p, m, d
    ),
    "grad of vmap": lambda p, m, d: torch.func.grad(
        lambda p: torch.vmap(decayed_cubes, (0, 0, None))(p, m, d).sum()
    )(p),
    "of each decay": lambda p, m, d: torch.vmap(torch.func.grad(decayed_cubes))(
        p, m, torch.stack([d, d, d])
    ),
}


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", NESTED)
def test_decay_in_nested_transforms(name: str, compiled: bool) -> None:
    """torch drops the backward of a custom function in some of them; see `mask_with_decay`."""
    torch.manual_seed(0)
    params = [torch.randn(3, 4), torch.randn(3, 2, 2)]
    masks = [leaf > 0 for leaf in params]
    function: Any = NESTED[name]
    if compiled:
        function = torch.compile(function, fullgraph=True, backend="aot_eager")
    grads = function(params, masks, torch.tensor(0.5))
    for leaf, mask, grad in zip(params, masks, grads, strict=True):
        torch.testing.assert_close(grad, torch.where(mask, 3 * leaf**2, 0.5 * leaf))


def test_decay_of_an_outer_gradient() -> None:
    """The weights are those of the outer loss; the inner one is differentiated by its inputs."""
    weight, mask = torch.tensor([1.0, 2.0]), torch.tensor([True, False])

    def slope(weight: torch.Tensor) -> torch.Tensor:
        def inner(x: torch.Tensor) -> torch.Tensor:
            return (gp.straight_through(weight, mask, decay=0.5) * x).sum()

        return torch.func.grad(inner)(torch.ones(2)).sum()

    assert torch.func.grad(slope)(weight).tolist() == [1, 1 + 0.5 * 2]


def test_decay_has_no_forward_mode_derivative() -> None:
    """It is refused, not wrong."""
    weight, mask = torch.tensor([1.0, 2.0]), torch.tensor([True, False])

    def cubes(weight: torch.Tensor) -> torch.Tensor:
        return decayed_cubes([weight], [mask], 0.5)

    for transform in (torch.func.hessian, torch.func.jacfwd):
        with pytest.raises(NotImplementedError, match="jvp"):
            transform(cubes)(weight)


def test_a_decay_of_zero_is_compiled_as_without_one() -> None:
    """Only if it is a number: a tensor may have another value in the next call."""
    weight, mask = torch.ones(3), torch.ones(3).bool()

    def graph_of(**decay: Any) -> str:
        graphs: list[str] = []

        def look(graph: Any, inputs: Any) -> Any:
            graphs.append(graph.code)
            return graph

        torch.compiler.reset()
        torch.compile(lambda w: gp.straight_through(w, mask, **decay), backend=look)(weight)
        return graphs[0]

    assert graph_of() == graph_of(decay=0.0) == graph_of(decay=0)
    assert "mask_with_decay" not in graph_of()
    assert "mask_with_decay" in graph_of(decay=0.1)


@given(param_trees())
def test_masks_from_zeros(params: Any) -> None:
    masks = gp.masks_from_zeros(params)
    expected = map_tensors(
        lambda leaf: (
            torch.tensor([x != 0 for x in leaf.flatten().tolist()]).bool().view(leaf.shape)
        ),
        params,
    )
    assert_are_masks(masks, params)
    assert_equal_masks(masks, expected, params)


def test_the_zeros_that_masks_have_made_are_found_again() -> None:
    params = {"dense": torch.rand(20, 30) + 1, "holes": None, "image": torch.rand(2, 3, 4, 5) + 1}
    params["image"] = params["image"].contiguous(memory_format=torch.channels_last)
    masks = gp.global_unstructured(params, amount=0.4)
    found = gp.masks_from_zeros(gp.apply_masks(params, masks))
    assert_equal_masks(found, masks, params)
    assert found["image"].is_contiguous()


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.bool, torch.complex64, torch.uint16])
def test_zeros_of_dtypes_that_are_not_ranked(dtype: torch.dtype) -> None:
    leaf = torch.tensor([0.0, 1.0, -0.0]).to(dtype)
    assert gp.masks_from_zeros([leaf])[0].tolist() == [False, True, False]


def tied() -> torch.nn.Module:
    module = torch.nn.Sequential(torch.nn.Embedding(5, 4), torch.nn.Linear(4, 5, bias=False))
    module[1].weight = module[0].weight
    return module


def with_buffers() -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))


@pytest.mark.parametrize("apply", [gp.apply_masks, gp.straight_through, gp.summary])
@pytest.mark.parametrize(
    ("module", "missing"), [(tied(), "1.weight"), (with_buffers(), "1.num_batches_tracked")]
)
def test_a_state_dict_and_masks_of_named_parameters(
    module: torch.nn.Module, missing: str, apply: Any
) -> None:
    """The error says how the two differ; with both trees from one of them it works."""
    masks = gp.keep_all(gp.prunable(dict(module.named_parameters())))
    message = r" is missing; state_dict\(\) also has buffers.*make both trees from the same one"
    with pytest.raises(ValueError, match=rf"masks\['{missing}'\]{message}"):
        apply(dict(module.state_dict()), masks)
    with pytest.raises(ValueError, match=rf"masks\['1\..*'\]{message}"):
        apply(module.state_dict(), masks)
    apply(module.state_dict(), gp.keep_all(gp.prunable(module.state_dict())))


def test_a_state_dict_is_no_dict_to_the_functions_of_trees() -> None:
    module = torch.nn.Linear(2, 3)
    masks = gp.keep_all(gp.prunable(dict(module.named_parameters())))
    with pytest.raises(ValueError, match=r"params is an OrderedDict; pass dict\(params\)"):
        gp.apply_masks(module.state_dict(), masks)
    gp.apply_masks(dict(module.state_dict()), masks)


@given(param_trees(), st.data())
def test_packed_masks_are_bits_and_come_back(params: Any, data: st.DataObject) -> None:
    """Bit i of byte j is entry 8 j + i, with zeros at the end."""
    masks = data.draw(prior_masks(params))
    packed = gp.pack_masks(masks)
    for mask, bits in zip(reference.leaves(masks), reference.leaves(packed), strict=True):
        if mask is None:
            assert bits is None
            continue
        assert (bits.dtype, bits.device) == (torch.uint8, mask.device)
        entries = reference.entries(mask)
        padded = entries + [False] * (-len(entries) % 8)
        bytes_of_8 = [padded[start : start + 8] for start in range(0, len(padded), 8)]
        assert bits.tolist() == [sum(bit << i for i, bit in enumerate(row)) for row in bytes_of_8]
    assert_equal_masks(gp.unpack_masks(packed, params), masks, params)


def test_packed_masks_of_any_layout_and_size() -> None:
    """An eighth of the memory; a mask that is not contiguous is packed in its flat order."""
    for entries in [*range(18), 1_000_003]:
        mask = torch.rand(entries, generator=torch.Generator().manual_seed(entries)) < 0.5
        packed = gp.pack_masks(mask)
        assert packed.shape == (math.ceil(entries / 8),)
        assert packed.untyped_storage().nbytes() == len(packed)
        assert gp.unpack_masks(packed, torch.empty(entries)).equal(mask)
    mask = (torch.arange(60) % 7 < 3).view(3, 4, 5).permute(2, 0, 1)
    assert gp.pack_masks(mask).equal(gp.pack_masks(mask.contiguous()))
    assert gp.unpack_masks(gp.pack_masks(mask), torch.empty(5, 3, 4)).equal(mask)
    assert gp.unpack_masks(gp.pack_masks(torch.tensor(True)), torch.empty(())).item() is True


def test_packed_masks_are_saved_and_loaded(tmp_path: Path) -> None:
    """By torch.save, with the default of torch.load, and by safetensors without the `None`s."""
    module = torch.nn.Sequential(torch.nn.Linear(9, 7), torch.nn.Linear(7, 3))
    params = dict(module.named_parameters())
    masks = gp.global_unstructured(gp.prunable(params), sparsity=0.4)
    packed = gp.pack_masks(masks)
    torch.save(packed, tmp_path / "masks.pt")
    assert_same(gp.unpack_masks(torch.load(tmp_path / "masks.pt"), params), masks)
    tensors = {name: bits for name, bits in packed.items() if bits is not None}
    save_file(tensors, tmp_path / "masks.safetensors")
    loaded = {**dict.fromkeys(params), **load_file(tmp_path / "masks.safetensors")}
    assert_same(gp.unpack_masks(loaded, params), masks)


def check_packing_of_shards() -> list[str]:
    leaf = place(torch.ones(8), mesh_of((2,)), (Shard(0),))
    mask, problems = gp.keep_all(leaf), []
    for function, call in [
        ("pack_masks", lambda: gp.pack_masks(mask)),
        ("unpack_masks", lambda: gp.unpack_masks(torch.zeros(1, dtype=torch.uint8), leaf)),
    ]:
        try:
            call()
            problems.append(f"{function} packs shards")
        except ValueError as error:
            problems += [] if f"{function} needs whole leaves" in str(error) else [str(error)]
    return problems


@pytest.mark.slow
def test_shards_are_not_packed() -> None:
    all_well(2, check_packing_of_shards)


@given(param_trees(), st.data())
def test_masks_intersect(params: Any, data: st.DataObject) -> None:
    one, other = data.draw(prior_masks(params)), data.draw(prior_masks(params))
    both = map_tensors(lambda left, right: left & right, one, other)
    assert_equal_masks(gp.intersect(one, other), both, params)


@given(param_trees(), st.data())
def test_a_parameter_without_a_mask_is_returned_as_it_is(params: Any, data: st.DataObject) -> None:
    chosen = gp.prunable(params, lambda path, leaf: data.draw(st.booleans()))
    assert_same_structure(chosen, params)
    masks = gp.keep_all(chosen)
    assert_are_masks(masks, chosen)
    for apply in (gp.apply_masks, gp.straight_through):
        applied = apply(params, masks)
        assert_same_structure(applied, params)
        for before, mask, after in zip(
            *map(reference.leaves, (params, masks, applied)), strict=True
        ):
            assert mask is not None or after is before


def test_a_mask_at_a_none_leaf_is_refused() -> None:
    params, masks = [torch.ones(2), None], [torch.ones(2).bool(), torch.ones(2).bool()]
    for call in (
        lambda: gp.global_unstructured(params, masks=masks, amount=1),
        lambda: gp.find_threshold(params, masks=masks, amount=1),
        lambda: gp.apply_masks(params, masks),
    ):
        with pytest.raises(ValueError, match=r"masks\[1\] is a tensor, its parameter is None"):
            call()


def test_an_error_of_intersect_names_the_trees() -> None:
    keep, more = {"a": torch.ones(2).bool(), "b": None}, torch.ones(3).bool()
    for masks, message in [
        ({"a": more, "b": None}, "masks[2]['a'] has shape (3,), masks[0]['a'] has (2,)"),
        ({"a": None, "b": None}, "masks[2]['a'] is None, masks[0]['a'] is a tensor"),
        ({"a": keep["a"], "b": more}, "masks[2]['b'] is a tensor, masks[0]['b'] is None"),
        ({"a": keep["a"]}, "masks[2] must have the structure of masks[0]"),
        ({"a": torch.ones(2), "b": None}, "masks[2]['a'] has dtype torch.float32"),
    ]:
        with pytest.raises((TypeError, ValueError), match=re.escape(message)):
            gp.intersect(keep, keep, masks)
    with pytest.raises(TypeError, match=r"masks\[0\]\['a'\] has dtype"):
        gp.intersect({"a": torch.ones(2)}, keep)


def test_counts_are_exact_beyond_float32() -> None:
    rows = 2**24 + 1
    masks = torch.tensor([[True], [False]]).expand(2, rows)  # takes two bytes
    pruned = gp.num_pruned([masks, None])
    assert (pruned.dtype, pruned.shape, pruned.item()) == (torch.int64, (), rows)
    assert gp.sparsity([masks, None]).item() == 0.5


@pytest.mark.parametrize("backend", [None, "eager"])
def test_dicts_keep_the_order_of_insertion(backend: str | None) -> None:
    params = {"b": torch.ones(2), "c": {"z": None, "y": torch.ones(1)}, "a": torch.ones(3)}
    make = gp.keep_all
    if backend:
        torch._dynamo.reset()
        make = torch.compile(make, backend=backend, fullgraph=True)
    masks = make(params)
    assert list(masks) == ["b", "c", "a"]
    assert list(masks["c"]) == ["z", "y"]
    assert_are_masks(masks, params)
