"""Work for the processes of a parallel map, in a module that they import quickly."""

import os
import signal
import time


def square(numbers: list[int]) -> list[int]:
    return [number * number for number in numbers]


def die(numbers: list[int]) -> list[int]:
    os._exit(9)


def blocked_signals(numbers: list[int]) -> list[set[int]]:
    return [signal.pthread_sigmask(signal.SIG_BLOCK, []) for _ in numbers]


def take_long(numbers: list[int]) -> list[int]:
    time.sleep(600)
    return numbers


def megabytes(numbers: list[int]) -> list[bytes]:
    """Results that no pipe holds."""
    return [bytes(number * 2**20) for number in numbers]
