"""`voicechat heads`: a checkpoint's heads as figures, as data and as a table.

Letters: h head, k head width, n tokens shown, t query position, s key position.
"""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("agg")
import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure

from voicechat_platform.checkpoints import load_checkpoint
from voicechat_platform.errors import InputError
from voicechat_platform.models import GPTForCausalLM
from voicechat_platform.models.readouts import HeadReadout, attention_weights, read_heads, token_distances
from voicechat_platform.training.recipe import read_recipe
from voicechat_platform.training.starting_point import load_data

TOKENS_SHOWN = 24
SCORES = ("symmetry", "self_weight", "previous_token", "induction")


def show_heads(folder: Path, out: Path) -> list[dict[str, Any]]:
    """Read every head and write the figures.

    Args:
        folder: a checkpoint of ours.
        out: folder for the figures and heads.json.

    Returns:
        A row of readouts for each head.

    Raises:
        InputError: the checkpoint is not of our family.
    """
    model, tokenizer = load_checkpoint(folder)
    if not isinstance(model, GPTForCausalLM):
        raise InputError(f"{folder} is a {type(model).__name__}; heads are read of this project's own models")
    data = load_data(read_recipe(folder))
    context = min(model.config.max_position_embeddings, 128)
    inputs = [inputs_bt for inputs_bt, _ in data.validation(context, None)]
    tokens_bt = inputs[0][:8]
    if tokens_bt.shape[1] < 2:
        raise InputError(f"the validation part of {data.source} is too short to look at")
    readouts = read_heads(model, tokens_bt)
    counts_v = torch.cat([inputs_bt.flatten() for inputs_bt in inputs]).bincount(minlength=model.config.vocab_size)
    commonest_n = counts_v.argsort(descending=True)[:TOKENS_SHOWN].sort().values
    text_n = inputs[0][0, :TOKENS_SHOWN]
    labels, text = (
        [repr(tokenizer.decode([token]))[1:-1] for token in tokens_n.tolist()] for tokens_n in (commonest_n, text_n)
    )
    distances = [token_distances(model, readout, commonest_n) for readout in readouts]

    out.mkdir(parents=True, exist_ok=True)
    weights = attention_weights(model, text_n[None])
    attention = [weights[readout.layer][0, readout.head] for readout in readouts]
    along = [loadings(model, readout, commonest_n) for readout in readouts]
    save(out / "spectra.png", spectra(readouts))
    save(out / "scores.png", score_maps(readouts))
    save(out / "eigenbasis.png", maps(readouts, along, labels, None))
    save(out / "distances.png", maps(readouts, distances, labels, labels))
    save(out / "attention.png", maps(readouts, attention, text, text))
    rows = [row(readout) for readout in readouts]
    heads = [
        row(readout)
        | {
            "eigenvalues": readout.eigenvalues_k.tolist(),
            "token_distances": distances_nn.tolist(),
            "loadings": along_nk.tolist(),
            "attention": attention_ts.tolist(),
        }
        for readout, distances_nn, along_nk, attention_ts in zip(readouts, distances, along, attention, strict=True)
    ]
    (out / "heads.json").write_text(json.dumps({"tokens": labels, "text": text, "heads": heads}))
    return rows


def row(readout: HeadReadout) -> dict[str, Any]:
    """Return the scalars of a head."""
    return {name: value for name, value in asdict(readout).items() if not isinstance(value, torch.Tensor)}


def loadings(model: GPTForCausalLM, readout: HeadReadout, tokens_n: torch.Tensor) -> torch.Tensor:
    """Return (n, k): each token's embedding along the head's directions, scaled by the weight of each direction."""
    coordinates_nk = model.embedding.weight[tokens_n].detach().double() @ readout.eigenvectors_dk
    return coordinates_nk * readout.eigenvalues_k.abs().sqrt() * readout.eigenvalues_k.sign()


def grid(readouts: list[HeadReadout], size: float) -> tuple[Figure, Any]:
    rows, columns = readouts[-1].layer + 1, readouts[-1].head + 1
    figure, axes = plt.subplots(
        rows, columns, figsize=(size * columns, size * rows), squeeze=False, layout="constrained"
    )
    for readout in readouts:
        axes[readout.layer, readout.head].set_title(f"layer {readout.layer} head {readout.head}", fontsize=8)
    return figure, axes


def spectra(readouts: list[HeadReadout]) -> Figure:
    figure, axes = grid(readouts, 2.2)
    for readout in readouts:
        values = readout.eigenvalues_k.sort(descending=True).values
        axis = axes[readout.layer, readout.head]
        axis.bar(range(len(values)), values, color=["#0f766e" if value > 0 else "#dc2626" for value in values])
        axis.set_xlabel(f"+{readout.positive} −{readout.negative}, rank {readout.effective_rank:.1f}", fontsize=7)
        axis.tick_params(labelsize=6)
    figure.suptitle("Eigenvalues of each head's form", fontsize=10)
    return figure


def score_maps(readouts: list[HeadReadout]) -> Figure:
    figure, axes = plt.subplots(1, len(SCORES), figsize=(3 * len(SCORES), 3), layout="constrained")
    for axis, name in zip(axes, SCORES, strict=True):
        table = torch.zeros(readouts[-1].layer + 1, readouts[-1].head + 1)
        for readout in readouts:
            table[readout.layer, readout.head] = getattr(readout, name)
            axis.text(
                readout.head, readout.layer, f"{getattr(readout, name):.2f}", ha="center", va="center", fontsize=8
            )
        axis.imshow(table, cmap="YlGnBu", vmin=0, vmax=1)
        axis.set_title(name.replace("_", " "), fontsize=9)
        axis.set_xlabel("head", fontsize=8)
        axis.set_ylabel("layer", fontsize=8)
        axis.set_xticks(range(table.shape[1]))
        axis.set_yticks(range(table.shape[0]))
    return figure


def maps(
    readouts: list[HeadReadout], tables: list[torch.Tensor], rows: list[str] | None, columns: list[str] | None
) -> Figure:
    """Draw a heat map for each head, with zero in the middle of the colours if there are negative values."""
    figure, axes = grid(readouts, 3)
    for readout, table in zip(readouts, tables, strict=True):
        axis = axes[readout.layer, readout.head]
        largest = table.abs().max().item()
        signed = bool((table < 0).any())
        axis.imshow(
            table, cmap="RdBu" if signed else "viridis", vmin=-largest if signed else 0, vmax=largest, aspect="auto"
        )
        for labels, place in ((rows, axis.set_yticks), (columns, axis.set_xticks)):
            if labels:
                place(range(len(labels)), labels, fontsize=5)
            else:
                place([])
    return figure


def save(path: Path, figure: Figure) -> None:
    figure.savefig(path, dpi=110)
    plt.close(figure)
