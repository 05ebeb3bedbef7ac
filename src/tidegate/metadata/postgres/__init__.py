"""Records in PostgreSQL, which the servers of a cluster share.

store.py     the store
address.py   what a URL may say
schema.py    the tables, and how an older schema becomes a newer one
rows.py, holds.py, lists.py, events.py   the statements
link.py, pool.py, errors.py   connections, what is tried again, the driver's errors in our words
leases.py, presence.py   the leases of this process, and how it is seen to be alive
"""
