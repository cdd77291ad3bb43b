"""The running service: language models, transcription and synthesis behind OpenAI's API, on Ray Serve."""

import os

# Read in Serve's proxies, whose processes inherit the environment of the program that starts Ray.
os.environ.setdefault("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "voicechat_serve.api.request_log:proxy_middlewares")
