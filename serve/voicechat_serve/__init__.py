"""The running service: speech recognition, language models and a voice behind OpenAI's API, on Ray Serve."""

import os

# Read by Serve's proxy, whose process inherits it from a Ray that is started after this.
os.environ.setdefault("RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "voicechat_serve.api.proxy:middlewares")
