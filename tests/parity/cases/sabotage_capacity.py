"""Routed experts that drop what is beyond a capacity counted over all samples of a step."""

from typing import Any

from torch import nn

from tests.parity.cases import expert_tokens

settings = expert_tokens.settings
data, loss, optimizer = expert_tokens.data, expert_tokens.loss, expert_tokens.optimizer


def model() -> nn.Module:
    return expert_tokens.model(capacity_factor=0.8)


def tiny() -> Any:
    return model()
