"""A tus server in Python, tuspyserver, for uvicorn: its folder is in TUS_DIRECTORY."""

import os

from fastapi import FastAPI
from tuspyserver import create_tus_router

app = FastAPI()
app.include_router(
    create_tus_router(prefix="files", files_dir=os.environ["TUS_DIRECTORY"], max_size=1 << 40)
)
