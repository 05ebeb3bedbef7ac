"""Resumable uploads: a tus 1.0.0 server, an ASGI app, and the plug points between them."""

__version__ = "0.1.0"
