"""OpenAI's realtime protocol over a conversation: sound in, sound out, while both go on.

session.py is where to begin: its table says what is done for each of the client's events. listening.py hears when the
person speaks (with transcription/voice_activity.py) and makes a turn of it; turn.py is that turn, from the first sound
to the end of the answer, with what is said (utterance.py) and the response (response.py); answering.py keeps the turns
in order. No Ray and no FastAPI here: a session is given two functions that receive and send, and the models
(stages.py).
"""
