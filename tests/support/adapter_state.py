"""What pruning leaves in a module, compared between two copies of it."""

import torch
from torch import nn
from torch.nn.utils import prune


def hook_chain(hook):
    """The classes that torch has for a pruning hook, a container's members in order."""
    inner = [hook_chain(h) for h in hook] if isinstance(hook, prune.PruningContainer) else []
    torchs = next((c for c in type(hook).__mro__ if c.__module__ == prune.__name__), type(hook))
    return torchs, getattr(hook, "_tensor_name", None), inner


def layout(module):
    """All of the structure: names in order, dtypes, strides, persistence, hooks, autograd."""
    rows = {}
    for path, owner in module.named_modules():
        tensors = {
            **{("parameter", k): v for k, v in owner._parameters.items()},
            **{("buffer", k): v for k, v in owner._buffers.items()},
            **{("attribute", k): v for k, v in vars(owner).items() if isinstance(v, torch.Tensor)},
        }
        rows[path] = {
            "tensors": [
                (
                    key,
                    None if t is None else (type(t), t.dtype, t.shape, t.stride(), t.requires_grad),
                )
                for key, t in tensors.items()
            ],
            "functions": {key: type(getattr(t, "grad_fn", None)) for key, t in tensors.items()},
            "not persistent": owner._non_persistent_buffers_set,
            "hooks": [hook_chain(h) for h in owner._forward_pre_hooks.values()],
            "attributes": list(vars(owner)),
        }
    return rows


def values(module):
    """All tensors of all modules by path, masked attributes and an RNN's flat weights included."""
    found = {}
    for path, owner in module.named_modules():
        boxes = {**owner._parameters, **owner._buffers, **vars(owner)}
        boxes |= {
            f"_flat_weights.{i}": t for i, t in enumerate(getattr(owner, "_flat_weights", ()))
        }
        found |= {f"{path}.{k}": v for k, v in boxes.items() if isinstance(v, torch.Tensor)}
    return found


def assert_same_state(ours: nn.Module, theirs: nn.Module) -> None:
    """Same parameters, buffers, hooks and attributes, in names, order, kind and value."""
    a, b = layout(ours), layout(theirs)
    assert a == b
    assert list(ours.state_dict()) == list(theirs.state_dict())
    left, right = values(ours), values(theirs)
    assert list(left) == list(right)
    differing = [k for k in left if not torch.equal(left[k].detach(), right[k].detach())]
    assert not differing


def identities(module):
    """Everything that must be the very same object after a failure, by path and name."""
    found = {}
    for path, owner in module.named_modules():
        for box in (owner._parameters, owner._buffers, vars(owner)):
            found |= {(path, id(box), k): id(v) for k, v in box.items()}
        found |= {(path, "hook", k): hook_chain(h) for k, h in owner._forward_pre_hooks.items()}
        flat = getattr(owner, "_flat_weights", ())
        found |= {(path, "flat", i): id(t) for i, t in enumerate(flat)}
    return found


def num_zero(module):
    """How many mask entries are zero."""
    return sum(int((b == 0).sum()) for n, b in module.named_buffers() if n.endswith("_mask"))
