"""Speech to text: Whisper, voice activity detection, and the end-of-turn classifier."""
