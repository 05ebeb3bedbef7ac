"""The Lua scripts of the Redis store: what Redis does in one piece, or not at all.

A script is `lua/NAME.lua`, after `common.lua`. Redis runs one script at a time, and writes
its effects to its log together; it can't take back what a script wrote before it failed, so each
checks all it may refuse before its first write. What Redis itself may refuse (no room, a replica, a
disk that fails) it refuses before such a script begins, since each declares what it does.
"""

from __future__ import annotations

import hashlib
from importlib.resources import files
from typing import Final

_FOLDER = files("tidegate.metadata.redis") / "lua"
_COMMON = (_FOLDER / "common.lua").read_text("utf-8")

_WRITES = ""
_READS = "flags=no-writes"
# What makes room, or lets others go on, is done even where there is no room for more.
_FREES = "flags=allow-oom"


class Script:
    """One script. `sha` is what Redis knows it by."""

    __slots__ = ("name", "sha", "text")

    def __init__(self, name: str, flags: str = _WRITES) -> None:
        self.name = name
        body = (_FOLDER / f"{name}.lua").read_text("utf-8")
        self.text = f"#!lua {flags}\n{_COMMON}\n{body}"
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()


CLAIM_PLACE: Final = Script("claim_place")

INSERT: Final = Script("insert")
COMMIT: Final = Script("commit")
COMMIT_END: Final = Script("commit", _FREES)
"""A commit after which the upload needs less."""

ACQUIRE: Final = Script("acquire")
RELEASE: Final = Script("release", _FREES)
ABANDON: Final = Script("abandon", _FREES)
RENEW: Final = Script("renew", _FREES)
BEAT: Final = Script("beat", _FREES)
LEAVE: Final = Script("leave", _FREES)
WANT: Final = Script("want", _FREES)
WATCH: Final = Script("watch", _FREES)

EXPIRED: Final = Script("expired", _READS)
PAGE: Final = Script("page", _READS)
TAKE_TURN: Final = Script("take_turn", _FREES)
END_TURN: Final = Script("end_turn", _FREES)

CLAIM: Final = Script("claim", _FREES)
END_CLAIMS: Final = Script("end_claims", _FREES)
REPLAY: Final = Script("replay", _FREES)
EVENTS: Final = Script("events", _READS)
COUNTS: Final = Script("counts", _READS)
