"""A module with an LSTM, a batch norm and pairs to prune."""

import torch
from torch import nn
from torch.nn.utils import prune as torch_prune

L1 = torch_prune.L1Unstructured


def make():
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 3), nn.LSTM(3, 2), nn.BatchNorm1d(2), nn.Linear(3, 2))


def pairs_of(net):
    return [(net[0], "weight"), (net[1], "weight_hh_l0"), (net[3], "weight")]
