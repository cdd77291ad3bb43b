"""Long recordings on a GPU: eight windows at once, in faster-whisper's pipeline, and without what it loses.

The pipeline decodes each window of up to 30 s once, cut at silence. Its own `transcribe` does two things more:

- Whisper ends some windows early, after two equal timestamps, and expects to go on there. The pipeline loses the rest:
  of 105 s of LibriVox 11% of the words (tiny.en), and every window had such a rest. The rests are decoded here in one
  more batch.
- A window whose text repeats, or of which Whisper is not sure, is decoded again with rising temperature.

The number of windows differs from that of `transcribe`, and so may single words.

What this overrides is not documented (read in 1.2.1). Letters: m mel bands, w frames of 10 ms.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from faster_whisper import BatchedInferencePipeline
from faster_whisper.tokenizer import Tokenizer
from faster_whisper.transcribe import TranscriptionOptions, get_compression_ratio
from numpy.typing import NDArray

AGAIN = (0.2, 0.4, 0.6, 0.8, 1.0)
"""Whisper's own temperatures after the first, 0."""

FRAME_RATE, TOKEN_RATE = 100, 50
"""Frames and timestamps per second."""

LEAST_REST_S = 1.0
"""The detector leaves 0.4 s of silence around speech."""

Output = dict[str, Any]
"""The tokens of a window, "avg_logprob" and "no_speech_prob"."""


class BatchedWhisper(BatchedInferencePipeline):
    def forward(self, features: Any, tokenizer: Tokenizer, chunks_metadata: Any, options: TranscriptionOptions) -> Any:
        """Return the segments of each window. Their compression ratio is the window's, as in `transcribe`: a loop of
        short sentences shows only there."""
        self.seconds = [chunk["duration"] for chunk in chunks_metadata]
        windows = super().forward(features, tokenizer, chunks_metadata, options)
        for segments in windows:
            ratio = get_compression_ratio("".join(segment["text"] for segment in segments).strip())
            for segment in segments:
                segment["compression_ratio"] = ratio
        return windows

    def generate_segment_batched(
        self, features: Any, tokenizer: Tokenizer, options: TranscriptionOptions
    ) -> tuple[Any, list[Output]]:
        """Decode the windows of one batch; the encoded ones are for the times of words."""
        return self.decode(features, self.seconds, tokenizer, options)

    def decode(
        self, features: Any, seconds: Sequence[float], tokenizer: Tokenizer, options: TranscriptionOptions
    ) -> tuple[Any, list[Output]]:
        encoded, outputs = super().generate_segment_batched(features, tokenizer, options)
        rests: dict[int, float] = {}
        for window, output in enumerate(outputs):
            if not options.temperatures[0] and has_failed(output, tokenizer, options):  # the client chose another
                outputs[window] = output = self.decode_again(features[window], tokenizer, options)
            end_s, output["tokens"] = finished(output["tokens"], tokenizer.timestamp_begin)
            if LEAST_REST_S <= end_s <= seconds[window] - LEAST_REST_S:
                rests[window] = end_s
        if rests:
            later = np.stack([beginning_at(features[window], end_s) for window, end_s in rests.items()])
            left = [seconds[window] - end_s for window, end_s in rests.items()]
            _, tails = self.decode(later, left, tokenizer, options)
            for (window, end_s), tail in zip(rests.items(), tails, strict=True):
                if not is_silence(tail, options):
                    outputs[window] = joined(outputs[window], tail, end_s, tokenizer.timestamp_begin)
        return encoded, outputs

    def decode_again(self, features_mw: Any, tokenizer: Tokenizer, options: TranscriptionOptions) -> Output:
        previous = tokenizer.encode(" " + options.initial_prompt.strip()) if options.initial_prompt else []
        prompt = self.model.get_prompt(tokenizer, previous, without_timestamps=options.without_timestamps)
        again = replace(options, temperatures=list(AGAIN), max_initial_timestamp=1.0)
        encoded = self.model.encode(features_mw)
        result, avg_logprob, *_ = self.model.generate_with_fallback(encoded, prompt, tokenizer, again)
        return {
            "avg_logprob": avg_logprob,
            "no_speech_prob": result.no_speech_prob,
            "tokens": result.sequences_ids[0],
        }


def has_failed(output: Output, tokenizer: Tokenizer, options: TranscriptionOptions) -> bool:
    """Return whether `transcribe` would decode the window again: the same thresholds."""
    if is_silence(output, options):
        return False
    text = tokenizer.decode(output["tokens"]).strip()
    is_repeating = get_compression_ratio(text) > options.compression_ratio_threshold
    return is_repeating or output["avg_logprob"] < options.log_prob_threshold


def is_silence(output: Output, options: TranscriptionOptions) -> bool:
    return output["no_speech_prob"] > options.no_speech_threshold and output["avg_logprob"] < options.log_prob_threshold


def finished(tokens: Sequence[int], first: int) -> tuple[float, list[int]]:
    """Return the seconds at which Whisper broke off, and the tokens until there; 0 and all tokens if it did not.

    Args:
        tokens: of one window.
        first: the timestamp of 0 s; larger ones are later.
    """
    pairs = [place for place in range(1, len(tokens)) if tokens[place - 1] >= first and tokens[place] >= first]
    is_ended = len(tokens) >= 2 and tokens[-2] < first <= tokens[-1]
    if not pairs or is_ended:
        return 0.0, list(tokens)
    return (tokens[pairs[-1] - 1] - first) / TOKEN_RATE, list(tokens[: pairs[-1]])


def beginning_at(features_mw: NDArray[np.float32], begin_s: float) -> NDArray[np.float32]:
    """Return the features from a time on, as long as before, with zeros after them."""
    begin = round(begin_s * FRAME_RATE)
    return np.pad(features_mw[:, begin:], ((0, 0), (0, begin)))


def joined(head: Output, tail: Output, tail_begin_s: float, first: int) -> Output:
    """Return the two parts of a window as one; the tail's timestamps count from the window's start then."""
    later = round(tail_begin_s * TOKEN_RATE)
    tokens = [token + later if token >= first else token for token in tail["tokens"]]
    return head | {
        "tokens": [*head["tokens"], *tokens],
        "avg_logprob": min(head["avg_logprob"], tail["avg_logprob"]),
    }
