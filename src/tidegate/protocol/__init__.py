"""The protocol, pure: no input or output, no clock, nothing asynchronous.

What a request means (`commands`), what an upload is (`model`), what may happen to it
(`lifecycle`), and whether a command may be carried out (`decide`). How a request looks on the
wire is known only to the dialects.
"""
