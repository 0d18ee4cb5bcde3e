"""A user's repository for the plug-in's tests: a small encoder of integer ids with random weights, without labels."""

import torch
from torch import Tensor, nn

from pruning_bench import cosine_agreement, evaluation_data, trained_model

WORDS, LENGTH, WIDTH = 40, 10, 32


class Encoder(nn.Module):
    """[N, LENGTH] ids and mask -> [N, WIDTH]: the mean over the places that the mask holds."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(WORDS, WIDTH)
        self.places = nn.Embedding(LENGTH, WIDTH)
        self.layer = nn.TransformerEncoderLayer(WIDTH, 4, 48, dropout=0.0, batch_first=True, activation="gelu")

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        x = self.words(ids) + self.places(torch.arange(ids.shape[1], device=ids.device))
        x = self.layer(x, src_key_padding_mask=mask == 0)
        held = mask.unsqueeze(-1).to(x.dtype)
        return (x * held).sum(1) / held.sum(1)


@trained_model
def encoder() -> nn.Module:
    """The encoder with its weights."""
    return Encoder()


@evaluation_data(score=cosine_agreement)
def sentences() -> dict[str, tuple[Tensor, ...]]:
    """Ids, and masks of two lengths."""
    ids = torch.randint(WORDS, (96, LENGTH))
    mask = torch.ones_like(ids)
    mask[::2, 6:] = 0
    return {"test": (ids[:64], mask[:64]), "calibration": (ids[64:], mask[64:])}
