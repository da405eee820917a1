"""Work for the processes of a parallel map, in a module that they import quickly."""

import os


def square(numbers: list[int]) -> list[int]:
    return [number * number for number in numbers]


def die(numbers: list[int]) -> list[int]:
    os._exit(9)
