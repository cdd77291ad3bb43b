"""The model family for transformers.

The import of this package registers the family with the Auto classes, so that
`AutoModelForCausalLM.from_pretrained(directory)` reads our checkpoints.
"""

from transformers import AutoConfig, AutoModelForCausalLM

from voicechat_platform.models.configuration import GPTConfig
from voicechat_platform.models.gpt import GPTForCausalLM

AutoConfig.register(GPTConfig.model_type, GPTConfig, exist_ok=True)
AutoModelForCausalLM.register(GPTConfig, GPTForCausalLM, exist_ok=True)

__all__ = ["GPTConfig", "GPTForCausalLM"]
