"""Text to speech: the spoken form of a text, sentence by sentence, and the voices."""
