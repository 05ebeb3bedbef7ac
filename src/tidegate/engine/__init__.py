"""The use cases: what happens to uploads, whatever carries the requests and stores the bytes."""
