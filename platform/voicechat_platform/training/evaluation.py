"""The mean loss of a model over fixed batches.

Letters: b batch, t position, k position with a label, n = b·t or b·k, v vocabulary.
"""

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from voicechat_platform.corpora.batches import IGNORED, Batch
from voicechat_platform.errors import InputError

LARGEST_LOGITS = 2**25
"""The most logits to compute at once: 128 MiB in float32."""


def loss_sum(model: nn.Module, inputs_bt: Tensor, labels_bt: Tensor) -> Tensor:
    """Return the sum of the losses of all labels except IGNORED, in nats."""
    kept: dict[str, Tensor] = {}
    labelled_k = (labels_bt != IGNORED).any(0).nonzero().squeeze(1)
    if 0 < len(labelled_k) < labels_bt.shape[1]:
        # Logits are half of the work of a small model, and what follows the last label changes no loss.
        inputs_bt, labels_bt = inputs_bt[:, : labelled_k[-1] + 1], labels_bt[:, labelled_k]
        kept["logits_to_keep"] = labelled_k
    logits_nv = model(input_ids=inputs_bt, use_cache=False, **kept).logits.flatten(0, 1)
    precise_nv = logits_nv.to(torch.promote_types(logits_nv.dtype, torch.float32))
    return F.cross_entropy(precise_nv, labels_bt.flatten(), ignore_index=IGNORED, reduction="sum")


@torch.no_grad()
def mean_loss(model: nn.Module, batches: Iterable[Batch]) -> float:
    """Return the mean loss in nats per token, without dropout.

    Args:
        batches: of any size; large ones are computed in parts.

    Raises:
        InputError: all labels are IGNORED: the context ends before any reply.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    total, count = 0.0, 0
    for inputs_bt, labels_bt in batches:
        rows = max(1, LARGEST_LOGITS // (inputs_bt.shape[1] * model.config.vocab_size))
        for part_bt, part_labels_bt in zip(inputs_bt.split(rows), labels_bt.split(rows), strict=True):
            total += loss_sum(model, part_bt.to(device), part_labels_bt.to(device)).item()
        count += int((labels_bt != IGNORED).sum())
    model.train(was_training)
    if not count:
        raise InputError("nothing to predict within the context: lengthen model.context")
    return total / count
