"""From text to speech: what is read aloud of a text, sentence by sentence, and the voices."""
