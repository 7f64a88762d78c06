"""Fitted models as files, one a version: what was promoted can be used again tomorrow, and looked into next
year.

A file is one line of JSON, which says what the file is, and the pickled model after it. Nothing is unpickled
before that line has been understood, the bytes have the hash it names, and the libraries are those that wrote
    them: scikit-learn makes no
promise that another version reads them alike. Classes from outside of the few packages that models are made of
are refused.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version as installed
from pathlib import Path
from typing import Any

from warehouse.errors import MailhouseError

FORMAT, FORMAT_VERSION = "mailhouse-model", 1
KEPT = 10
"""Versions of a model that are kept."""
_LIBRARIES = ("numpy", "scipy", "scikit-learn")
_ALLOWED = re.compile(
    r"(numpy|scipy|sklearn|ml\.predictions)(\..*)?$"
    r"|(builtins\.(set|frozenset|bytearray|complex|slice|range|object|int|float|bool|str|list|dict|tuple)"
    r"|datetime\.(date|datetime|timedelta|timezone)|collections\.(OrderedDict|defaultdict)|copyreg\._reconstructor"
    r"|functools\.partial)$"
)
_NAME = re.compile(r"[A-Za-z0-9_]+$")


class ModelStoreError(MailhouseError):
    """A model's file is not there, is damaged, or cannot be read by this version of Mailhouse."""


@dataclass(frozen=True)
class StoredModel:
    """A file as it was found: its header, and the model."""

    header: Mapping[str, Any]
    model: Any

    @property
    def sha256(self) -> str:
        """Hash of the pickled model."""
        return self.header["sha256"]


@dataclass(frozen=True)
class ModelStore:
    """Files under a folder, `<model>/<version>.model`."""

    folder: Path

    @classmethod
    def under(cls, home: Path) -> ModelStore:
        """The store of a home."""
        return cls(home / "models")

    def path(self, model: str, version: str) -> Path:
        """Where a version lies.

        Raises:
            ModelStoreError: a name holds other than letters, digits and underscores.
        """
        if not _NAME.match(model) or not _NAME.match(version):
            raise ModelStoreError(
                f"{model!r}, {version!r}: names of models and versions are letters, digits and _."
            )
        return self.folder / model / f"{version}.model"

    def save(
        self, model: str, version: str, fitted: Any, *, created_at: datetime, metadata: Mapping[str, Any]
    ) -> str:
        """Write a version, whole or not at all, over one of the same name; returns the hash.

        Args:
            model: its name.
            version: letters, digits and underscores; later versions sort after earlier ones.
            fitted: what to keep; made of numpy, scipy, scikit-learn and `ml.predictions`.
            created_at: when it was made.
            metadata: JSON that says what it was learnt from.
        """
        body = pickle.dumps(fitted, protocol=5)
        header = {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "model": model,
            "version": version,
            "created_at": created_at.isoformat(),
            "sha256": hashlib.sha256(body).hexdigest(),
            "bytes": len(body),
            "libraries": {name: installed(name) for name in _LIBRARIES},
            "metadata": dict(metadata),
        }
        path = self.path(model, version)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.part")
        with partial.open("wb") as file:
            file.write(json.dumps(header, sort_keys=True).encode() + b"\n" + body)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        return header["sha256"]

    def load(self, model: str, version: str, *, sha256: str | None = None) -> StoredModel:
        """Read a version.

        Args:
            model: its name.
            version: its version.
            sha256: the hash it must have, as noted elsewhere; None takes the file's word.

        Raises:
            ModelStoreError: the file is missing, is no model, has another format, other bytes than its hash
                says, was written with other versions of the libraries, or holds what does not belong into a
                model.
        """
        path = self.path(model, version)
        try:
            content = path.read_bytes()
        except OSError as error:
            raise ModelStoreError(f"Model {model} {version} cannot be read: {error}.") from error
        line, _, body = content.partition(b"\n")
        header = _header(line, path)
        if (header.get("model"), header.get("version")) != (model, version):
            raise ModelStoreError(f"{path}: the file is of {header.get('model')} {header.get('version')}.")
        found = hashlib.sha256(body).hexdigest()
        if found != header.get("sha256") or (sha256 is not None and found != sha256):
            raise ModelStoreError(
                f"{path}: the file is damaged or is not the one that was promoted; its hash is {found}.",
                fix="Restore the file, or delete it and materialise raw/predictions to learn anew.",
            )
        now = {name: installed(name) for name in _LIBRARIES}
        if _minor(header.get("libraries", {})) != _minor(now):
            raise ModelStoreError(
                f"{path}: written with {_words(header.get('libraries', {}))}, and here are {_words(now)}.",
                fix="Nothing needs to be done: the next run of raw/predictions learns anew.",
            )
        try:
            return StoredModel(header, _Unpickler(io.BytesIO(body)).load())
        except ModelStoreError as error:
            raise ModelStoreError(f"{path}: {error.message}", fix=error.fix) from error
        except Exception as error:
            raise ModelStoreError(f"{path}: this version of Mailhouse cannot read it: {error!r}.") from error

    def prune(self, model: str, keep: set[str]) -> list[str]:
        """Delete all but the newest `KEPT` versions and those of `keep`; returns the versions that are left."""
        folder = self.folder / model
        versions = sorted((path.stem for path in folder.glob("*.model")), reverse=True)
        left = []
        for place, version in enumerate(versions):
            if place < KEPT or version in keep:
                left.append(version)
            else:
                self.path(model, version).unlink(missing_ok=True)
        return left


def _header(line: bytes, path: Path) -> dict[str, Any]:
    try:
        header = json.loads(line) if len(line) < 1_000_000 else None
    except ValueError:
        header = None
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise ModelStoreError(f"{path}: this is no file of a model.")
    if header.get("format_version") != FORMAT_VERSION:
        raise ModelStoreError(
            f"{path}: format {header.get('format_version')!r} is not known; this version of Mailhouse reads "
            f"{FORMAT_VERSION}.",
            fix="Use the version of Mailhouse that wrote it, or let raw/predictions learn anew.",
        )
    return header


def _minor(libraries: Mapping[str, str]) -> dict[str, str]:
    return {name: ".".join(text.split(".")[:2]) for name, text in libraries.items()}


def _words(libraries: Mapping[str, str]) -> str:
    return ", ".join(f"{name} {text}" for name, text in sorted(libraries.items())) or "no known libraries"


class _Unpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        if not _ALLOWED.match(f"{module_name}.{global_name}"):
            raise ModelStoreError(f"{module_name}.{global_name} does not belong into a model.")
        return super().find_class(module_name, global_name)
