"""The gotchas of notebook 08, in its order.

What they say of torch is tested too, so that a change there is noticed.
"""

import pytest
import torch
from torch.distributed.fsdp import fully_shard
from torch.nn.utils import prune as torch_prune

import gprune as gp
import gprune.adapter as prune
from tests.support.sharded_cases import all_well, mesh_of


def test_an_amount_is_of_what_remains_and_a_sparsity_of_all() -> None:
    weights = [torch.randn(100)]
    masks = gp.global_unstructured(weights, amount=0.2)
    assert gp.num_pruned(gp.global_unstructured(weights, masks=masks, amount=0.2)) == 36
    masks = gp.global_unstructured(weights, sparsity=0.2)
    assert gp.num_pruned(gp.global_unstructured(weights, masks=masks, sparsity=0.2)) == 20


def test_dicts_are_in_the_order_of_their_keys() -> None:
    tied = {"b": torch.ones(2), "a": torch.ones(2)}
    masks = gp.global_unstructured(tied, amount=2)
    assert not masks["a"].any()
    assert masks["b"].all()


def test_n_of_m_keeps_n() -> None:
    assert gp.n_of_m(torch.arange(4.0), n=1, m=4).tolist() == [False, False, False, True]


def test_one_ranking_may_empty_a_leaf() -> None:
    weights = {"large": torch.ones(10), "small": torch.full((10,), 0.1)}
    for least, kept in ((None, 0), (0.2, 2)):
        masks = gp.global_unstructured(weights, amount=12, min_per_leaf=least)
        assert masks["small"].sum() == kept
        assert gp.num_pruned(masks) == 12


def test_packed_masks_take_an_eighth_of_the_bytes() -> None:
    masks = {"weight": torch.rand(64) < 0.5}
    packed = gp.pack_masks(masks)
    assert (masks["weight"].nbytes, packed["weight"].nbytes) == (64, 8)
    assert gp.unpack_masks(packed, masks)["weight"].equal(masks["weight"])


def test_masks_on_the_update_and_in_the_loss() -> None:
    weight, mask = torch.tensor([1.0, 2.0]), torch.tensor([False, True])

    def loss(p: torch.Tensor, through: bool) -> torch.Tensor:
        masked = gp.straight_through(p, mask) if through else gp.apply_masks(p, mask)
        return (3 * masked).sum()

    assert torch.func.grad(loss)(weight, False).tolist() == [0, 3]
    assert torch.func.grad(loss)(weight, True).tolist() == [3, 3]
    assert gp.apply_masks(weight - 0.1, mask)[0] == 0


def test_a_weight_that_comes_back_starts_without_momentum() -> None:
    old, new = torch.tensor([False, True, True]), torch.tensor([True, True, False])
    momentum = gp.apply_masks(torch.tensor([5.0, 1.0, 2.0]), gp.intersect(old, new))
    assert momentum.tolist() == [0, 1, 0]


def test_batch_norm_remembers_the_dense_network() -> None:
    norm = torch.nn.BatchNorm1d(3, momentum=None)
    weight, x = torch.randn(3, 5), torch.randn(64, 5)
    norm(x @ weight.T)
    pruned = gp.apply_masks(weight, gp.lowest_unstructured(weight.abs(), amount=0.5))
    before = norm.running_var.clone()
    assert not torch.allclose(before, (x @ pruned.T).var(0))
    norm.reset_running_stats()
    norm(x @ pruned.T)
    torch.testing.assert_close(norm.running_var, (x @ pruned.T).var(0))


def test_named_parameters_drop_the_second_name_of_tied_weights() -> None:
    module = torch.nn.ModuleDict({"one": torch.nn.Linear(2, 2), "two": torch.nn.Linear(2, 2)})
    module["two"].weight = module["one"].weight
    assert "two.weight" not in dict(module.named_parameters())
    twice = {"one": torch.arange(4.0), "two": torch.arange(4.0)}
    assert gp.num_pruned(gp.global_unstructured(twice, amount=2)) == 2


@pytest.mark.parametrize("projected", [False, True])
def test_remove_makes_zeros_plain_weights_again(projected: bool) -> None:
    net = torch.nn.Linear(4, 4)
    prune.global_unstructured([(net, "weight")], prune.L1Unstructured, amount=8)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    if projected:
        prune.project_(optimizer, net)
    torch_prune.remove(net, "weight")
    net(torch.randn(3, 4)).sum().backward()
    optimizer.step()
    assert int((net.weight == 0).sum()) == (8 if projected else 0)


@pytest.mark.parametrize("kept", [False, True])
def test_the_zeros_of_a_loaded_network_are_kept_on_request(kept: bool) -> None:
    net = prune.make_permanent_(prune.prune_(torch.nn.Linear(4, 4), amount=8))
    assert gp.num_pruned(gp.masks_from_zeros(net.weight)) == 8
    optimizer = torch.optim.AdamW(net.parameters())
    if kept:
        prune.keep_zeros_(net, optimizer)
    net(torch.randn(3, 4)).sum().backward()
    optimizer.step()
    assert int((net.weight == 0).sum()) == (8 if kept else 0)


def test_functional_call_on_an_adapted_module_is_ignored() -> None:
    net = torch.nn.Linear(2, 1, bias=False)
    x, given = torch.ones(1, 2), {"weight": torch.full((1, 2), 100.0)}
    assert torch.func.functional_call(net, given, (x,)) == 200
    prune.global_unstructured([(net, "weight")], prune.L1Unstructured, amount=1)
    assert torch.func.functional_call(net, given, (x,), strict=False) != 200
    assert given["weight"].equal(net.weight)  # overwritten


def check_functional_call_on_a_sharded_module() -> list[str]:
    layers = torch.nn.Linear(4, 6, bias=False), torch.nn.Linear(6, 2, bias=False)
    net, x = fully_shard(torch.nn.Sequential(*layers), mesh=mesh_of((1,))), torch.ones(1, 4)
    net(x).sum().backward()
    zeros = {name: torch.zeros_like(p) for name, p in net.named_parameters()}
    outputs = torch.func.functional_call(net, zeros, (x,))
    return [] if outputs.any() else ["the weights that were given are used"]


@pytest.mark.slow
def test_functional_call_on_a_sharded_module_is_ignored() -> None:
    all_well(1, check_functional_call_on_a_sharded_module)


def test_none_leaves_need_none_in_the_dims_of_vmap() -> None:
    stacked = {"weight": torch.randn(3, 4), "bias": None}

    def run(dims: object) -> object:
        call = torch.vmap(lambda p: gp.global_unstructured(p, amount=1), (dims,), dims)
        return call(stacked)

    with pytest.raises(ValueError, match="in_dims"):
        run(0)
    assert (run(gp.vmap_dims(stacked))["weight"].sum(1) == 3).all()
