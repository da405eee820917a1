"""Asking a judge model: prompts come in, replies and verdicts go out.

A predict run answers the prompts: every reply is in a journal, and none is paid twice.
"""
