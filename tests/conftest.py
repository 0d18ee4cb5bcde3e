"""Shared by all tests: one thread, since small tensors gain nothing from more and busy machines lose much by them."""

import torch

torch.set_num_threads(1)

# Definitions for suites of their own; importing them here would register them.
collect_ignore = ["toy_suite", "planted_suite"]
