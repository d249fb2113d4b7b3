"""Reports of checkpoints: zeros of tensors of any dtype and layout."""

import json
from pathlib import Path

import torch
from torch.nn.utils import prune as torch_prune

from tests.support.checkpoint_commands import assert_refused, prune, run
from tests.support.checkpoint_files import raw, save


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


def test_the_two_entries_of_a_byte_are_counted(tmp_path: Path) -> None:
    """0 and -0 are the half bytes 0 and 8."""
    halves = torch.tensor([[0x00, 0x10, 0x08, 0x7F], [0x80, 0x88, 0x99, 0x01]], dtype=torch.uint8)
    tree = {"w": halves.view(torch.float4_e2m1fn_x2)}
    torch.save(tree, tmp_path / "x.pt")
    for path in (save(tmp_path / "x.safetensors", tree), tmp_path / "x.pt"):
        [row] = json.loads(run("report", path, "--json").stdout)["tensors"]
        assert (row["shape"], row["entries"], row["zeros"]) == ([2, 8], 16, 10)


def test_powers_of_two_are_never_zero(tmp_path: Path) -> None:
    """torch says that the smallest one, whose bits are all 0, equals 0."""
    tree = {"scales": torch.arange(4, dtype=torch.uint8).view(torch.float8_e8m0fnu)}
    [row] = json.loads(run("report", save(tmp_path / "x.safetensors", tree), "--json").stdout)[
        "tensors"
    ]
    assert (row["entries"], row["zeros"]) == (4, 0)


def test_what_cannot_be_counted_is_printed_with_the_reason(tmp_path: Path) -> None:
    """Codes of quantized weights, and dtypes that torch cannot compare or does not have."""
    codes = {"a.qweight": torch.zeros(2, 2).int(), "a.scales": torch.ones(2, 2).half()}
    torch.save(codes | {"bits": torch.zeros(2).byte().view(torch.bits8)}, tmp_path / "x.pt")
    six = {"dtype": "F6_E2M3", "shape": [4], "data_offsets": [0, 3]}
    (tmp_path / "six.safetensors").write_bytes(raw(json.dumps({"six": six}), bytes(3)))
    for name, counted, reasons in [
        ("x.pt", ["a.scales"], {"a.qweight": "GPTQ", "bits": "torch.bits8"}),
        ("six.safetensors", [], {"six": "torch cannot compare"}),
    ]:
        found = json.loads(run("report", tmp_path / name, "--json").stdout)
        assert [row["name"] for row in found["tensors"]] == counted
        assert found["not_counted"].keys() == reasons.keys()
        assert all(word in found["not_counted"][key] for key, word in reasons.items())
        shown = run("report", tmp_path / name).stdout
        assert all(f"1 {why}: {key}\n" in shown for key, why in found["not_counted"].items())
