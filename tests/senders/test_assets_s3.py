"""Assets on S3: a server that speaks its protocol, on loopback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from mailhouse.cli import app
from senders.assets import Assets, PublishError, publish, unpublished

MISSING = "needs s3fs, moto[s3], flask and flask-cors: uv sync"
pytest.importorskip("s3fs", reason=MISSING)
pytest.importorskip("flask_cors", reason=MISSING)
server_module = pytest.importorskip("moto.server", reason=MISSING)

pytestmark = pytest.mark.slow


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Any]:
    """A client of an S3 server with a bucket `cdn`; the environment leads s3fs there."""
    import boto3
    import s3fs

    server = server_module.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": str(tmp_path / "none"), "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "none"),
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    try:
        # its backends outlive a server in this process
        httpx.post(f"http://{host}:{port}/moto-api/reset").raise_for_status()
        client = boto3.client("s3")
        client.create_bucket(Bucket="cdn")
        yield client
    finally:
        s3fs.S3FileSystem.clear_instance_cache()
        server.stop()


@pytest.fixture
def assets(tmp_path: Path) -> Assets:
    folder = tmp_path / "content/assets"
    (folder / "icons").mkdir(parents=True)
    (folder / "logo.png").write_bytes(b"png" * 1000)
    (folder / "icons/cart.svg").write_text("<svg/>")
    return Assets(folder, "https://cdn.example.com/mail")


def test_published_once_with_type_and_for_ever(s3: Any, assets: Assets) -> None:
    store = "s3://cdn/mail"
    assert sorted(unpublished(assets, store)) == ["icons/cart.svg", "logo.png"]
    names, kept = publish(assets, store)
    assert (sorted(names), kept) == (
        sorted(assets.published_name(name) for name in ("logo.png", "icons/cart.svg")),
        0,
    )
    keys = {one["Key"] for one in s3.list_objects_v2(Bucket="cdn")["Contents"]}
    # nothing is left of the way there
    assert keys == {f"mail/{name}" for name in names}
    for name, kind in (("logo.png", "image/png"), ("icons/cart.svg", "image/svg+xml")):
        found = s3.get_object(Bucket="cdn", Key=f"mail/{assets.published_name(name)}")
        assert found["ContentType"] == kind and "immutable" in found["CacheControl"]
        assert found["Body"].read() == (assets.folder / name).read_bytes()
    assert publish(assets, store) == ([], 2)
    # a changed picture gets another name, and the old one stays for mail that has gone out
    (assets.folder / "logo.png").write_bytes(b"new")
    assert unpublished(assets, store) == ["logo.png"]
    assert publish(assets, store) == ([assets.published_name("logo.png")], 1)
    assert s3.list_objects_v2(Bucket="cdn")["KeyCount"] == 3
    # what others take away is missed, whatever was listed before
    s3.delete_object(Bucket="cdn", Key=f"mail/{assets.published_name('logo.png')}")
    assert unpublished(assets, store) == ["logo.png"]


def test_what_cannot_be_reached_is_said(s3: Any, assets: Assets, monkeypatch: pytest.MonkeyPatch) -> None:
    import s3fs

    with pytest.raises(PublishError, match="no-such-bucket"):
        publish(assets, "s3://no-such-bucket/mail")
    assert [one["Name"] for one in s3.list_buckets()["Buckets"]] == ["cdn"], "nobody asked for a bucket"
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(PublishError, match="cannot be used"):
        publish(assets, "s3://cdn/mail")


def test_by_command(s3: Any, assets: Assets, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAILHOUSE_CONTENT_DIR", str(assets.folder.parent))
    monkeypatch.setenv("MAILHOUSE_ASSETS_STORE", "s3://cdn")
    shown = CliRunner().invoke(app, ["assets", "publish"])
    assert shown.exit_code == 0 and "2 published, 0 there already." in shown.output
    assert s3.list_objects_v2(Bucket="cdn")["KeyCount"] == 2
