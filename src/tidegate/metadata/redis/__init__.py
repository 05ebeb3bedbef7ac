"""Records in Redis or Valkey, for servers on many machines.

store.py     the store
url.py       what a URL may say
opening.py   what a Redis must be like
scripts.py, lua/   every change, as a script that runs alone
link.py      connections, and what is tried again
leases.py    the leases of this process; events.py what is delivered
"""
