"""Transports: from a connection, or a framework, to the engine and back."""
