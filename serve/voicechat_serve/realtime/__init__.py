"""OpenAI's realtime protocol over a conversation: sound in, sound out, while both go on.

session.py is where to begin: it handles the client's events, hears when the person speaks (listening.py, with
transcription/voice_activity.py), writes down what is said while it is said (utterance.py), and answers (answering.py,
response.py). No Ray and no FastAPI here: a session is given two functions that receive and send, and the models
(stages.py).
"""
