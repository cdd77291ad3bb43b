"""OpenAI's realtime protocol over a conversation: sound in, sound out, while both go on.

session.py is where to begin: it reads the client's events, hears when the person speaks (voice_activity.py), writes
down what is said while it is said (utterance.py), and answers (response.py). No Ray and no FastAPI here: a session is
given two functions that receive and send, and three that transcribe, write and speak.
"""
