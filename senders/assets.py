"""Pictures of messages: published under a name that holds a hash of their content.

A template says `src="asset:logo.png"` for `content/assets/logo.png`. In the message that becomes the address of the
published file, `https://cdn.example.com/logo.0123456789ab.png`: a changed picture gets another name, so mail that has
gone out keeps the one it was sent with, and everything may be cached for ever. The name follows from the file alone, so
there is no list to keep. `mailhouse assets publish` puts the files where that address leads, through fsspec: a folder,
S3 (`s3://bucket/mail`), Google Cloud Storage (`gs://bucket/mail`).
"""

from __future__ import annotations

import contextlib
import hashlib
import mimetypes
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from fsspec import AbstractFileSystem
from fsspec.core import url_to_fs

from senders.merge_tags import TemplateError
from warehouse.errors import MailhouseError
from warehouse.yaml_specs import nearest

# a changed file has another name
_FOR_EVER = "public, max-age=31536000, immutable"
_LIBRARIES = ("botocore", "aiobotocore", "aiohttp", "google", "gcsfs")
_REFERENCE = re.compile(r"\basset:([^\s\"'()<>{}]+)")


class PublishError(MailhouseError):
    """Assets cannot be put where they are to be served from."""


@dataclass(frozen=True)
class Assets:
    """The pictures of a content folder.

    Attributes:
        folder: `content/assets`.
        url: where published files are served from; empty if that is not set.
    """

    folder: Path
    url: str = ""

    def published_name(self, name: str) -> str:
        """The name with twelve digits of SHA-256 of the content before its suffix."""
        path = PurePosixPath(name)
        digest = hashlib.sha256((self.folder / name).read_bytes()).hexdigest()[:12]
        return str(path.with_name(f"{path.stem}.{digest}{path.suffix}"))

    def address(self, name: str, place: str) -> str:
        """The address of a published file.

        Raises:
            TemplateError: there is no such file in the folder, or no address is set.
        """
        path = self.folder / name
        if not path.resolve().is_relative_to(self.folder.resolve()) or not path.is_file():
            raise TemplateError(
                f"{place}: there is no asset {name!r} in content/{self.folder.name}.",
                fix=nearest(name, list(self.names())) or f"Put the file into content/{self.folder.name}.",
            )
        if not self.url:
            raise TemplateError(
                f"{place}: asset:{name} has no address: MAILHOUSE_ASSETS_URL is not set.",
                fix="Set it to where `mailhouse assets publish` puts the files, such as https://cdn.example.com/mail.",
            )
        return f"{self.url.rstrip('/')}/{quote(self.published_name(name))}"

    def names(self) -> Iterator[str]:
        """Names of all files, in order; those that begin with a dot are left out."""
        if not self.folder.is_dir():
            return
        for path in sorted(self.folder.rglob("*")):
            relative = path.relative_to(self.folder)
            if path.is_file() and not any(part.startswith(".") for part in relative.parts):
                yield relative.as_posix()

    def references(self, text: str) -> Iterator[re.Match[str]]:
        """Where a text names assets; group 1 is the name."""
        return _REFERENCE.finditer(text)


def publish(assets: Assets, store: str) -> tuple[list[str], int]:
    """Put all assets into a store; what is there already stays, since its name says its content.

    Args:
        store: a folder, or a URL that fsspec knows.

    Returns:
        Published names that are new, and how many were there.

    Raises:
        PublishError: the store cannot be reached or written, or there are no assets.
    """
    names = list(assets.names())
    if not names:
        raise PublishError(
            f"There are no assets in {assets.folder}.", fix="Put the pictures that templates show there."
        )
    with _reaching(store):
        system, root, missing = _missing(assets, store)
        for name, published in missing.items():
            _put(system, f"{root}/{published}", (assets.folder / name).read_bytes())
    return list(missing.values()), len(names) - len(missing)


def _put(system: AbstractFileSystem, target: str, content: bytes) -> None:
    """Put one file where it is served from, whole or not at all, with its type and for caches to keep."""
    kind = mimetypes.guess_type(target)[0] or "application/octet-stream"
    protocols = {system.protocol} if isinstance(system.protocol, str) else set(system.protocol)
    # an object appears when all of it has come, and folders are parts of its name
    if "s3" in protocols:
        system.pipe_file(target, content, ContentType=kind, CacheControl=_FOR_EVER)
    elif "gs" in protocols:
        system.pipe_file(target, content, content_type=kind, fixed_key_metadata={"cache_control": _FOR_EVER})
    else:
        system.makedirs(target.rpartition("/")[0], exist_ok=True)
        # under another name first: nobody may be served half a file
        partial = f"{target}.part"
        system.pipe_file(partial, content)
        system.mv(partial, target)


def unpublished(assets: Assets, store: str) -> list[str]:
    """Names of assets that the store does not have as they are now.

    Raises:
        PublishError: the store cannot be reached.
    """
    with _reaching(store):
        return list(_missing(assets, store)[2])


def _missing(assets: Assets, store: str) -> tuple[AbstractFileSystem, str, dict[str, str]]:
    """The store, its root, and what it lacks: from name to published name."""
    system, path = url_to_fs(store)
    root = str(path).rstrip("/")
    # what it listed before, others may have changed since
    system.invalidate_cache()
    present = set(system.find(root)) if system.exists(root) else set()
    names = {name: assets.published_name(name) for name in assets.names()}
    return system, root, {name: made for name, made in names.items() if f"{root}/{made}" not in present}


@contextlib.contextmanager
def _reaching(store: str) -> Iterator[None]:
    try:
        yield
    except ImportError as error:
        raise PublishError(
            f"{store}: {error}.", fix="Install s3fs for S3, gcsfs for Google Cloud Storage."
        ) from None
    except Exception as error:
        # libraries of stores have errors of their own for what they lack: credentials, a region
        if not isinstance(error, OSError | ValueError) and not type(error).__module__.startswith(_LIBRARIES):
            raise
        raise PublishError(
            f"The store of assets {store} cannot be used: {error}.",
            fix="Check MAILHOUSE_ASSETS_STORE and the permissions.",
        ) from error
