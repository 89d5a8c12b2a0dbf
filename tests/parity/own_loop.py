"""A person's own training loop, serial or made parallel by one line.

As a script: `torchrun --nproc-per-node N own_loop.py OUT LAYOUT...` trains on each layout in turn.
"""

import os
import sys
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import armillary

NUM_EPOCHS = 2


def train(layout: str | None, shuffle: bool = False) -> dict[str, torch.Tensor]:
    """The parameters after 2 epochs of 45 samples in batches of 14; the last holds 3.

    Every rank begins with parameters of its own: the first rank's are those that count.
    """
    torch.manual_seed(int(os.environ.get("RANK", "0")))
    model = nn.Sequential(nn.Linear(5, 9), nn.Tanh(), nn.Linear(9, 1)).double()
    torch.manual_seed(7)
    x_BD = torch.randn(45, 5, dtype=torch.float64)
    dataset = TensorDataset(x_BD, x_BD.sum(1, keepdim=True).sin())
    loader = DataLoader(dataset, batch_size=14, shuffle=shuffle)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    if layout is not None:
        model, optimizer, loader = armillary.parallelize(model, optimizer, loader, layout)
    for _ in range(NUM_EPOCHS):
        for x, y in loader:
            nn.functional.mse_loss(model(x), y).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            optimizer.step()
            optimizer.zero_grad()
    return {
        name: (p.full_tensor() if hasattr(p, "full_tensor") else p).detach().clone()
        for name, p in model.named_parameters()
    }


def train_once(layout: str, shuffle: bool) -> dict[str, torch.Tensor]:
    """`train`, in a process that trains again later."""
    try:
        return train(layout, shuffle)
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


if __name__ == "__main__":
    found = {layout: train(layout) for layout in sys.argv[2:]}
    if torch.distributed.get_rank() == 0:
        torch.save(found, Path(sys.argv[1]))
    torch.distributed.destroy_process_group()
