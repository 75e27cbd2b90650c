"""An archive to a repository of the Hub: one commit on top of a known parent, or nothing.

What the repository, or the Hub's store behind it, already has is not sent again: a push that was cut off goes on where
it was when it is started again. Files of an earlier archive that the new one does not list are removed by the same
commit; files that no archive listed stay. Beside the archive there is a small folder for each task that is a model of
transformers, so that its own loader takes the repository with `subfolder`.
"""

from __future__ import annotations

import hashlib
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from io import BytesIO
from pathlib import Path
from typing import Any

from tallstore.archive import Archive, open_archive
from tallstore.errors import ArchiveError, DamagedError, OptionError, OutputExistsError
from tallstore.format import limits
from tallstore.format.manifest import MANIFEST, Manifest
from tallstore.hub.card import PICTURE, README, is_ours, model_card
from tallstore.hub.thin_folders import is_thin_model, thin_models
from tallstore.stores import Access, Store
from tallstore.stores.base import pieces
from tallstore.stores.hub_client import client, connect, explained, lacks_xet, parse_id

Progress = Callable[[str, int, int], None]

_GROUP = 8
"""Files that are sent side by side between two words of progress."""
_CONFIG = "config.json"


@dataclass(frozen=True, kw_only=True)
class PushReport:
    """What was pushed, or would be. Bytes are the files' own: what the Hub's store had already did not travel."""

    repo_id: str
    branch: str
    created: bool
    """Whether the repository is, or would be, a new one."""
    parent: str | None
    """The commit that the push stands on."""
    add: Mapping[str, int]
    """Files that are new or changed, with their bytes."""
    keep: Mapping[str, int]
    """Files that are there already."""
    delete: tuple[str, ...]
    """Files of an earlier archive, which go."""
    dry_run: bool = False
    oid: str | None = None
    """The new commit; the parent where nothing changed."""
    commit_url: str | None = None
    pr_url: str | None = None

    @property
    def bytes(self) -> int:
        """Of the files that are new or changed."""
        return sum(self.add.values())

    def to_json(self) -> dict[str, Any]:
        """As plain JSON values."""
        return {**asdict(self), "bytes": self.bytes}


def push(
    zoo: Archive | str | os.PathLike[str],
    repo_id: str,
    *,
    commit_message: str | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    branch: str | None = None,
    create_pr: bool | None = None,
    endpoint: str | None = None,
    license: str | None = None,
    picture: bytes | None = None,
    dry_run: bool = False,
    progress: Progress | None = None,
) -> PushReport:
    """Push an archive to the Hub, in one commit. The repository is made if it is not there.

    Args:
        zoo: an open archive, or the path of one: a folder, or a `.tall` file, whose files are pushed one by one.
        repo_id: `user/zoo`.
        commit_message: what the commit says.
        private: whether a new repository is; by the user's settings if not given.
        token: True for the stored one; by default the stored one if there is one.
        branch: made if it is not there; `main` by default.
        create_pr: make a pull request and leave the branch as it is.
        endpoint: the Hub's address, in place of HF_ENDPOINT.
        license: for the model card, by the Hub's identifiers (`apache-2.0`).
        picture: a PNG for the model card.
        dry_run: change nothing; say what would be sent.
        progress: called with a text, bytes done, bytes in all.

    Raises:
        DamagedError: a file of the archive is not what the manifest says. Nothing was pushed.
        OutputExistsError: the repository holds another model.
        ConflictError: somebody else committed meanwhile. Nothing was pushed; push again.
        RemoteError: the Hub cannot be reached or refuses; its subclasses say why.
    """
    if not isinstance(zoo, Archive):
        with open_archive(zoo) as opened:
            return push(
                opened, repo_id, commit_message=commit_message, private=private, token=token, branch=branch,
                create_pr=create_pr, endpoint=endpoint, license=license, picture=picture, dry_run=dry_run,
                progress=progress,
            )  # fmt: skip
    repo_id, revision = parse_id(repo_id, branch)
    if picture is not None and not picture.startswith(b"\x89PNG"):
        raise OptionError("the card's picture is no PNG")
    target = _Branch(repo_id, revision, Access(token=token, endpoint=endpoint), create_pr=bool(create_pr))
    created = target.find(private=private, make=not dry_run)
    with tempfile.TemporaryDirectory(prefix="tallstore-") as scratch:
        target.read(Path(scratch))
        files = _Files(zoo, Path(scratch))
        thin = thin_models(zoo)
        files.text(README, target.card(_own_card(zoo.store), zoo, license, picture is not None, thin))
        if picture is not None:
            files.text(PICTURE, picture)
        for path, data in thin.items():
            files.text(path, data)
        add = {path: files.size(path) for path in files if not target.has(path, files)}
        keep = {path: files.size(path) for path in files if path not in add}
        report = PushReport(
            repo_id=repo_id, branch=target.branch, created=created, parent=target.parent, add=add, keep=keep,
            delete=target.stale(set(files)), dry_run=dry_run,
        )  # fmt: skip
        if dry_run:
            return report
        message = commit_message or f"Push a zoo of {len(zoo.tasks)} tasks with tallstore"
        return target.commit(report, files, message, progress)


class _Files:
    """What is pushed: the archive's files, each checked before it goes, and a few that are made for it."""

    def __init__(self, zoo: Archive, scratch: Path) -> None:
        self._store: Store = zoo.store
        self._manifest = zoo.manifest
        self._scratch = scratch / "files"
        self._made: dict[str, bytes] = {MANIFEST: zoo.manifest_bytes()}

    def __iter__(self) -> Iterator[str]:
        yield from self._manifest.parts
        yield from self._made

    def text(self, path: str, data: bytes | None) -> None:
        """Add a file that was made for the push; None adds nothing."""
        if data is not None:
            self._made[path] = data

    def size(self, path: str) -> int:
        """Bytes of a file."""
        return len(self._made[path]) if path in self._made else self._manifest.parts[path].size

    def sha256(self, path: str) -> str:
        """Of a file, as the manifest has it."""
        made = self._made.get(path)
        return hashlib.sha256(made).hexdigest() if made is not None else self._manifest.parts[path].sha256

    def blob(self, path: str) -> str:
        """What git calls a file."""
        size = self.size(path)
        digest = hashlib.sha1(f"blob {size}\0".encode(), usedforsecurity=False)
        for piece in self._pieces(path):
            digest.update(piece)
        return digest.hexdigest()

    def content(self, path: str) -> Path | bytes:
        """The file's place or bytes, held to the manifest's hash."""
        if path in self._made:
            return self._made[path]
        place = self._store.local(path)
        out = None
        if place is None:
            place = self._scratch / path
            place.parent.mkdir(parents=True, exist_ok=True)
            out = place.open("wb")
        digest = hashlib.sha256()
        try:
            if self._store.size(path) != self.size(path):
                raise DamagedError(f"{self._store.url}: {path}: cut off or grown; nothing was pushed")
            for piece in self._pieces(path):
                digest.update(piece)
                if out is not None:
                    out.write(piece)
        finally:
            if out is not None:
                out.close()
        if digest.hexdigest() != self.sha256(path):
            raise DamagedError(f"{self._store.url}: {path}: damaged (sha256 differs); nothing was pushed")
        return place

    def _pieces(self, path: str) -> Iterator[bytes | memoryview]:
        if path in self._made:
            yield self._made[path]
            return
        yield from pieces(self._store, path, self.size(path))


@dataclass
class _Branch:
    """A branch of a repository, as it is before the push."""

    repo_id: str
    revision: str | None
    access: Access
    create_pr: bool
    parent: str | None = None
    tree: dict[str, tuple[int, str, str | None]] = field(default_factory=dict)
    """Path → bytes, git's name, sha256 if it is a large file."""
    _old: Manifest | None = None
    _card: str | None = None
    _without_xet: bool = False

    def __post_init__(self) -> None:
        self.url = f"hf://{self.repo_id}"
        self.branch = self.revision or "main"
        self.api = connect(self.access, self.url)
        self.errors = client(self.url).errors

    def find(self, *, private: bool | None, make: bool) -> bool:
        """Find the branch's commit; make repository and branch where they are not there. Whether that is new."""
        created = False
        with explained(self.url):
            try:
                self.parent = self._head()
            except self.errors.RevisionNotFoundError:
                if make:
                    self.api.create_branch(self.repo_id, branch=self.branch, exist_ok=True)
                    self.parent = self._head()
            except self.errors.GatedRepoError:
                raise
            except self.errors.RepositoryNotFoundError:
                created = True
                if make:
                    self.api.create_repo(self.repo_id, private=private, exist_ok=True)
                    if self.revision is not None:
                        self.api.create_branch(self.repo_id, branch=self.branch, exist_ok=True)
                    self.parent = self._head()
        return created

    def read(self, scratch: Path) -> None:
        """What is there: its files, the archive's manifest and the model card among them."""
        if self.parent is None:
            return
        with explained(f"{self.url}@{self.branch}"):
            for each in self.api.list_repo_tree(self.repo_id, recursive=True, revision=self.parent):
                if hasattr(each, "blob_id"):
                    self.tree[each.path] = (each.size, each.blob_id, each.lfs.sha256 if each.lfs else None)
            if MANIFEST not in self.tree and _CONFIG in self.tree:
                raise OutputExistsError(
                    f"{self.url}@{self.branch}: holds another model ({_CONFIG}, and no {MANIFEST}): "
                    "push to a repository of its own"
                )
            card = self._text(README, scratch)
            manifest = self._text(MANIFEST, scratch)
        self._card = card.decode(errors="replace") if card is not None else None
        if manifest is not None:
            try:
                self._old = Manifest.from_bytes(manifest, f"{self.url}: {MANIFEST}")
            except ArchiveError:
                self._old = None  # whatever it is, it names no files that could be said to be ours

    def has(self, path: str, files: _Files) -> bool:
        """Whether the same file is there already."""
        if path not in self.tree or self.tree[path][0] != files.size(path):
            return False
        _, blob, sha256 = self.tree[path]
        return sha256 == files.sha256(path) if sha256 is not None else blob == files.blob(path)

    def stale(self, paths: set[str]) -> tuple[str, ...]:
        """Files that the archive there lists, and the new one does not; and a picture of it that our card showed."""
        listed = dict.fromkeys(self._old.parts if self._old is not None else ())
        if self._old is not None:
            listed |= dict.fromkeys(path for path in self.tree if is_thin_model(path, self._old))
        if self._card is not None and is_ours(self._card) and f"({PICTURE})" in self._card:
            listed[PICTURE] = None
        return tuple(path for path in listed if path in self.tree and path not in paths)

    def card(
        self, own: bytes | None, zoo: Archive, license: str | None, picture: bool, thin: Iterable[str]
    ) -> bytes | None:
        """The model card to push; None to leave the one that is there."""
        if self._card is not None and not is_ours(self._card):
            return None
        if own is not None:
            return own
        folders = list(dict.fromkeys(path.rpartition("/")[0] for path in thin))
        return model_card(zoo.info(), self.repo_id, license=license, picture=picture, folders=folders).encode()

    def commit(self, report: PushReport, files: _Files, message: str, progress: Progress | None) -> PushReport:
        """Send what is new, then make the commit."""
        hub = client(self.url)
        add: list[Any] = []
        done = 0
        paths = sorted(report.add, key=lambda path: -report.add[path])
        with explained(f"{self.url}@{self.branch}"):
            for start in range(0, len(paths), _GROUP):
                group = paths[start : start + _GROUP]
                add += self._send({path: files.content(path) for path in group})
                done += sum(report.add[path] for path in group)
                if progress is not None:
                    progress(group[-1], done, report.bytes)
            gone = [hub.CommitOperationDelete(path_in_repo=path) for path in report.delete]
            if not add and not gone:
                return _finished(report, oid=self.parent, commit_url=None, pr_url=None)
            told = self.api.create_commit(
                self.repo_id,
                [*add, *gone],
                commit_message=message,
                revision=self.branch,
                create_pr=self.create_pr,
                parent_commit=self.parent,
            )
        return _finished(report, oid=told.oid, commit_url=told.commit_url, pr_url=told.pr_url)

    def _send(self, contents: Mapping[str, Path | bytes]) -> list[Any]:
        """Send what is large of some files; the operations of the commit that all of them are for.

        A server without Xet is an older one: it is given the files by LFS, as the client does with open files.
        """
        if not self._without_xet:
            try:
                return self._sent(contents, contents)
            except Exception as error:
                if not lacks_xet(error):
                    raise
                self._without_xet = True
        with ExitStack() as stack:
            opened = {
                path: BytesIO(content) if isinstance(content, bytes) else stack.enter_context(content.open("rb"))
                for path, content in contents.items()
            }
            return self._sent(contents, opened)

    def _sent(self, contents: Mapping[str, Path | bytes], given: Mapping[str, Any]) -> list[Any]:
        made = [
            client(self.url).CommitOperationAdd(path_in_repo=path, path_or_fileobj=each) for path, each in given.items()
        ]
        self.api.preupload_lfs_files(
            self.repo_id, made, revision=self.branch, create_pr=self.create_pr, free_memory=False
        )
        for operation, content in zip(made, contents.values(), strict=True):
            operation.path_or_fileobj = content  # which the commit reads small files from
        return made

    def _head(self) -> str:
        return str(self.api.model_info(self.repo_id, revision=self.revision).sha)

    def _text(self, path: str, scratch: Path) -> bytes | None:
        """A small file of the parent commit; None if it is not there, or not small."""
        if path not in self.tree or self.tree[path][0] > limits.MANIFEST_BYTES:
            return None
        path_here = self.api.hf_hub_download(self.repo_id, path, revision=self.parent, cache_dir=scratch / "cache")
        return Path(path_here).read_bytes()


def _finished(report: PushReport, **facts: Any) -> PushReport:
    return PushReport(**{**{name: getattr(report, name) for name in report.__dataclass_fields__}, **facts})


def _own_card(store: Store) -> bytes | None:
    """A card that somebody wrote and put into the archive's folder."""
    if README not in store.paths() or store.size(README) > limits.MANIFEST_BYTES:
        return None
    data = bytes(store.read(README, 0, store.size(README)))
    return None if is_ours(data.decode(errors="replace")) else data
