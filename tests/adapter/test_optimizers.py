"""Zeros that survive: `project_`, for every optimizer, before and after pruning is permanent."""

import copy
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from torch import nn, optim
from torch.nn.utils import prune as torch_prune

import gprune as gp
from gprune import adapter

OPTIMIZERS: list[Any] = [
    lambda params: torch.optim.SGD(params, lr=0.1),
    lambda params: torch.optim.SGD(params, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1),
    lambda params: torch.optim.Adam(params, lr=0.1, amsgrad=True),
    lambda params: torch.optim.AdamW(params, lr=0.1, foreach=True),
    lambda params: torch.optim.RMSprop(params, lr=0.1, centered=True, momentum=0.5),
    lambda params: torch.optim.Adagrad(params, lr=0.1, initial_accumulator_value=1.0),
]


def pruned(num_pruned: int = 32) -> nn.Module:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 1))
    adapter.global_unstructured([(net[0], "weight")], adapter.L1Unstructured, amount=num_pruned)
    return net


def train(net: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 5) -> None:
    for _ in range(steps):
        optimizer.zero_grad()
        net(torch.randn(16, 8)).square().mean().backward()
        optimizer.step()


def num_zeros(net: nn.Module) -> int:
    return int((adapter.params_of(net)["0.weight"] == 0).sum())


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_zeros_survive_steps_and_permanence(make: Any) -> None:
    net = pruned()
    optimizer = make(net.parameters())
    train(net, optimizer)  # moments that know nothing of masks
    adapter.project_(optimizer, net)
    for permanent in (False, True):
        if permanent:
            adapter.make_permanent_(net)
        train(net, optimizer)
        weight = adapter.params_of(net)["0.weight"]
        masked = weight == 0
        assert int(masked.sum()) == 32
        state = optimizer.state[weight]
        moments = [x for name, x in state.items() if name != "step" and x is not None]
        assert all((moment[masked] == 0).all() for moment in moments)
        assert "step" not in state or state["step"] > 0
        assert all((moment[~masked] != 0).any() for moment in moments)


def test_torch_alone_keeps_none_of_them() -> None:
    net = pruned()
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    train(net, optimizer)
    torch_prune.remove(net[0], "weight")
    assert num_zeros(net) == 32
    train(net, optimizer)
    assert num_zeros(net) == 0


def test_masks_of_later_rounds_are_followed_and_a_removed_hook_is_gone() -> None:
    net = pruned(16)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    handle = adapter.project_(optimizer, net)
    train(net, optimizer)
    assert num_zeros(net) == 16
    adapter.global_unstructured([(net[0], "weight")], adapter.L1Unstructured, amount=16)
    train(net, optimizer)
    assert num_zeros(net) == 32
    handle.remove()
    adapter.make_permanent_(net)
    train(net, optimizer)
    assert num_zeros(net) == 0


def test_what_is_pruned_and_made_permanent_between_two_steps_is_projected_by_another_call() -> None:
    net = pruned(16)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.1)
    adapter.project_(optimizer, net)
    train(net, optimizer)
    adapter.global_unstructured([(net[0], "weight")], adapter.L1Unstructured, amount=16)
    adapter.project_(optimizer, net)
    adapter.make_permanent_(net)
    train(net, optimizer)
    assert num_zeros(net) == 32


def test_a_pruned_scalar_keeps_its_count_of_steps() -> None:
    class Scale(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(2.0))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.scale

    net = adapter.attach_masks_(Scale(), {"scale": torch.tensor(False)})
    optimizer = torch.optim.Adam(net.parameters())
    adapter.project_(optimizer, net)
    net(torch.ones(2)).sum().backward()
    optimizer.step()
    assert optimizer.state[net.scale_orig]["step"] == 1
    assert net.scale_orig == 0


MOMENTS: dict[Any, set[str]] = {
    partial(optim.ASGD): {"ax"},
    partial(optim.Adadelta): {"square_avg", "acc_delta"},
    partial(optim.Adafactor): set(),
    partial(optim.Adagrad): {"sum"},
    partial(optim.Adam, amsgrad=True): {"exp_avg", "exp_avg_sq", "max_exp_avg_sq"},
    partial(optim.AdamW): {"exp_avg", "exp_avg_sq"},
    partial(optim.Adamax): {"exp_avg", "exp_inf"},
    partial(optim.LBFGS): set(),
    partial(optim.Muon): {"momentum_buffer"},
    partial(optim.NAdam): {"exp_avg", "exp_avg_sq"},
    partial(optim.RAdam): {"exp_avg", "exp_avg_sq"},
    partial(optim.RMSprop, centered=True, momentum=0.5): {
        "square_avg",
        "grad_avg",
        "momentum_buffer",
    },
    partial(optim.Rprop): {"prev"},  # 0 is no step size
    partial(optim.SGD, momentum=0.9): {"momentum_buffer"},
    partial(optim.SparseAdam): {"exp_avg", "exp_avg_sq"},
}
"""What each optimizer of torch stores as one value for each weight of a matrix."""


def test_every_optimizer_of_torch_is_in_the_table() -> None:
    classes = {c for c in vars(optim).values() if isinstance(c, type)}
    known = {c for c in classes if issubclass(c, optim.Optimizer)} - {optim.Optimizer}
    assert {make.func for make in MOMENTS} == known


class Weights(nn.Module):
    """One parameter, half of it pruned."""

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(shape) + 1)
        self.keep = torch.arange(self.weight.numel()).reshape(shape) % 2 == 0
        adapter.attach_masks_(self, {"weight": self.keep})


def step(optimizer: Any, weight: torch.Tensor) -> None:
    weight.grad = torch.rand(weight.shape) + 1
    if isinstance(optimizer, optim.SparseAdam):
        weight.grad = weight.grad.to_sparse(1)
    optimizer.step(lambda: weight.sum())


def assert_only_these_are_masked(optimizer: Any, net: Weights, masked: set[str]) -> None:
    """Call `project_`; of the state, it masks the named tensors and changes nothing else."""
    stored = optimizer.state[net.weight_orig]
    before = copy.deepcopy(dict(stored))
    adapter.project_(optimizer, net)
    for name, value in before.items():
        if name in masked:
            assert torch.equal(stored[name], value * net.keep), name
            assert not torch.equal(stored[name], value), name
        else:
            assert repr(stored[name]) == repr(value), name
    assert torch.equal(net.weight_orig == 0, ~net.keep)


@pytest.mark.parametrize("make", MOMENTS, ids=lambda make: make.func.__name__)
def test_the_moments_of_every_optimizer_of_torch_are_masked_and_nothing_else(make: Any) -> None:
    net = Weights(4, 6)
    optimizer = make(net.parameters(), lr=0.1)
    for _ in range(3):
        step(optimizer, net.weight_orig)
    assert_only_these_are_masked(optimizer, net, MOMENTS[make])
    step(optimizer, net.weight_orig)
    assert torch.equal(net.weight_orig == 0, ~net.keep)


@pytest.mark.parametrize(
    ("make", "shape", "masked"),
    [
        (optim.Adafactor, (6,), {"variance"}),
        (optim.Adafactor, (1, 6), set()),  # the variances of the columns have this shape
        (optim.LBFGS, (6,), set()),  # the direction and the last gradient have this shape
    ],
)
def test_a_state_is_masked_for_what_it_is_not_for_its_shape(
    make: Any, shape: tuple[int, ...], masked: set[str]
) -> None:
    net = Weights(*shape)
    optimizer = make(net.parameters(), lr=0.1)
    for _ in range(3):
        step(optimizer, net.weight_orig)
    shapes = {x.shape for x in optimizer.state[net.weight_orig].values() if torch.is_tensor(x)}
    assert torch.Size(shape) in shapes
    assert_only_these_are_masked(optimizer, net, masked)


class Quantized(torch.Tensor):
    """Codes of 8 bits that look like a float32 tensor and have no operators, as in torchao."""

    codes: torch.Tensor

    @staticmethod
    def __new__(cls, codes: torch.Tensor) -> "Quantized":
        self = torch.Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)
        self.codes = codes
        return self

    @classmethod
    def __torch_dispatch__(cls, op: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise NotImplementedError(op)


class Adam8bit(optim.SGD):
    """Plain gradient descent that stores what 8-bit optimizers store."""

    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # torch overloads it
        super().step()
        for weight in self.param_groups[0]["params"]:
            if self.state[weight]:
                continue
            codes = torch.full(weight.shape, 127, dtype=torch.uint8)
            self.state[weight] = {
                "step": torch.tensor(1.0),
                "state1": codes,  # bitsandbytes: 127 is the code of the value 0
                "absmax1": torch.ones(weight.shape[0]),
                "exp_avg_sq": codes.clone(),
                "exp_inf": codes.int(),
                "max_exp_avg_sq": torch.ones(weight.shape).to(torch.float8_e4m3fn),
                "exp_avg": Quantized(codes.clone()),
                "sum": torch.ones(2, 2),
                "qmap1": torch.ones(weight.shape),
                "momentum_buffer": None,
            }


def test_quantized_and_unknown_states_are_left_alone() -> None:
    net = Weights(4, 6)
    optimizer = Adam8bit(net.parameters(), lr=0.1)
    handle = adapter.project_(optimizer, net)  # before there is any state
    handle.remove()
    step(optimizer, net.weight_orig)
    before = dict(optimizer.state[net.weight_orig])
    adapter.project_(optimizer, net)
    step(optimizer, net.weight_orig)
    after = optimizer.state[net.weight_orig]
    assert after.pop("exp_avg").codes.eq(127).all()
    assert all(value is before[name] for name, value in after.items())
    assert all(after[name].eq(127).all() for name in ("state1", "exp_avg_sq", "exp_inf"))
    assert all(after[name].float().eq(1).all() for name in ("qmap1", "max_exp_avg_sq", "sum"))
    assert torch.equal(net.weight_orig == 0, ~net.keep)


class Wrapper(optim.Optimizer):
    """An optimizer around another one that runs no hooks of its own, as in Accelerate."""

    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer

    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # torch overloads it
        self.optimizer.step(closure)


@pytest.mark.parametrize("depth", [1, 2])
def test_the_optimizer_inside_a_wrapper_is_followed(depth: int) -> None:
    net = pruned()
    inner = torch.optim.Adam(net.parameters(), lr=0.1)
    wrapped: Any = inner
    for _ in range(depth):
        wrapped = Wrapper(wrapped)
    handle = adapter.project_(wrapped, net)
    adapter.make_permanent_(net)
    for _ in range(3):
        net(torch.randn(16, 8)).square().mean().backward()
        wrapped.step()
    weight = net[0].weight
    assert num_zeros(net) == 32
    assert (inner.state[weight]["exp_avg"][weight == 0] == 0).all()
    handle.remove()
    wrapped.step()
    assert num_zeros(net) == 0


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: None, TypeError, "got NoneType"),
        (lambda: Wrapper(None), TypeError, "got Wrapper"),
        (lambda: Mock(), TypeError, "got Mock"),
        (lambda: optim.Adam(pruned().parameters()), ValueError, "updates none of '0.weight'"),
    ],
)
def test_a_wrong_optimizer_changes_nothing(make: Any, error: type[Exception], words: str) -> None:
    net = pruned()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    with pytest.raises(error, match=words):
        adapter.project_(make(), net)
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def sparse() -> nn.Sequential:
    """A network that is half zero, without masks, and with a bias that starts at zero."""
    net = adapter.make_permanent_(adapter.prune_(pruned(0), sparsity=0.5))
    nn.init.zeros_(net[0].bias)
    return net


def zeros_of(net: nn.Module) -> dict[str, torch.Tensor]:
    return {name: weight == 0 for name, weight in net.state_dict().items() if weight.ndim == 2}


def assert_zeros_are_kept(net: nn.Module, zeros: dict[str, torch.Tensor]) -> None:
    assert all(torch.equal(found, zeros[name]) for name, found in zeros_of(net).items())


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_keep_zeros_in_a_sparse_network(make: Any) -> None:
    net = sparse()
    zeros, names = zeros_of(net), list(net.state_dict())
    optimizer = make(net.parameters())
    train(net, optimizer)  # without the hook the zeros are lost, and the moments are full
    assert num_zeros(net) == 0
    with torch.no_grad():
        for name, weight in net.named_parameters():
            weight.masked_fill_(zeros.get(name, torch.tensor(False)), 0)
    handle = adapter.keep_zeros_(net, optimizer)
    before = [weight.clone() for weight in net.parameters()]
    train(net, optimizer)
    assert_zeros_are_kept(net, zeros)
    assert list(net.state_dict()) == names
    assert all((x != y).any() for x, y in zip(before, net.parameters(), strict=True))
    assert (net[0].bias != 0).all()
    moments = optimizer.state[net[0].weight]
    assert all((moments[name][zeros["0.weight"]] == 0).all() for name in moments if name != "step")
    handle.remove()
    train(net, optimizer)
    assert num_zeros(net) == 0


def test_keep_zeros_with_a_gradient_scaler_autocast_accumulation_and_an_average() -> None:
    net = sparse()
    zeros = zeros_of(net)
    optimizer = optim.AdamW(net.parameters(), lr=0.1)
    adapter.keep_zeros_(net, optimizer)
    average = optim.swa_utils.AveragedModel(
        net, multi_avg_fn=optim.swa_utils.get_ema_multi_avg_fn(0.5)
    )
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    for number in range(4):
        for _ in range(3):
            with torch.autocast("cpu", dtype=torch.bfloat16):
                loss = net(torch.randn(16, 8)).square().mean()
            scaler.scale(loss * (float("inf") if number == 1 else 1)).backward()
        before = net[0].weight.clone()
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(net[0].weight, before) == (number == 1)  # the scaler skips that step
        optimizer.zero_grad()
        average.update_parameters(net)
    assert_zeros_are_kept(net, zeros)
    assert_zeros_are_kept(average.module, zeros)
    assert (average.module[0].weight != net[0].weight).any()


def test_keep_zeros_of_chosen_parameters() -> None:
    net = sparse()
    optimizer = optim.SGD(net.parameters(), lr=0.1)
    adapter.keep_zeros_(net, optimizer, where="0.*")
    zeros = zeros_of(net)
    train(net, optimizer)
    assert torch.equal(net[0].weight == 0, zeros["0.weight"])
    assert (net[0].bias == 0).all()
    assert (net[2].weight != 0).all()


def test_a_parameter_that_is_all_zero_stays_so_only_if_it_is_chosen() -> None:
    net = sparse()
    nn.init.zeros_(net[2].weight)  # as the second factor of LoRA starts
    optimizer = optim.SGD(net.parameters(), lr=0.1)
    with pytest.raises(ValueError, match=r"all of '2.weight' is zero and would stay so.*where="):
        adapter.keep_zeros_(net, optimizer)
    assert not optimizer._optimizer_step_post_hooks
    adapter.keep_zeros_(net, optimizer, where="*.weight")
    train(net, optimizer)
    assert (net[2].weight == 0).all()


@pytest.mark.parametrize(
    ("net", "optimizer", "where", "error", "words"),
    [
        (sparse, lambda net: None, None, TypeError, "got NoneType"),
        (lambda: None, lambda net: Adam8bit([torch.ones(1)]), None, TypeError, "module must be"),
        (pruned, lambda net: optim.SGD(net.parameters()), None, ValueError, "call project_ if"),
        (sparse, lambda net: optim.SGD(net.parameters()), 3, TypeError, "where must be"),
        (
            sparse,
            lambda net: optim.SGD(net.parameters()),
            "c*",
            ValueError,
            "where='c.' chooses no",
        ),
        (sparse, lambda net: optim.SGD([net[0].bias]), None, ValueError, "updates none of"),
    ],
)
def test_keep_zeros_refuses(
    net: Any, optimizer: Any, where: Any, error: type[Exception], words: str
) -> None:
    module = net()
    steps = optimizer(module)
    with pytest.raises(error, match=words):
        adapter.keep_zeros_(module, steps, where=where)
    assert not getattr(steps, "_optimizer_step_post_hooks", None)


@pytest.mark.parametrize(
    ("optimizer", "module", "error", "words"),
    [
        (None, nn.Linear(1, 1), TypeError, "optimizer must be"),
        (torch.optim.SGD([torch.ones(1)]), None, TypeError, "module must be"),
        (torch.optim.SGD([torch.ones(1)]), nn.Linear(1, 1), ValueError, "no pruned parameter"),
    ],
)
def test_bad_input(optimizer: Any, module: Any, error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        adapter.project_(optimizer, module)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")  # those of the other library
@pytest.mark.parametrize("from_callback", [False, True])
def test_keep_zeros_inside_the_trainer_of_transformers(tmp_path: Path, from_callback: bool) -> None:
    transformers = pytest.importorskip("transformers")  # of the extra dev
    pytest.importorskip("accelerate")  # of the extra dev
    config = transformers.BertConfig(
        vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2
    )
    net = transformers.BertForSequenceClassification(config)
    adapter.make_permanent_(adapter.prune_(net, sparsity=0.5))
    zeros = zeros_of(net)
    optimizer = optim.AdamW(net.parameters(), lr=0.1, weight_decay=0.1)

    class KeepZeros(transformers.TrainerCallback):  # type: ignore[misc]  # skipped without it
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            adapter.keep_zeros_(kwargs["model"], kwargs["optimizer"])

    if not from_callback:
        adapter.keep_zeros_(net, optimizer)
    trainer = transformers.Trainer(
        net,
        transformers.TrainingArguments(
            str(tmp_path),
            max_steps=3,
            per_device_train_batch_size=2,
            gradient_accumulation_steps=2,
            bf16=True,
            use_cpu=True,
            report_to=[],
            disable_tqdm=True,
        ),
        train_dataset=[{"input_ids": torch.arange(5) + i, "labels": i % 2} for i in range(12)],
        optimizers=(optimizer, None),
        callbacks=[KeepZeros()] if from_callback else [],
    )
    before = net.classifier.weight.clone()
    trainer.train()
    assert_zeros_are_kept(net, zeros)
    assert (net.classifier.weight != before).any()


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")  # those of the other library
def test_keep_zeros_inside_the_trainer_of_lightning(tmp_path: Path) -> None:
    lightning = pytest.importorskip("lightning")  # of the extra dev
    zeros = {}

    class Module(lightning.LightningModule):  # type: ignore[misc]  # skipped without it
        def __init__(self) -> None:
            super().__init__()
            self.net = sparse()

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            return self.net(batch[0]).square().mean()

        def configure_optimizers(self) -> Any:
            optimizer = optim.AdamW(self.parameters(), lr=0.1, weight_decay=0.1)
            adapter.keep_zeros_(self, optimizer)
            return optimizer

        def on_train_start(self) -> None:
            zeros.update(zeros_of(self))
            adapter.keep_zeros_(self, self.optimizers())  # works with Lightning's wrapper too

    module = Module()
    before = module.net[0].weight.clone()
    trainer = lightning.Trainer(
        max_steps=4,
        accelerator="cpu",
        precision="bf16-mixed",
        accumulate_grad_batches=2,
        default_root_dir=tmp_path,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(
        module, torch.utils.data.DataLoader(torch.utils.data.TensorDataset(torch.randn(16, 8)), 2)
    )
    assert zeros
    assert_zeros_are_kept(module, zeros)
    assert (module.net[0].weight != before).any()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # those of the other library
def test_project_through_the_optimizer_of_accelerate() -> None:
    accelerate = pytest.importorskip("accelerate")  # of the extra dev
    net = pruned()
    accelerator = accelerate.Accelerator(cpu=True)
    wrapped_net, optimizer = accelerator.prepare(net, optim.AdamW(net.parameters(), lr=0.1))
    adapter.project_(optimizer, wrapped_net)
    adapter.make_permanent_(net)
    for _ in range(3):
        accelerator.backward(wrapped_net(torch.randn(16, 8)).square().mean())
        optimizer.step()
    assert num_zeros(net) == 32


@pytest.mark.long  # torchao compiles its step
@pytest.mark.filterwarnings("ignore")  # those of the other library
@pytest.mark.parametrize("name", ["AdamW8bit", "AdamW4bit", "AdamWFp8"])
def test_project_with_the_quantized_optimizers_of_torchao(name: str) -> None:
    torchao = pytest.importorskip("torchao.optim")  # in no extra: it follows each torch late
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(128, 128), nn.Tanh(), nn.Linear(128, 1))
    adapter.prune_(net, sparsity=0.5)
    optimizer = getattr(torchao, name)(net.parameters(), lr=0.1)
    adapter.project_(optimizer, net)
    for permanent in (False, True):
        if permanent:
            adapter.make_permanent_(net)
        for _ in range(2):
            net(torch.randn(16, 128)).square().mean().backward()
            optimizer.step()
        params = gp.prunable(adapter.params_of(net))
        assert int(gp.num_pruned(gp.masks_from_zeros(params))) == gp.num_to_prune(0.5, 129 * 128)
    assert type(optimizer.state[net[0].weight]["exp_avg"]) is not torch.Tensor
