"""The commands of `voicechat`: one file per command, or one file for related commands. cli.py lists them.

A command first reads its input and checks its output paths. Only then it imports the heavy libraries, inside the
function, so that `--help` and the error for a misspelled file come immediately. Two files are not commands: options.py
has the options that several commands share, and output.py has their common output.
"""
