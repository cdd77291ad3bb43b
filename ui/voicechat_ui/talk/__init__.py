"""`voicechat talk`: the course of a conversation, the server's events as turns, sound files and the sound card."""
