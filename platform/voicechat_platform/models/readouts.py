"""Readouts of a head that do not depend on how its weights are written.

A metric M alone has no meaning: the change P -> G P and M -> G⁻ᵀ M G⁻¹ changes M and keeps every score. It also keeps
the bilinear form B = Pᵀ M P on the model's space (Qᵀ K for a standard head), so all readouts here come from B.

Letters: b batch, t query position, s key position, d model width, h head, k head width, n chosen tokens.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS
from transformers.models.llama.modeling_llama import eager_attention_forward

from voicechat_platform.models.attention import CausalAttention
from voicechat_platform.models.gpt import GPTForCausalLM

RECORDING = "voicechat_recording"
"""The name of an attention function that records the weights that it computes."""


@dataclass(frozen=True)
class HeadReadout:
    """The readouts of one head. Weights are means of attention weights, 0 to 1."""

    layer: int
    head: int
    eigenvalues_k: Tensor
    """The k largest eigenvalues by size of B's symmetric part, the largest first."""
    eigenvectors_dk: Tensor
    """Their directions in the model's space."""
    positive: int
    """n+, the number of eigenvalues above a thousandth of the largest size."""
    negative: int
    """n-."""
    effective_rank: float
    """exp(entropy of |eigenvalues|, as shares of their sum)."""
    symmetry: float
    """The share of ‖symmetric part of B‖² in ‖B‖²: 1 for a symmetric metric, about 0.5 for random Q and K."""
    self_weight: float
    """The attention to the token itself."""
    previous_token: float
    """The attention to the previous token."""
    induction: float
    """On a repeated text: the attention to the token that followed this token the first time."""


@torch.no_grad()
def read_heads(model: GPTForCausalLM, tokens_bt: Tensor) -> list[HeadReadout]:
    """Return the readouts of every head of the model.

    Args:
        model: standard or metric attention.
        tokens_bt: the text for self weight and previous token.
    """
    weights_lbhts = attention_weights(model, tokens_bt)
    half = model.config.max_position_embeddings // 2
    generator = torch.Generator().manual_seed(0)
    once_bt = torch.randint(model.config.vocab_size, (8, half), generator=generator)
    repeated_lbhts = attention_weights(model, once_bt.repeat(1, 2))
    readouts = []
    for layer, block in enumerate(model.blocks):
        self_h = weights_lbhts[layer].diagonal(dim1=-2, dim2=-1).mean((0, 2))
        previous_h = weights_lbhts[layer].diagonal(-1, dim1=-2, dim2=-1).mean((0, 2))
        # Position t of the repetition sees the token that followed its first occurrence at t - half + 1.
        induction_h = repeated_lbhts[layer].diagonal(1 - half, dim1=-2, dim2=-1)[..., 1:].mean((0, 2))
        for head in range(model.config.num_attention_heads):
            values_k, vectors_dk, symmetry = spectrum(*bilinear_form(block.attention, model, head))
            shares_k = values_k.abs() / values_k.abs().sum()
            significant_k = values_k.abs() > values_k.abs().max() / 1000
            readouts.append(
                HeadReadout(
                    layer=layer,
                    head=head,
                    eigenvalues_k=values_k,
                    eigenvectors_dk=vectors_dk,
                    positive=int((significant_k & (values_k > 0)).sum()),
                    negative=int((significant_k & (values_k < 0)).sum()),
                    effective_rank=math.exp(torch.special.entr(shares_k).sum().item()),
                    symmetry=symmetry,
                    self_weight=self_h[head].item(),
                    previous_token=previous_h[head].item(),
                    induction=induction_h[head].item(),
                )
            )
    return readouts


def bilinear_form(attention: CausalAttention, model: GPTForCausalLM, head: int) -> tuple[Tensor, Tensor]:
    """Return factors (k, d) of B = leftᵀ right, float64: the head's score of x and y without positions is xᵀ B y."""
    q_hkd, k_gkd, _ = (
        part.double().unflatten(0, (-1, attention.head_width)) for part in attention.projections(model.shared_metric)
    )
    return q_hkd[head], k_gkd[head // attention.num_key_value_groups]


def spectrum(left_kd: Tensor, right_kd: Tensor) -> tuple[Tensor, Tensor, float]:
    """Return eigenvalues and directions of B's symmetric part, the largest size first, and its share of ‖B‖²."""
    # Both factors lie in a space of at most 2k dimensions: compute there, not in d x d.
    basis_dr, _ = torch.linalg.qr(torch.cat([left_kd, right_kd]).mT)
    form_rr = (left_kd @ basis_dr).mT @ (right_kd @ basis_dr)
    symmetric_rr = (form_rr + form_rr.mT) / 2
    values_r, vectors_rr = torch.linalg.eigh(symmetric_rr)
    order = values_r.abs().argsort(descending=True)[: left_kd.shape[0]]
    symmetry = (symmetric_rr.square().sum() / form_rr.square().sum()).item()
    return values_r[order], (basis_dr @ vectors_rr)[:, order], symmetry


def token_distances(model: GPTForCausalLM, readout: HeadReadout, tokens_n: Tensor) -> Tensor:
    """Return (n, n) squared distances of the tokens' embeddings under the head's form; negative if the form is
    indefinite."""
    coordinates_nk = model.embedding.weight[tokens_n].detach().double() @ readout.eigenvectors_dk
    differences_nnk = coordinates_nk[:, None] - coordinates_nk[None]
    return differences_nnk.square() @ readout.eigenvalues_k


@torch.no_grad()
def attention_weights(model: GPTForCausalLM, tokens_bt: Tensor) -> list[Tensor]:
    """Return the attention weights (b, h, t, s) of each layer."""
    recorded: list[Tensor] = []

    def record(module, query, key, value, attention_mask, **kwargs):
        if attention_mask is None:  # the kernels' own causal one
            length = query.shape[2]
            attention_mask = torch.full((length, length), -torch.inf, dtype=query.dtype).triu(1)[None, None]
        output, weights_bhts = eager_attention_forward(module, query, key, value, attention_mask, **kwargs)
        recorded.append(weights_bhts)
        return output, weights_bhts

    ALL_ATTENTION_FUNCTIONS.register(RECORDING, record)
    usual = model.config._attn_implementation
    try:
        model.config._attn_implementation = RECORDING
        model(tokens_bt, use_cache=False)
    finally:
        model.config._attn_implementation = usual
    return recorded
