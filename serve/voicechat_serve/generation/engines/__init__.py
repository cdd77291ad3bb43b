"""Engines: each turns requests for text into streams of tokens (see `interface`)."""
