"""The one way to files, local or remote.

In: a path or a URL. Out: names, sizes and bytes, read with retries and a local cache; files that
are replaced atomically. `files.Storage` is the door: it repeats what `local_files` and
`remote_files` try once; `ranges` puts parts of remote files into the `cache`.
"""
