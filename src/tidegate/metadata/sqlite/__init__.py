"""Records in one SQLite file, which several processes of a machine may share.

store.py     the store
schema.py    the tables, and how an older database becomes a newer one
rows.py, events.py, handed.py   what is done to them, inside a transaction
writer.py    the one thread that writes; readers.py those that read
handing.py   what is handed to who delivers events in this process
leases.py    who holds what; liveness.py who is alive, and whose turn it is to write
"""
