"""The command `voicechat`, which ends when its standard input does: tests that are killed leave no service behind."""

import os
import signal
import sys
import threading

from voicechat_ui.cli import main


def end_with_the_input() -> None:
    sys.stdin.read()
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    threading.Thread(target=end_with_the_input, daemon=True).start()
    main()
