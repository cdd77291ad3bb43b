"""Convert a Llama directory (SmolLM2, or a folded model of ours) to a CTranslate2 directory with its tokenizer."""

import json
import shutil
from pathlib import Path

from ctranslate2.converters import TransformersConverter

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja", "generation_config.json")


def convert_to_ctranslate2(source: Path, target: Path, quantization: str | None = None) -> None:
    """Convert a model, and complete the config.json that CTranslate2 writes.

    Args:
        source: a Hugging Face directory of an architecture that CTranslate2 knows.
        target: the directory to write; it may exist.
        quantization: such as "int8"; None keeps the type of the weights.
    """
    TransformersConverter(str(source)).convert(str(target), quantization=quantization, force=True)
    for name in TOKENIZER_FILES:
        if (source / name).exists():
            shutil.copy(source / name, target)
    original = json.loads((source / "config.json").read_text())
    config = json.loads((target / "config.json").read_text())
    # A tokenizer of characters has no special tokens, and CTranslate2 refuses null. Each generation sets its own.
    first_token = json.loads((target / "vocabulary.json").read_text())[0]
    config |= {f"{role}_token": config.get(f"{role}_token") or first_token for role in ("bos", "eos", "unk")}
    config |= {key: original[key] for key in ("max_position_embeddings", "reply_stops") if key in original}
    (target / "config.json").write_text(json.dumps(config, indent=2))
