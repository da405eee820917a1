"""What child processes of the tests run: they start quickly with the standard library alone."""

import os
import signal
import subprocess
import sys
import time
from multiprocessing.connection import Connection

SLEEPER = [sys.executable, "-c", "import time; time.sleep(600)"]


def echo(descriptor: int) -> None:
    """Echoes messages; "fork" starts a process, "die" ends this one at once."""
    connection = Connection(descriptor)
    print("echo runs", flush=True)
    while True:
        try:
            message = connection.recv()
        except EOFError:
            return
        if message == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if message == "fork":
            message = subprocess.Popen(SLEEPER).pid
        connection.send(message)


def stubborn(descriptor: int) -> None:
    """Never reads from the pipe."""
    Connection(descriptor).send(subprocess.Popen(SLEEPER).pid)
    time.sleep(600)


def variables(descriptor: int) -> None:
    """Sends its environment."""
    Connection(descriptor).send(dict(os.environ))
