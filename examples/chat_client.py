"""Stream a reply from the server with the `openai` package, as from any OpenAI-compatible one.

python examples/chat_client.py "What is love?"
"""

import argparse
import os

from openai import OpenAI


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("question")
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--model", default="smollm2-135m-instruct", help="one of GET /v1/models")
    parser.add_argument("--max-tokens", type=int, default=200)
    arguments = parser.parse_args()

    # Without keys (voicechat keys) the server takes anything for one.
    client = OpenAI(base_url=arguments.url, api_key=os.environ.get("OPENAI_API_KEY", "none"))
    stream = client.chat.completions.create(
        model=arguments.model,
        messages=[
            {"role": "system", "content": "Answer in a few short sentences."},
            {"role": "user", "content": arguments.question},
        ],
        max_tokens=arguments.max_tokens,
        stream=True,
        stream_options={"include_usage": True},
    )
    for chunk in stream:
        for choice in chunk.choices:
            print(choice.delta.content or "", end="", flush=True)
        if chunk.usage:  # the last chunk, which has no choices
            print(f"\n({chunk.usage.prompt_tokens} tokens read, {chunk.usage.completion_tokens} written)")


if __name__ == "__main__":
    main()
