"""The recipe `moe` at a size of milliseconds, over words that all occur."""

from torch import nn

from armillary.recipes import moe
from tests.parity.cases import sabotage_decoder

settings, data = sabotage_decoder.settings, sabotage_decoder.data


def model(balance: str = "loss") -> nn.Module:
    return moe.model(
        num_layers=2,
        hidden_size=16,
        vocab_size=sabotage_decoder.NUM_WORDS,
        num_experts=4,
        balance=balance,
        balance_weight=1.0,
    )


loss, optimizer = moe.loss, moe.optimizer
