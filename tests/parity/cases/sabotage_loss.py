"""A loss that is another one on every rank: `verify` has to say that it is not one program."""

import os

from tests.parity.cases import mlp

settings = mlp.settings
model, data, optimizer = mlp.model, mlp.data, mlp.optimizer


def loss(model, batch):
    return mlp.loss(model, batch) * (1.0 + 0.1 * int(os.environ.get("RANK", "0")))
