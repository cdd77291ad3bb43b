"""The configuration of this family: one class for the standard transformer and every metric variant."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import RopeParameters

CHOICES = {
    "attention": ("standard", "metric"),
    "metric": ("symmetric", "signed_diagonal", "positive_definite", "general", "low_rank", "identity"),
    "values": ("tied", "separate"),
    "projection": ("per_head", "shared"),
    "metric_sharing": ("layer", "model"),
    "positions": ("rotary", "learned"),
    "norm": ("rms", "layer"),
    "mlp": ("swiglu", "relu_squared"),
}
OWN_FIELDS = {"metric": ("metric", "projection", "metric_sharing", "qk_norm")}
"""The fields that only one attention reads. They must keep their defaults with another attention."""


@strict
class GPTConfig(PreTrainedConfig):
    """Configuration of `GPTForCausalLM`.

    Args:
        attention: "standard" (queries, keys and values) or "metric" (one projection P, scored with a learned metric M).
        metric: the kind of matrix M (see metrics.py); for metric attention only, as the three that follow.
        projection: "per_head", or "shared": one P for all heads, each with its own M.
        metric_sharing: each "layer" has its metrics, or the whole "model" shares them.
        qk_norm: normalise p before the scores (and before its use as value).
        values: "tied" to the scored projection (P's output, or the keys) or "separate"; the default is tied in metric
            attention and separate in standard attention.
        positions: "rotary", or "learned" embeddings.
        norm: "rms", or "layer": LayerNorm with a bias.
        mlp: "swiglu" or "relu_squared".
        vocab_size: v, number of tokens.
        hidden_size: d, model width.
        intermediate_size: f, width of the MLP; if 0, 8d/3 rounded up to a multiple of 8 for swiglu, else 4d.
        num_hidden_layers: l, number of blocks.
        num_attention_heads: h; each head is d/h wide.
        max_position_embeddings: the longest context in training, in tokens.
        dropout: probability to drop an attention weight or a residual contribution in training.
        rope_theta: base of the rotary frequencies.
        reply_stops: the texts that end a reply in a conversation (a play's next speaker); the service stops there.

    Raises:
        ValueError: the width is not a multiple of the heads, a rotary head's width is odd, a choice is unknown, or a
            field of one attention is set for another.
    """

    model_type = "voicechat_gpt"

    attention: str = "standard"
    metric: str = "symmetric"
    projection: str = "per_head"
    metric_sharing: str = "layer"
    qk_norm: bool = False
    values: str = ""
    positions: str = "rotary"
    norm: str = "rms"
    mlp: str = "swiglu"
    vocab_size: int = 256
    hidden_size: int = 128
    intermediate_size: int = 0
    num_hidden_layers: int = 4
    num_attention_heads: int = 4
    max_position_embeddings: int = 256
    dropout: float = 0.0
    rope_theta: float = 10000.0
    rope_parameters: RopeParameters | dict | None = None
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True
    use_cache: bool = True
    reply_stops: list[str] | None = None
    pad_token_id: int | None = None
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None

    def __post_init__(self, **kwargs):
        if not self.values:
            self.values = "tied" if self.attention == "metric" else "separate"
        if not self.intermediate_size:
            self.intermediate_size = (
                -(-self.hidden_size * 8 // 3 // 8) * 8 if self.mlp == "swiglu" else 4 * self.hidden_size
            )
        super().__post_init__(**kwargs)

    @property
    def head_dim(self) -> int:
        """k, the width of one head."""
        return self.hidden_size // self.num_attention_heads

    @property
    def num_key_value_heads(self) -> int:
        """g: 1 if all heads share one projection."""
        return 1 if self.projection == "shared" else self.num_attention_heads

    def validate_architecture(self):
        for field, allowed in CHOICES.items():
            if getattr(self, field) not in allowed:
                raise ValueError(f"{field} is {getattr(self, field)!r}; it must be one of {', '.join(allowed)}")
        for attention, fields in OWN_FIELDS.items():
            for field in fields:
                if attention != self.attention and getattr(self, field) != getattr(GPTConfig, field):
                    raise ValueError(
                        f"{field} belongs to {attention} attention; with the {self.attention} one leave it out"
                    )
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"the width ({self.hidden_size}) is not a multiple of the number of heads "
                f"({self.num_attention_heads}): choose a width that the heads divide"
            )
        if self.positions == "rotary" and self.head_dim % 2:
            raise ValueError(
                f"rotary positions turn pairs of numbers, so a head must be an even number wide; width "
                f"{self.hidden_size} over {self.num_attention_heads} heads gives {self.head_dim}"
            )
