"""Domain-free utilities: paths, atomic files, progress bars, worker processes, HTML pages.

Every other room may use it; it imports only `errors`.
"""
