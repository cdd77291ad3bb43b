"""The commands of `voicechat`, one file each, or one file for those about the same thing; cli.py lists them.

A command reads what it was given, looks at where it writes, and only then imports the heavy libraries, inside the
function: `--help` and a misspelled file are answered at once. Two files are no commands: options.py holds what several
commands are given, output.py what several print.
"""
