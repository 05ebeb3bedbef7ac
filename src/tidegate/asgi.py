"""tidegate as an ASGI application: `from tidegate.asgi import Tidegate`."""

from tidegate.transports.asgi import Tidegate

__all__ = ["Tidegate"]
