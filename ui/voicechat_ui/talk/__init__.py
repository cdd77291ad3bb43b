"""`voicechat talk`: the conversation, its turns from the server's events, sound files and the sound device."""
