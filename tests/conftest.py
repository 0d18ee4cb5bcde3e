"""Shared by all tests: one thread, since small tensors gain nothing from more and busy machines lose much by them."""

import torch

torch.set_num_threads(1)
