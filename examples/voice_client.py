"""Speak a sound file over the realtime WebSocket; print what was understood, the reply, and how long it took to begin.

python examples/voice_client.py question.wav reply.wav
"""

import argparse
import asyncio
import base64
import os
import time
import wave

import numpy as np
import soxr
from openai import AsyncOpenAI

RATE = 24_000
"""Samples a second, both ways: 16 bits, one channel."""


def read_sound(path: str) -> bytes:
    with wave.open(path) as file:
        if file.getsampwidth() != 2 or file.getnchannels() != 1:
            raise SystemExit(f"{path} must have one channel of 16 bits")
        samples_n = np.frombuffer(file.readframes(file.getnframes()), "<i2")
        return soxr.resample(samples_n, file.getframerate(), RATE).tobytes()


async def talk(arguments: argparse.Namespace) -> None:
    client = AsyncOpenAI(base_url=arguments.url, api_key=os.environ.get("OPENAI_API_KEY", "none"))
    reply = bytearray()
    async with client.realtime.connect(model=arguments.model) as connection:
        # The file says when the turn is over. A microphone would leave turn_detection to the server, and send for ever.
        await connection.session.update(
            session={
                "type": "realtime",
                "instructions": "Answer in one sentence.",
                "audio": {"input": {"turn_detection": None}},
            }
        )
        sound = read_sound(arguments.question)
        for start in range(0, len(sound), RATE):  # half a second each
            piece = base64.b64encode(sound[start : start + RATE]).decode()
            await connection.input_audio_buffer.append(audio=piece)
        await connection.input_audio_buffer.commit()
        await connection.response.create()
        asked = time.perf_counter()
        async for event in connection:
            match event.type:
                case "conversation.item.input_audio_transcription.completed":
                    print(f"You:   {event.transcript}")
                case "response.output_audio.delta":
                    if not reply:
                        print(f"       (first sound after {time.perf_counter() - asked:.2f} s)")
                    reply += base64.b64decode(event.delta)
                case "response.output_audio_transcript.done":
                    print(f"Reply: {event.transcript}")
                case "error":
                    raise SystemExit(event.error.message)
                case "response.done":
                    break
    with wave.open(arguments.reply, "wb") as file:
        file.setparams((1, 2, RATE, 0, "NONE", ""))
        file.writeframes(bytes(reply))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("question", help="a wav file: 16 bits, one channel, any rate")
    parser.add_argument("reply", help="where the reply is saved")
    parser.add_argument("--url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    asyncio.run(talk(parser.parse_args()))


if __name__ == "__main__":
    main()
