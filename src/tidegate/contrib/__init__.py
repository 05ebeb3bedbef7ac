"""What a framework needs beyond a mount. FastAPI and Starlette need nothing: see the README."""
