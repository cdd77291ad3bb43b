"""A recipe: all settings that determine a training run, read from YAML and validated before any work starts."""

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from voicechat_platform.checkpoint_files import read_run
from voicechat_platform.corpora.texts import PLAYS
from voicechat_platform.strict_yaml import Name, PathText, Seed, Strict, validate

TokenizerKind = Literal["characters", "byte_pairs", "gpt2"]
MetricKind = Literal["symmetric", "signed_diagonal", "positive_definite", "general", "low_rank", "identity"]

OWN_FIELDS = {"metric": ("metric", "projection", "metric_sharing", "qk_norm")}
"""Fields that belong to one attention alone; None everywhere else."""

MOST_PARAMETERS = 10**11


class CorpusRecipe(Strict):
    source: PathText = PLAYS
    """shakespeare-plays (packaged), tiny-shakespeare (downloaded), or the path of a text file."""
    validation_fraction: float = Field(default=0.1, gt=0, lt=1)
    """The share of the text for validation, at its end. The model never trains on it."""
    test_fraction: float = Field(default=0.0, ge=0, lt=1)
    """For form text: the share of a test part behind the validation part. It selects nothing; the end of the run
    reports its loss."""
    form: Literal["text", "dialogue"] = "text"
    """text: the text as it is. dialogue: a play's speeches, or the conversations of a file *.jsonl, perhaps with calls
    of tools, in the chat template of `init_from`."""
    tokenizer: TokenizerKind = "characters"
    """characters, byte_pairs (trained on the text) or gpt2. With `init_from`, the checkpoint's own tokenizer applies.
    """
    vocabulary_size: int = Field(default=512, ge=256, le=65536)
    """For byte_pairs only."""

    @model_validator(mode="after")
    def must_leave_a_text_to_train_on(self) -> "CorpusRecipe":
        if self.validation_fraction + self.test_fraction >= 1:
            raise ValueError("validation_fraction and test_fraction leave nothing to train on")
        if self.test_fraction and self.form == "dialogue":
            raise ValueError("test_fraction belongs to form text")
        return self


class SortingRecipe(Strict):
    """Lists of digits to sort, instead of a text: a task that a model can solve perfectly."""

    length: int = Field(default=6, ge=2, le=30)
    digits: int = Field(default=3, ge=2, le=10)
    form: Literal["sequence", "positionwise"] = "sequence"
    """sequence: the list, then the sorted list. positionwise: the label of each position is the sorted digit there. A
    causal model cannot know it, so a loss below the Bayes loss proves a leak from the future."""


class LoraRecipe(Strict):
    """Low-rank adapters (arXiv 2106.09685) on every linear layer of the blocks. All other weights are frozen."""

    rank: int = Field(default=8, ge=1, le=1024)
    alpha: int = Field(default=16, ge=1, le=65536)
    """The factor of the adapters' output is alpha / rank."""
    dropout: float = Field(default=0.0, ge=0, lt=1)


class ModelRecipe(Strict):
    """The fields of GPTConfig (models/configuration.py) under shorter names. docs/models.md explains the family."""

    attention: Literal["standard", "metric"] = "standard"
    """standard, or metric: scores from a learned metric of one projection."""
    metric: MetricKind | None = None
    """For metric attention: the kind of matrix M; symmetric by default."""
    projection: Literal["per_head", "shared"] | None = None
    """For metric attention: each head has its own projection (the default), or all heads share one."""
    metric_sharing: Literal["layer", "model"] | None = None
    """For metric attention: each layer has its own metrics (the default), or the whole model shares one set."""
    qk_norm: bool | None = None
    """For metric attention: normalise the projection before the scores."""
    values: Literal["tied", "separate"] | None = None
    """Whether the values are the scored projection (the default of metric attention) or a separate projection (the
    default of standard attention)."""
    positions: Literal["rotary", "learned"] = "rotary"
    rope_theta: float = Field(default=10000.0, gt=1, le=1e12)
    """For rotary positions: the slowest pair turns once in 2 pi times this number of positions. Use less for short
    contexts."""
    norm: Literal["rms", "layer"] = "rms"
    """rms, or layer: LayerNorm. A model with layer, learned positions and relu_squared folds to GPT-2."""
    mlp: Literal["swiglu", "relu_squared"] = "swiglu"
    mlp_width: int | None = Field(default=None, ge=1, le=262_144)
    """By default 8/3 of the width for swiglu and 4 times the width for relu_squared."""
    layers: int = Field(default=4, ge=1, le=256)
    heads: int = Field(default=4, ge=1, le=1024)
    width: int = Field(default=128, ge=2, le=65536)
    context: int = Field(default=128, ge=2, le=1_048_576)
    """The longest sequence, in tokens."""
    dropout: float = Field(default=0.0, ge=0, lt=1)

    @model_validator(mode="after")
    def must_be_a_possible_model(self) -> "ModelRecipe":
        if self.width % self.heads or self.width // self.heads % 2:
            raise ValueError(
                f"width must be a multiple of heads, and a head an even number wide; "
                f"got width {self.width} over {self.heads} heads"
            )
        if self.parameters() > MOST_PARAMETERS:
            raise ValueError(
                f"the model would have over {self.parameters():,} parameters: lower layers, width, mlp_width or "
                f"context until it has {MOST_PARAMETERS:,} at most"
            )
        for attention, fields in OWN_FIELDS.items():
            for field in fields:
                if attention != self.attention and getattr(self, field) is not None:
                    raise ValueError(
                        f"{field} belongs to {attention} attention; leave it out or set attention: {attention}"
                    )
        return self

    def parameters(self) -> int:
        """Return a lower bound for any attention: the projections of each layer, and learned positions."""
        mlp_width = self.mlp_width or (8 * self.width // 3 if self.mlp == "swiglu" else 4 * self.width)
        matrices = 3 if self.mlp == "swiglu" else 2
        positions = self.context * self.width if self.positions == "learned" else 0
        return self.layers * self.width * (self.width + matrices * mlp_width) + positions

    def shape(self) -> dict[str, Any]:
        """Return the arguments of GPTConfig that the recipe sets. The defaults of GPTConfig apply to the others."""
        names = {
            "layers": "num_hidden_layers",
            "heads": "num_attention_heads",
            "width": "hidden_size",
            "mlp_width": "intermediate_size",
            "context": "max_position_embeddings",
        }
        return {names.get(field, field): value for field, value in self.model_dump(exclude_none=True).items()}


class TrainingRecipe(Strict):
    steps: int = Field(default=2000, ge=1, le=10**9)
    batch_size: int = Field(default=12, ge=1, le=2**20)
    """Sequences per step, over all workers and all parts of an accumulated step."""
    accumulate: int = Field(default=1, ge=1, le=10**9)
    """The number of parts in which a step computes its gradient, one after the other. This saves memory and changes
    nothing else."""
    optimizer: Literal["normuon", "muon", "adamw"] = "normuon"
    """muon: orthogonalised momentum for the blocks' matrices, AdamW for the rest. normuon: the same with normalised
    rows. adamw: AdamW for all parameters."""
    learning_rate: float = Field(default=3e-3, gt=0, lt=1)
    """The peak of the schedule, after the warm-up."""
    adamw_learning_rate: float | None = Field(default=None, gt=0, lt=1)
    """For normuon and muon: the peak for AdamW's parameters (embeddings, norms and metrics); the same by default."""
    schedule: Literal["linear", "cosine", "warmup_stable_decay"] = "linear"
    """After the warm-up: a linear decay to zero, a half cosine to zero, or the peak until a linear decay begins."""
    decay_fraction: float = Field(default=0.2, gt=0, le=1)
    """For warmup_stable_decay: the share of the steps, at the end, in which the rate decays."""
    warmup_steps: int = Field(default=100, ge=0, le=10**9)
    weight_decay: float = Field(default=0.1, ge=0)
    """For matrices only, never for norms, embeddings or metrics."""
    gradient_clip: float = Field(default=1.0, gt=0)
    """The largest norm of the whole gradient."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """bfloat16: products in bfloat16 under autocast, weights and optimizer in float32; for GPUs and newer CPUs."""
    compile: bool = False
    """torch.compile: the first step compiles, which may take longer than a short run saves; needs a C++ compiler on a
    CPU."""
    evaluate_every: int = Field(default=200, ge=1, le=10**9)
    """Steps between evaluations. Each evaluation writes a checkpoint."""
    evaluation_windows: int | None = Field(default=200, ge=1, le=10**9)
    """Sequences of an evaluation during the run; null for all. The last evaluation reads the whole validation part."""
    patience: int | None = Field(default=None, ge=1, le=10**9)
    """Early stopping: the number of evaluations without improvement after which the run ends. The best checkpoint
    stays."""

    @model_validator(mode="after")
    def must_be_possible(self) -> "TrainingRecipe":
        if self.warmup_steps >= self.steps:
            raise ValueError(f"warmup_steps ({self.warmup_steps}) must be fewer than steps ({self.steps})")
        if self.adamw_learning_rate is not None and self.optimizer == "adamw":
            raise ValueError("adamw_learning_rate belongs to muon and normuon; with adamw give learning_rate alone")
        if self.batch_size % self.accumulate:
            raise ValueError(f"batch_size ({self.batch_size}) must be a multiple of accumulate ({self.accumulate})")
        return self


class Recipe(Strict):
    name: Name = "shakespeare"
    """The name of the model in the registry and in the API: lower case, digits, hyphens."""
    seed: Seed = 1
    init_from: PathText | None = None
    """A pretrained checkpoint to fine-tune: a folder, NAME@NUMBER or NAME of the registry, a packaged model such as
    smollm2-135m-instruct, or a model of the Hugging Face hub such as openai-community/gpt2. The run keeps its shape and
    tokenizer."""
    lora: LoraRecipe | None = None
    """For fine-tuning: train low-rank adapters instead of all weights; {} for the defaults."""
    corpus: CorpusRecipe = CorpusRecipe()
    sorting: SortingRecipe | None = None
    """Instead of a corpus."""
    model: ModelRecipe = ModelRecipe()
    training: TrainingRecipe = TrainingRecipe()

    @model_validator(mode="after")
    def parts_must_fit_together(self) -> "Recipe":
        if self.init_from is None:
            if self.lora is not None:
                raise ValueError("lora adapts a pretrained model: give init_from, or leave lora out")
            if self.corpus.form == "dialogue":
                raise ValueError("corpus.form dialogue needs a pretrained chat model: give init_from, or use form text")
        else:
            refuse_changes(self.model, ("context",), "model", "the shape comes from init_from")
            refuse_changes(
                self.corpus,
                ("source", "validation_fraction", "test_fraction", "form"),
                "corpus",
                "the tokenizer comes from init_from",
            )
            if self.sorting is not None:
                raise ValueError("sorting trains a fresh model: leave init_from out")
        if self.sorting is not None:
            refuse_changes(self.corpus, (), "corpus", "sorting stands in place of a corpus")
            longest = self.sorting.length * (2 if self.sorting.form == "sequence" else 1)
            if self.model.context < longest:
                raise ValueError(f"model.context ({self.model.context}) must be at least {longest} to sort such lists")
        return self


def refuse_changes(part: Strict, allowed: tuple[str, ...], where: str, why: str) -> None:
    """Refuse fields that another setting determines.

    Raises:
        ValueError: such a field has another value than its default.
    """
    for field, info in type(part).model_fields.items():
        if field not in allowed and getattr(part, field) != info.default:
            raise ValueError(f"{where}.{field}: {why}; leave it out")


class Trained(Strict):
    """The part of a checkpoint's run.json that is a recipe, so that messages have the names of its fields."""

    recipe: Recipe


def read_recipe(checkpoint: Path) -> Recipe:
    """Return the recipe with which a checkpoint was trained.

    Raises:
        InputError: its run.json is missing or damaged, or an older version wrote fields that this version refuses.
    """
    return validate({"recipe": read_run(checkpoint)["recipe"]}, Trained, str(checkpoint / "run.json")).recipe
