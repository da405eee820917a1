"""The one way to files, on this machine or on a server.

In: a path or a URL. Out: names, sizes and bytes, with retries and a local cache; files that are
replaced atomically.
"""
