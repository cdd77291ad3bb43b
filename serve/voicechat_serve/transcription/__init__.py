"""From speech to text: Whisper, voice activity, and whether a sentence has ended."""
