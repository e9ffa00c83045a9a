"""Hardens a classifier before it serves untrusted clients: one line around the model."""

import torch
from torch import nn

import shieldnet as sn

model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 5)).eval()
shield = sn.harden(model)

answers = shield(torch.randn(3, 20))
print(answers.softmax(-1))
print(shield)
