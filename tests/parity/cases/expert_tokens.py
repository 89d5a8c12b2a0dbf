"""Two blocks of routed experts beside a shared one, over tokens that have a place in a sample."""

import torch
from torch import nn

from armillary.models.experts import BalanceBias, Experts, balance_loss

settings = {"epochs": 1, "global_batch_size": 8, "clip_norm": 0.3}
LENGTH, WIDTH, NUM_EXPERTS, VOCABULARY = 6, 8, 4, 14


class Block(nn.Module):
    """A causal mean over the tokens before, then experts: `top_k` routed ones and a shared one."""

    def __init__(self, top_k: int, capacity_factor: float | None, balance: str) -> None:
        super().__init__()
        self.top_k, self.balance = top_k, balance
        self.norm, self.mix = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, WIDTH)
        self.router = nn.Linear(WIDTH, NUM_EXPERTS, bias=False)
        self.chooser = BalanceBias(NUM_EXPERTS, speed=0.05 if balance == "bias" else 0.0)
        self.experts = Experts(NUM_EXPERTS, WIDTH, 12, capacity_factor=capacity_factor)
        self.shared = nn.Linear(WIDTH, WIDTH)

    def forward(self, x_BTH: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        count_T1 = torch.arange(1, x_BTH.shape[1] + 1, dtype=x_BTH.dtype)[:, None]
        x_BTH = x_BTH + self.mix(self.norm(x_BTH)).cumsum(1) / count_T1
        scores_BTE = self.router(x_BTH).softmax(-1)
        chosen_BTK = self.chooser(scores_BTE, self.top_k)
        weight_BTK = scores_BTE.gather(-1, chosen_BTK)
        mixed_NH = self.experts(
            x_BTH.flatten(0, 1), weight_BTK.flatten(0, 1), chosen_BTK.flatten(0, 1)
        )
        balance_B = balance_loss(scores_BTE, chosen_BTK)
        return x_BTH + self.shared(x_BTH) + mixed_NH.view_as(x_BTH), balance_B


class Routing(nn.Module):
    def __init__(self, top_k: int, capacity_factor: float | None, balance: str) -> None:
        super().__init__()
        self.embed = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.ModuleList(Block(top_k, capacity_factor, balance) for _ in range(2))
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, words_BT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x_BTH = self.embed(words_BT)
        balance_B = 0.0
        for block in self.blocks:
            x_BTH, found_B = block(x_BTH)
            balance_B = balance_B + found_B
        return self.head(x_BTH), balance_B


def model(top_k: int = 2, capacity_factor: float = 0.0, balance: str = "loss") -> nn.Module:
    return Routing(top_k, capacity_factor or None, balance)


def data() -> dict[str, list[torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    words = torch.randint(0, VOCABULARY, (40, LENGTH + 1), generator=generator)
    return {"train": list(words[:26]), "validation": list(words[26:])}


def loss(model, batch):
    logits_BTV, balance_B = model(batch[:, :-1])
    entropy = nn.functional.cross_entropy(logits_BTV.flatten(0, 1), batch[:, 1:].flatten())
    return entropy + 0.1 * balance_B.mean()


def optimizer(params):
    return torch.optim.AdamW(params, lr=1e-2)
