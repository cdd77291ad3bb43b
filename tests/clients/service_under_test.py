"""What every client's script uses. The scripts run in an environment of their own (tests/serve/test_clients.py)."""

import os
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

BASE_URL = os.environ["OPENAI_BASE_URL"]
REALTIME_URL = BASE_URL.replace("http", "ws", 1) + "/realtime"
KEY = os.environ["OPENAI_API_KEY"]
CLIP = os.environ["VOICECHAT_CLIP"]
"""A WAV file in which somebody speaks for some seconds: one channel of 16 bits at 16 kHz."""

MODEL = "smollm2-135m-instruct"
EMBEDDINGS = "vectors"
WHISPER = "whisper-1"
VOICE = "alloy"

TEMPERATURE_TOOL = "get_temperature"


class Weather(BaseModel):
    """The weather in a city. Its fields are short, because a small model fills them with nonsense."""

    model_config = ConfigDict(extra="forbid")
    city: Literal["Paris", "Berlin"]
    sky: Literal["clear", "cloudy"]
    celsius: int = Field(ge=-50, le=60)


class AnyObject(BaseModel):
    """For modes that ask for JSON in the prompt only: whatever object the model writes is one of these."""

    model_config = ConfigDict(extra="allow")
    city: Any = None
