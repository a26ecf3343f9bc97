"""What the tests have done in processes of their own."""

import os
import signal
import time


def work(item, say):
    """Answers with its process; "hang", "die" and "raise" do so at their second step."""
    say("first step")
    if item == "slow":
        for step in range(4):
            say(f"step {step}")
            time.sleep(0.5)
    say("second step")
    if item == "hang":
        time.sleep(1e6)
    if item == "die":
        os.kill(os.getpid(), signal.SIGSEGV)
    if item == "raise":
        raise ValueError("a whole message\nof two lines")
    return item, os.getpid()
