"""Scoring candidate answers: rules, judges and their combination, in a pipeline or alone."""

from reward.base import Reward, Score
from reward.load import load_reward

__all__ = ["Reward", "Score", "load_reward"]
