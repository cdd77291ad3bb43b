"""Long recordings on a GPU: eight windows at once, and those again one by one that went wrong.

faster-whisper's pipeline decodes each window once. Its own `transcribe` decodes a window again, with rising
temperature, if the text repeats or Whisper is not sure of it; without that, a loop stays in the transcript. The windows
here are cut at silence, so their number differs from that of `transcribe`, and so may single words.

What this overrides is not documented (read in 1.2.1).
"""

from dataclasses import replace
from typing import Any

from faster_whisper import BatchedInferencePipeline
from faster_whisper.tokenizer import Tokenizer
from faster_whisper.transcribe import TranscriptionOptions, get_compression_ratio

AGAIN = (0.2, 0.4, 0.6, 0.8, 1.0)
"""Whisper's own temperatures after the first, 0."""


class BatchedWhisper(BatchedInferencePipeline):
    def generate_segment_batched(
        self, features: Any, tokenizer: Tokenizer, options: TranscriptionOptions
    ) -> tuple[Any, list[dict[str, Any]]]:
        """Decode windows (n, m, w), and those that failed once more."""
        encoded, outputs = super().generate_segment_batched(features, tokenizer, options)
        if options.temperatures[0] > 0:  # the client chose it
            return encoded, outputs
        for window, output in enumerate(outputs):
            if has_failed(output, tokenizer, options):
                outputs[window] = self.decode_again(features[window], tokenizer, options)
        return encoded, outputs

    def decode_again(self, features_mw: Any, tokenizer: Tokenizer, options: TranscriptionOptions) -> dict[str, Any]:
        previous = tokenizer.encode(" " + options.initial_prompt.strip()) if options.initial_prompt else []
        prompt = self.model.get_prompt(tokenizer, previous, without_timestamps=options.without_timestamps)
        result, avg_logprob, *_ = self.model.generate_with_fallback(
            self.model.encode(features_mw),
            prompt,
            tokenizer,
            replace(options, temperatures=list(AGAIN), max_initial_timestamp=1.0),
        )
        return {
            "avg_logprob": avg_logprob,
            "no_speech_prob": result.no_speech_prob,
            "tokens": result.sequences_ids[0],
        }

    def forward(self, features: Any, tokenizer: Tokenizer, chunks_metadata: Any, options: TranscriptionOptions) -> Any:
        """Return the segments of each window. Their compression ratio is the window's, as in `transcribe`: a loop of
        short sentences shows only there."""
        windows = super().forward(features, tokenizer, chunks_metadata, options)
        for segments in windows:
            ratio = get_compression_ratio("".join(segment["text"] for segment in segments).strip())
            for segment in segments:
                segment["compression_ratio"] = ratio
        return windows


def has_failed(output: dict[str, Any], tokenizer: Tokenizer, options: TranscriptionOptions) -> bool:
    """Return whether `transcribe` would decode the window again: the same thresholds."""
    is_unsure = output["avg_logprob"] < options.log_prob_threshold
    if is_unsure and output["no_speech_prob"] > options.no_speech_threshold:
        return False  # silence
    text = tokenizer.decode(output["tokens"]).strip()
    return is_unsure or get_compression_ratio(text) > options.compression_ratio_threshold
