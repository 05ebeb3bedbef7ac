"""Dialects: between HTTP and commands. Only a dialect knows header names and status lines."""
