"""Scores: functions from parameters to a scores pytree, larger = more important, detached."""

from gprune.scores.magnitude import magnitude
from gprune.scores.random import random

__all__ = ["magnitude", "random"]
