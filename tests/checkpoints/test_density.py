"""Reports of checkpoints: zeros of tensors of any dtype and layout."""

import json
from pathlib import Path

import torch
from torch.nn.utils import prune as torch_prune

from tests.support.checkpoint_commands import assert_refused, prune, run
from tests.support.checkpoint_files import save


def test_report(tmp_path: Path) -> None:
    tree = {
        "weight": torch.tensor([[0.0, -0.0], [1.0, float("nan")]]),
        "narrow": torch.tensor([[0, 2, 0]]).to(torch.float8_e5m2),
        "bias": torch.zeros(3),
        "empty": torch.empty(0, 2),
        "scalar": torch.tensor(True),
    }
    saved = save(tmp_path / "x.safetensors", tree), tmp_path / "x.pt"
    torch.save(tree, saved[1])
    for path in saved:
        found = json.loads(run("report", path, "--json").stdout)
        zeros = {row["name"]: row["zeros"] for row in found["tensors"]}
        assert zeros == {"weight": 2, "narrow": 2, "bias": 3, "empty": 0, "scalar": 0}
        assert found["matrices"] == {"entries": 4, "zeros": 2, "density": 0.5}
        assert found["all"] == {"entries": 11, "zeros": 7, "density": 1 - 7 / 11}
        assert "0.5000" in run("report", path).stdout


def test_report_of_a_pruned_module(tmp_path: Path) -> None:
    module = torch.nn.Linear(10, 10)
    torch_prune.l1_unstructured(module, "weight", amount=30)
    torch.save(module.state_dict(), tmp_path / "x.pt")
    source = save(tmp_path / "x.safetensors", module.state_dict())
    for path in (source, tmp_path / "x.pt"):
        found = json.loads(run("report", path, "--json").stdout)
        zeros = {row["name"]: row["zeros"] for row in found["tensors"]}
        assert zeros == {"weight": 30, "bias": 0}
    refused = prune(source, tmp_path / "y.safetensors")
    assert_refused(refused)
    assert "make_permanent_()" in refused.stderr


def test_report_reads_tensors_of_any_layout(tmp_path: Path) -> None:
    weight = torch.arange(12.0).view(3, 4).t()
    torch.save({"weight": weight, "expanded": torch.zeros(1).expand(5, 2)}, tmp_path / "x.pth")
    found = json.loads(run("report", tmp_path / "x.pth", "--json").stdout)
    assert {row["name"]: row["zeros"] for row in found["tensors"]} == {"weight": 1, "expanded": 10}
