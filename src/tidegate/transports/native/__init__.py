"""The native transport: HTTP/1.1 below uvicorn's sockets, without ASGI in between."""
