"""What `--help` and `--version` say, and that they fit a terminal."""

from __future__ import annotations

import pytest

import tidegate
from tidegate import cli
from tidegate.config import Config

SERVE = """\
Usage: tidegate serve [OPTIONS]

Receive resumable uploads (tus 1.0.0) over HTTP.

Every flag can also be set in the environment (TIDEGATE_MAX_SIZE=10GiB) or in a
TOML file (max-size = "10GiB"); the flag wins over the environment, and that
over the file. Where several values make sense, repeat the flag, or put commas
between them.

Where it listens
  --host ADDRESS           Address to listen on; 0.0.0.0: all [127.0.0.1]
  --port PORT              Port to listen on; 0: any that is free [1080]
  --unix-socket PATH       Listen on a unix socket instead
  --tls-cert FILE          Certificate chain (PEM), for https
  --tls-key FILE           Private key (PEM), for https

What clients see
  --base-path PATH         Path under which uploads live [/files/]
  --public-url URL         Address that clients use, where Host can't tell
  --relative-location      Answer with paths, not with whole URLs [off]
  --behind-proxy NET       Proxies to trust: addresses, networks, or *
  --cors-origin ORIGIN     Sites whose pages may upload, or none [*]

Who may upload
  --auth HOW               token:FILE, jwt:FILE, jwt:URL or forward:URL
  --[no-]owners            Hide an upload from all but its maker [on]
  --auth-timeout TIME      For an answer to who it is, or never [5s]
  --jwt-issuer TEXT        JWT: what iss must be
  --jwt-audience TEXT      JWT: what aud must name, one of these
  --jwt-leeway TIME        JWT: by which clocks may differ
  --jwt-principal CLAIM    JWT: names the principal [sub]
  --jwt-max-size CLAIM     JWT: the largest upload, in bytes
  --jwt-require CLAIM      JWT: must be there, beside exp
  --forward-principal HEADER  Names the principal in a 2xx [Remote-User]
  --forward-send HEADER    Goes to the service [Authorization, Cookie]
  --forward-return HEADER  Goes to the client [challenges, redirects]

What is kept where
  --data URL               Bytes: folder, s3://BUCKET or memory: [tidegate-data]
  --metadata URL           File, postgresql: or redis: URL [tidegate.db in data]
  --file-name NAME         Of finished files: {year}/{id}{ext} [{shard}/{id}]
  --durability MODE        Survives a power cut: complete, ack, none [complete]

Data in S3 (credentials: as for the AWS SDKs)
  --s3-endpoint URL        Address of the service, where it is not AWS
  --s3-region NAME         Where the bucket is
  --s3-path-style          Bucket in the path, not in the host's name [off]
  --s3-part-size SIZE      Of parts; larger where it must be [8MiB]
  --s3-uniform-parts       Parts of one size only, as R2 wants them [off]
  --s3-memory SIZE         For parts, per process, all uploads together [256MiB]
  --s3-concurrency N       Parts of one upload sent at once [4]
  --s3-checksum NAME       Of what is sent: sha256, md5 or none [sha256]
  --s3-encryption NAME     AES256, aws:kms or aws:kms:KEY
  --s3-storage-class NAME  Of finished objects
  --s3-redirect-downloads  Send a GET on to the bucket, by a signed link [off]

What is allowed
  --max-size SIZE          Largest upload, as 10GiB or 500MB [unlimited]
  --max-unfinished SIZE    All unfinished uploads together [unlimited]
  --reserve-disk SIZE      Room on the disk that uploads must leave free
  --max-concurrent N       Bodies received at once, or unlimited [2000]
  --max-concurrent-per-client N  ... from one address (IPv6: one /64)
  --idle-timeout TIME      For the next byte of a body to come, or never [1m]
  --min-rate SIZE          Bytes per second that must come, over 30 s
  --head-timeout TIME      For the head of a request to come, or never [20s]
  --expire-after TIME      Life of an idle unfinished upload, or never [7d]
  --disable NAME           Extension not to offer, as termination
  --[no-]downloads         Give complete uploads back to a GET [on]

Who is told
  --webhook URL            POST events there, signed (Standard Webhooks)
  --webhook-secret-file FILE  What signs: whsec_… in lines, the newest first
  --webhook-secret SECRET  ... by the environment, not by this flag
  --webhook-events TYPE    Which: created, completed… [all but progress]
  --webhook-timeout TIME   For an answer to come [20s]
  --on-event-command COMMAND  Run for each event, with JSON on stdin
  --command-events TYPE    Which: created, completed… [all but progress]
  --command-timeout TIME   For the command to end; then it is killed [20s]
  --progress-every TIME    Of one upload at most, to who wants progress [5s]

What operators see
  --metrics-listen PLACE   /metrics at ADDRESS:PORT, or main: for everyone
  --[no-]health            Answer at /healthz and /readyz [on]
  --[no-]openapi           Answer at /openapi.json [on]
  --log-level LEVEL        debug, info, warning or error [info]
  --log-format FORMAT      console or json [console]
  --log-metadata           Log what clients say of their files, as names [off]

The process
  --transport NAME         How bytes come in: native or asgi [native]
  --workers N              Processes that share the socket and the stores [1]
  --shutdown-timeout TIME  For requests to finish at a stop, or never [7s]
  --config FILE            Settings as TOML [tidegate.toml, if there]
"""


def said(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert cli.run(arguments) == 0
    out, err = capsys.readouterr()
    assert err == ""
    return "\n".join(line.rstrip() for line in out.splitlines()).rstrip() + "\n"


def test_the_help_of_serve(capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, "serve", "--help") == SERVE


def test_the_help_of_serve_fits_80_columns_and_has_every_setting() -> None:
    assert max(map(len, SERVE.splitlines())) <= 80
    for name in Config.__dataclass_fields__:
        flag = "--" + name.replace("_", "-")
        assert flag in SERVE.replace("--[no-]", "--"), flag


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]])
def test_the_help_of_all(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, *arguments)
    assert text.startswith("Usage: tidegate COMMAND\n")
    assert "\n  serve                    Receive resumable uploads (tus 1.0.0) over HTTP\n" in text
    assert "\n  --version " in text


def test_the_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, "--version") == f"tidegate {tidegate.__version__}\n"


def test_main_ends_with_the_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, code in (["--version"], 0), (["serve", "--port", "x"], 2):
        with pytest.raises(SystemExit) as ended:
            cli.main(arguments)
        assert ended.value.code == code
    capsys.readouterr()
