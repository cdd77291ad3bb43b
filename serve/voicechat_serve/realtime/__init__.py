"""OpenAI's realtime protocol for a conversation: sound comes in and sound goes out at the same time.

Begin with session.py: its table HANDLERS has the function for each of the client's events. listening.py detects when
the person speaks (with transcription/voice_activity.py) and makes a turn of the speech. turn.py is that turn, from the
first sound to the end of the answer; it has an utterance (utterance.py) and a response (response.py). answering.py
keeps the turns in order. This package does not use Ray or FastAPI: a session receives two functions, to receive and to
send, and the models (stages.py).
"""
