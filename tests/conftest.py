"""Read before every test module: some import ray first, and Ray reads our variables when it is imported."""

import voicechat_platform  # noqa: F401
