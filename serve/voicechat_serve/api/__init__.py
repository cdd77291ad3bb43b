"""The HTTP API, OpenAI's: one router for each family of endpoints."""
