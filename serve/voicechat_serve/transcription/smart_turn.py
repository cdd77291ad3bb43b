"""Smart Turn: a model that hears whether a person has finished, in 23 languages (smart-turn-v3 by Daily, BSD-2;
https://github.com/pipecat-ai/smart-turn).

Letters: n samples at HEARING_RATE, m mel bands, t frames of 10 ms.
"""

import logging
from pathlib import Path

import numpy as np

from voicechat_platform.assets import MissingAssetError, locate
from voicechat_serve.audio import HEARING_RATE, Samples

log = logging.getLogger("ray.serve.voicechat.transcription")

WINDOW_S = 8
"""The last seconds, which the model hears."""


class SmartTurn:
    """The model; it computes on the calling thread.

    Args:
        path: its ONNX file.
    """

    def __init__(self, path: Path):
        # Imported here, because the driver and the API import the modules of this package only for their types.
        from faster_whisper.feature_extractor import FeatureExtractor
        from onnxruntime import InferenceSession, SessionOptions

        options = SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1  # Whisper has the others
        self.session = InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.features = FeatureExtractor(chunk_length=WINDOW_S)

    def probability(self, samples_n: Samples) -> float:
        """Return the probability, 0 to 1, that the turn is over; not calibrated.

        Args:
            samples_n: the turn so far, with some of the silence after it.
        """
        last_n = samples_n[-WINDOW_S * HEARING_RATE :]
        heard_n = np.pad(last_n, (WINDOW_S * HEARING_RATE - len(last_n), 0))
        heard_n = (heard_n - heard_n.mean()) / np.sqrt(heard_n.var() + 1e-7)
        mel_mt = self.features(heard_n, padding=0)
        (probability_11,) = self.session.run(None, {"input_features": mel_mt[None].astype(np.float32)})
        return float(probability_11[0, 0])


def find_smart_turn() -> Path | None:
    """Return the packaged model; None, and a line in the log, if it is not installed: the words then decide alone."""
    try:
        return locate("smart-turn") / "smart-turn-v3.2-cpu.onnx"
    except MissingAssetError as error:
        log.warning("the end of a turn is not heard: %s", error)
        return None
