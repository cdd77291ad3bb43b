"""How well a model predicts a text: the mean loss over fixed, non-overlapping windows.

Letters: b batch, t position, v vocabulary.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@torch.no_grad()
def mean_loss(
    model: nn.Module, tokens: Tensor, context: int, windows: int | None = None, batch_size: int = 32
) -> float:
    """Mean loss in nats per token.

    Args:
        tokens: (n,) the text. It is cut into windows of one context, each predicted on its own.
        windows: how many windows, spread evenly over the text; all of them, and the shorter rest, when None.

    Returns:
        The same value for the same model and tokens: nothing is drawn at random, dropout is off.
    """
    device = next(model.parameters()).device
    targets = len(tokens) - 1
    starts = torch.arange(0, targets, context)
    if windows is not None and windows < len(starts):
        starts = starts[torch.linspace(0, len(starts) - 2, windows).long()]
    full = starts[starts + context <= targets]
    batches = [(starts_b, context) for starts_b in full.split(batch_size) if len(starts_b)]
    if len(full) < len(starts):
        batches.append((starts[-1:], targets - int(starts[-1])))
    was_training = model.training
    model.eval()
    total, count = 0.0, 0
    for starts_b, length in batches:
        window_bt = tokens[starts_b[:, None] + torch.arange(length + 1)].long().to(device)
        logits_btv = model(window_bt[:, :-1], use_cache=False).logits
        losses = F.cross_entropy(logits_btv.flatten(0, 1).float(), window_bt[:, 1:].flatten(), reduction="sum")
        total += losses.item()
        count += length * len(starts_b)
    model.train(was_training)
    return total / count
