"""A recipe: everything that determines a training run, read from YAML, checked before any work starts."""

from typing import Any, Literal

from pydantic import Field, model_validator

from voicechat_platform.corpora.texts import PLAYS
from voicechat_platform.corpora.tokenizers import TokenizerKind
from voicechat_platform.strict_yaml import Strict

MetricKind = Literal["symmetric", "signed_diagonal", "positive_definite", "general", "low_rank", "identity"]


class CorpusRecipe(Strict):
    source: str = PLAYS
    """shakespeare-plays (packaged), tiny-shakespeare (fetched), or the path of a text file."""
    validation_fraction: float = Field(default=0.1, gt=0, lt=1)
    """The part of the text, at its end, that is never trained on."""
    tokenizer: TokenizerKind = "characters"
    """characters, byte_pairs (trained on the text) or gpt2."""
    vocabulary_size: int = Field(default=512, ge=256, le=65536)
    """Of byte_pairs only."""


class ModelRecipe(Strict):
    """The fields of GPTConfig (models/configuration.py) under shorter names; docs/models.md explains the family."""

    attention: Literal["standard", "metric"] = "standard"
    """standard, or metric: scores from a learned metric of one projection."""
    metric: Literal["symmetric", "signed_diagonal", "positive_definite", "general", "low_rank", "identity"] | None = (
        None
    )
    """Of metric attention: what matrix M is; symmetric by default."""
    projection: Literal["per_head", "shared"] | None = None
    """Of metric attention: each head has its own projection (the default), or all share one."""
    metric_sharing: Literal["layer", "model"] | None = None
    """Of metric attention: each layer has its metrics (the default), or the whole model shares them."""
    qk_norm: bool | None = None
    """Of metric attention: normalise what is scored."""
    values: Literal["tied", "separate"] | None = None
    """Whether values are what is scored (metric attention's default) or a projection of their own (the standard's)."""
    positions: Literal["rotary", "learned"] = "rotary"
    mlp: Literal["swiglu", "relu_squared"] = "swiglu"
    mlp_width: int | None = Field(default=None, ge=1)
    """8/3 of the width for swiglu and 4 times the width for relu_squared by default."""
    layers: int = Field(default=4, ge=1)
    heads: int = Field(default=4, ge=1)
    width: int = Field(default=128, ge=2)
    context: int = Field(default=128, ge=2)
    """The longest sequence, in tokens."""
    dropout: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def must_be_a_possible_model(self) -> "ModelRecipe":
        if self.width % self.heads or self.width // self.heads % 2:
            raise ValueError(
                f"width must be a multiple of heads, and a head an even number wide; "
                f"got width {self.width} over {self.heads} heads"
            )
        if self.attention == "standard":
            for field in ("metric", "projection", "metric_sharing", "qk_norm"):
                if getattr(self, field) is not None:
                    raise ValueError(f"{field} belongs to metric attention; leave it out or set attention: metric")
        return self

    def shape(self) -> dict[str, Any]:
        """The arguments of GPTConfig that are given; its own defaults stand for the others."""
        names = {
            "layers": "num_hidden_layers",
            "heads": "num_attention_heads",
            "width": "hidden_size",
            "mlp_width": "intermediate_size",
            "context": "max_position_embeddings",
        }
        return {names.get(field, field): value for field, value in self.model_dump(exclude_none=True).items()}


class TrainingRecipe(Strict):
    steps: int = Field(default=2000, ge=1)
    batch_size: int = Field(default=12, ge=1)
    """Sequences of one context a step."""
    optimizer: Literal["muon", "adamw"] = "muon"
    """muon: orthogonalised momentum for the blocks' matrices, AdamW for the rest. adamw: AdamW for all."""
    learning_rate: float = Field(default=3e-3, gt=0, lt=1)
    """The peak; reached after the warm-up, then a cosine down to zero."""
    warmup_steps: int = Field(default=100, ge=0)
    weight_decay: float = Field(default=0.1, ge=0)
    """Of matrices alone, never of norms, embeddings or metrics."""
    gradient_clip: float = Field(default=1.0, gt=0)
    """Largest norm of the whole gradient."""
    evaluate_every: int = Field(default=200, ge=1)
    """Steps between evaluations; each is a report, and a checkpoint."""
    evaluation_windows: int = Field(default=200, ge=1)
    """Windows of one context that an evaluation in mid-run reads; the last one reads the whole validation part."""

    @model_validator(mode="after")
    def warmup_must_end(self) -> "TrainingRecipe":
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps ({self.warmup_steps}) must be fewer than steps ({self.steps})")
        return self


class Recipe(Strict):
    name: str = Field(default="shakespeare", pattern=r"^[a-z0-9][a-z0-9-]*$")
    """What the model is called in the registry and in the API: lower case, digits, hyphens."""
    seed: int = Field(default=1, ge=0)
    corpus: CorpusRecipe = CorpusRecipe()
    model: ModelRecipe = ModelRecipe()
    training: TrainingRecipe = TrainingRecipe()
