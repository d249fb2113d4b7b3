"""The error of one leaf, for `gprune.select`."""

from gprune.inputs import LeafError as LeafError
