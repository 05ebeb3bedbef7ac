"""Bytes in an S3 bucket: one multipart upload per upload, put together when it is whole.

    options.py   what an operator may say
    layout.py    keys, and whose a key is; pure
    pieces.py    what is stored of one upload, and the sizes of parts; pure
    client.py    the SDK: its errors in the words of the port, and what is tried again
    budget.py    the memory that all uploads share
    parts.py     parts on their way to the service
    writer.py    one session of writing
    store.py     the store

The pieces that a metadata store committed are the truth, never what the service lists: a part that
nobody committed is not there, and is deleted with the multipart upload.
"""
