"""What a GPT of this family is made of: one config class for the standard transformer and every metric variant."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.modeling_rope_utils import RopeParameters

ATTENTIONS = ("standard", "metric")


@strict
class GPTConfig(PreTrainedConfig):
    """Configuration of `GPTForCausalLM`.

    Args:
        attention: "standard" (separate queries, keys and values) or "metric" (one projection P per head, scored with
            a learned symmetric metric M, whose output is also the value).
        vocab_size: v, number of tokens.
        hidden_size: d, model width.
        intermediate_size: f, width of the gated MLP; 8d/3 rounded up to a multiple of 8 when not given.
        num_hidden_layers: l, number of blocks.
        num_attention_heads: h; each head is d/h wide.
        max_position_embeddings: the longest context the model was trained on, in tokens.
        dropout: probability of dropping an attention weight or a residual contribution while training.
        rope_theta: base of the rotary frequencies.
        reply_stops: what ends a reply in a conversation (a play's next speaker); the service stops there.

    Raises:
        ValueError: the width is not a multiple of the heads, the head width is odd, or the attention is unknown.
    """

    model_type = "voicechat_gpt"

    attention: str = "standard"
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
        if not self.intermediate_size:
            self.intermediate_size = -(-self.hidden_size * 8 // 3 // 8) * 8
        super().__post_init__(**kwargs)

    @property
    def head_dim(self) -> int:
        """k, the width of one head."""
        return self.hidden_size // self.num_attention_heads

    def validate_architecture(self):
        if self.attention not in ATTENTIONS:
            raise ValueError(f"attention is {self.attention!r}; it must be one of {', '.join(ATTENTIONS)}")
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"the width ({self.hidden_size}) is not a multiple of the number of heads "
                f"({self.num_attention_heads}): choose a width that the heads divide"
            )
        if self.head_dim % 2:
            raise ValueError(
                f"rotary positions turn pairs of numbers, so a head must be an even number wide; width "
                f"{self.hidden_size} over {self.num_attention_heads} heads gives {self.head_dim}"
            )
