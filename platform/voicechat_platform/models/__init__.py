"""The model family, as transformers sees it.

Importing this package registers the family with the Auto classes, so that
`AutoModelForCausalLM.from_pretrained(directory)` reads a checkpoint of ours like any other.
"""

from transformers import AutoConfig, AutoModelForCausalLM

from voicechat_platform.models.configuration import GPTConfig
from voicechat_platform.models.gpt import GPTForCausalLM

AutoConfig.register(GPTConfig.model_type, GPTConfig, exist_ok=True)
AutoModelForCausalLM.register(GPTConfig, GPTForCausalLM, exist_ok=True)

__all__ = ["GPTConfig", "GPTForCausalLM"]
