"""The service: speech recognition, language models and speech synthesis behind OpenAI's API, on Ray Serve."""

import os

# Serve's proxy reads this. Its process inherits it from a Ray that starts after this line.
os.environ.setdefault("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "voicechat_serve.api.proxy:middlewares")
