"""Fetch a model's weights from a Hugging Face hub, once, so that they can be served offline for ever.

``fetch_weights.py --models DIRECTORY --repository kyutai/moshiko-pytorch-bf16 --revision main`` asks the hub
which commit the revision is, reads that commit's ``config.json`` for the files that make up the model (a
quantized repository points at another one for its Mimi and tokenizer), and fetches them. Standard library
only: it also runs where nothing of ours is installed yet.

What is on the disk afterwards::

    DIRECTORY/resolved.json                         which commit each revision was, and when it was asked
    DIRECTORY/OWNER--NAME@COMMIT/FILE               verified; a file still being fetched ends in .part
    DIRECTORY/OWNER--NAME@COMMIT/record.json        written last: what was asked, what was got, every hash

A file gets its name only after its size and its hash are those that the hub states for that commit (SHA-256
for large files, the git blob's SHA-1 for small ones). A connection that breaks is taken up where it broke, in
this run or a later one. A revision is asked once: a branch that moves on does not change a line that works,
until ``--update``.

Documents: https://huggingface.co/docs/hub/api (``/api/models/{repo}/revision/{revision}?blobs=true``) and
https://huggingface.co/docs/huggingface_hub/package_reference/file_download
(``/{repo}/resolve/{commit}/{file}``).
"""

from __future__ import annotations

import argparse
import contextlib
import email.message
import errno
import fcntl
import hashlib
import http.client
import json
import os
import re
import shutil
import ssl
import sys
import syslog
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

CHUNK = 1 << 20  # bytes per read
SILENCE = 60.0  # seconds without a byte after which a connection counts as broken
TRIES = 8  # in a row without a single new byte
TRIES_TO_ASK = 5  # for what costs nothing to ask again in a later run: 15 s with the pauses between
LONGEST_PAUSE = 300.0  # seconds between two tries, also when the hub asks for more
SPARE = 256 << 20  # bytes that stay free on the disk
REPOSITORY = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*/[A-Za-z0-9][A-Za-z0-9._-]*")
FILE_NAME = re.compile(r"(?!.*(^|/)\.\.?(/|$))[A-Za-z0-9._+-]+(/[A-Za-z0-9._+-]+)*")

# The names that moshi's loader assumes where config.json is silent (moshi/models/loaders.py).
DEFAULT_NAMES = {
    "moshi_weight": ("moshi_name", "model.safetensors"),
    "mimi_weight": ("mimi_name", "tokenizer-e351c8d8-checkpoint125.safetensors"),
    "tokenizer": ("tokenizer_name", "tokenizer_spm_32k_3.model"),
    "mimi_config": ("mimi_config_name", None),
    "lora_weight": ("lora_name", None),
}


class FetchError(Exception):
    """The weights cannot be had; the text says why and what mends it."""


class BrokenError(Exception):
    """This try failed, another may do; ``pause`` is what the hub asked for, in seconds."""

    def __init__(self, why: str, pause: float | None = None) -> None:
        super().__init__(why)
        self.pause = pause


@dataclass(frozen=True)
class Remote:
    """One file of one commit, as the hub describes it."""

    repository: str
    commit: str
    name: str
    size: int
    algorithm: str  # "sha256" of the content, or "git-sha1" of the blob
    digest: str

    @property
    def path(self) -> str:
        """Where it lies, below the directory of all models."""
        return f"{folder_of(self.repository, self.commit)}/{self.name}"

    def new_hash(self) -> Any:
        """Return a hash object that has seen what comes before the content."""
        if self.algorithm == "sha256":
            return hashlib.sha256()
        return hashlib.sha1(f"blob {self.size}\0".encode(), usedforsecurity=False)


def folder_of(repository: str, commit: str) -> str:
    """Return the directory name of a commit."""
    return f"{repository.replace('/', '--')}@{commit}"


def gigabytes(count: float) -> str:
    """Return a number of bytes as people read it: 15.4 GB, 780 kB."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count:.0f} bytes"


def duration(seconds: float) -> str:
    """Return a time to wait in the unit that fits."""
    return f"{seconds / 60:.0f} min" if seconds >= 120 else f"{max(seconds, 1):.0f} s"


class Redirects(urllib.request.HTTPRedirectHandler):
    """Follow redirects, but show the access token to nobody but the hub itself."""

    def redirect_request(  # noqa: PLR0917 - the base class has these
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        """Drop the Authorization header when the redirect leaves the host."""
        request = super().redirect_request(req, fp, code, msg, headers, newurl)
        if (
            request is not None
            and urllib.parse.urlsplit(newurl).netloc != urllib.parse.urlsplit(req.full_url).netloc
        ):
            request.remove_header("Authorization")
        return request


class Progress:
    """Tell how far it is: a line for people, in ``progress.json`` and now and then in the journal."""

    def __init__(self, models: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self.path = models / "progress.json"
        self.clock = clock
        self.total = self.done = 0
        self._began = self._told = self._logged = -1e9
        self._fresh = 0  # bytes of this run, for the rate

    def begin(self, total: int, done: int) -> None:
        """Set the sum of all files and what of it is there already, in bytes."""
        self.total, self.done, self._began = total, done, self.clock()

    def add(self, count: int, name: str) -> None:
        """Count bytes of a file, and tell about it every two seconds."""
        self.done += count
        self._fresh += count
        now = self.clock()
        if now - self._told >= 2:
            rate = self._fresh / max(now - self._began, 0.1)
            left = f", about {duration((self.total - self.done) / rate)} left" if rate > 0 else ""
            share = 100 * self.done / max(self.total, 1)
            self.tell(
                f"{name}: {gigabytes(self.done)} of {gigabytes(self.total)} ({share:.0f} %), "
                f"{gigabytes(rate)}/s{left}"
            )

    def tell(self, text: str, state: str = "fetching") -> None:
        """Say a line. What cannot be written down is still said."""
        now = self._told = self.clock()
        draft = self.path.with_suffix(".new")
        with contextlib.suppress(OSError):
            draft.write_text(
                json.dumps({"state": state, "text": text, "done": self.done, "total": self.total}) + "\n"
            )
            draft.replace(self.path)
        print(text, file=sys.stderr, flush=True)
        if now - self._logged >= 30 or state != "fetching":
            self._logged = now
            syslog.syslog(syslog.LOG_INFO if state != "failed" else syslog.LOG_ERR, text)


class Hub:
    """A hub, spoken to in single requests; :meth:`patiently` repeats what may be repeated."""

    def __init__(
        self, endpoint: str, token: str, progress: Progress, pause: Callable[[float], None] = time.sleep
    ) -> None:
        self.endpoint = endpoint.rstrip("/")
        self.token = token
        self.progress = progress
        self.pause = pause
        self.opener = urllib.request.build_opener(Redirects)

    def patiently(self, attempt: Callable[[], int], what: str, tries: int) -> None:
        """Repeat ``attempt`` until it returns; ``tries`` failures in a row without a new byte are the end."""
        failures = 0
        while True:
            before = self.progress.done
            try:
                attempt()
            except BrokenError as broken:
                failures = 1 if self.progress.done > before else failures + 1
                if failures >= tries:
                    raise FetchError(
                        f"{what} cannot be fetched from {self.endpoint}: {broken} ({failures} tries). Check "
                        f"that the host "
                        f"reaches it (name resolution, firewall, HTTPS_PROXY in /etc/environment), or name a "
                        f"mirror as "
                        f"moshi_hf_endpoint; then run again: what was fetched is kept."
                    ) from broken
                wait = min(broken.pause if broken.pause is not None else 2.0 ** (failures - 1), LONGEST_PAUSE)
                self.progress.tell(f"{what}: {broken}; next try in {duration(wait)}")
                self.pause(wait)
            else:
                return

    @contextlib.contextmanager
    def answer(
        self, path: str, what: str, repository: str, first: int = 0
    ) -> Iterator[http.client.HTTPResponse]:
        """Open a path from byte ``first`` on; raise a refusal as FetchError, what may pass as BrokenError."""
        headers = {"User-Agent": "hotline", "Accept-Encoding": "identity"}
        if self.token:
            headers["Authorization"] = f"Bearer {self.token}"
        if first:
            headers["Range"] = f"bytes={first}-"
        request = urllib.request.Request(self.endpoint + path, headers=headers)  # noqa: S310 - http(s), see arguments_of
        try:
            with self.opener.open(request, timeout=SILENCE) as response:
                yield response
        except urllib.error.HTTPError as error:
            with error:
                raise self.judged(error, what, repository) from error
        except (
            urllib.error.URLError,
            http.client.HTTPException,
            ssl.SSLError,
            TimeoutError,
            ConnectionError,
        ) as error:
            raise BrokenError(str(getattr(error, "reason", error)) or type(error).__name__) from error

    def judged(self, error: urllib.error.HTTPError, what: str, repository: str) -> Exception:
        """Turn a status into the sentence that mends it, or into another try."""
        code = error.headers.get("X-Error-Code", "")
        page = f"{self.endpoint}/{repository}"
        if error.code == 416:
            return BrokenError("the hub does not have that part of the file")
        if error.code in {408, 425, 429} or error.code >= 500:
            return BrokenError(f"the hub answers {error.code} {error.reason}", retry_after(error.headers))
        if code == "GatedRepo" or (error.code == 403 and not self.token):
            return FetchError(
                f"{repository} is gated: open {page} in a browser, accept its conditions, and give an access "
                f"token of that "
                f"account as moshi_hf_token."
            )
        if error.code in {401, 403} and self.token:
            return FetchError(
                f"The hub does not let this token read {repository} ({error.code}): give moshi_hf_token a "
                f"valid token with "
                f"read access to it, or correct moshi_hf_repo."
            )
        if code == "RevisionNotFound":
            return FetchError(
                f"{what}: {repository} has no such revision. See {page}/commits and correct moshi_revision."
            )
        if code == "EntryNotFound":
            return FetchError(
                f"{repository} has no file {what}: it is not a repository that moshi can load. Correct "
                f"moshi_hf_repo."
            )
        if error.code in {401, 404}:
            return FetchError(
                f"There is no repository {repository} at {self.endpoint}, or it is private: correct "
                f"moshi_hf_repo "
                f"(kyutai/moshiko-pytorch-bf16 is one), or give moshi_hf_token for a private one."
            )
        return FetchError(
            f"{what}: the hub answers {error.code} {error.reason}. Look at {page} in a browser."
        )

    def commit_of(self, repository: str, revision: str) -> tuple[str, list[Remote]]:
        """Resolve a branch, tag or commit; return the commit and its files."""
        found: dict[str, Any] = {}
        path = f"/api/models/{repository}/revision/{urllib.parse.quote(revision, safe='')}?blobs=true"

        def attempt() -> int:
            with self.answer(path, f"revision {revision}", repository) as response:
                body = response.read(64 << 20)
            try:
                found.update(json.loads(body))
            except ValueError as error:
                raise BrokenError("the hub's answer is cut off or not JSON") from error
            return len(body)

        self.patiently(attempt, f"{repository} at {revision}", TRIES_TO_ASK)
        commit = found.get("sha")
        if not isinstance(commit, str) or not re.fullmatch(r"[0-9a-f]{40}", commit):
            raise FetchError(
                f"{self.endpoint} does not say which commit {revision} of {repository} is. Is "
                f"moshi_hf_endpoint a hub?"
            )
        return commit, [
            remote
            for sibling in found.get("siblings", [])
            if (remote := remote_of(repository, commit, sibling))
        ]

    def fetch(self, remote: Remote, target: Path) -> None:
        """Bring ``target`` to the hub's content: whole, verified, or not at all."""
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(target.name + ".part")
        for last in (False, True):
            self._fetch_part(remote, part)
            self.progress.tell(f"{remote.name}: verifying {gigabytes(remote.size)}")
            if file_digest(remote, part) == remote.digest:
                break
            part.unlink()
            self.progress.done -= remote.size
            if last:
                raise FetchError(
                    f"{remote.name} of {remote.repository} arrived twice with another content than the hub "
                    f"states "
                    f"({remote.algorithm} {remote.digest}); nothing of it was kept. A proxy or mirror "
                    f"between is at fault: "
                    f"try without it, or another moshi_hf_endpoint."
                )
            self.progress.tell(
                f"{remote.name}: the content is not what the hub states, fetching it once more"
            )
        with part.open("rb+") as file:
            os.fsync(file.fileno())
        part.chmod(0o644)
        part.replace(target)

    def _fetch_part(self, remote: Remote, part: Path) -> None:
        """Fetch what ``part`` lacks of a file."""
        path = f"/{remote.repository}/resolve/{remote.commit}/{urllib.parse.quote(remote.name)}"

        def attempt() -> int:
            have = part.stat().st_size if part.exists() else 0
            if have > remote.size:
                self.progress.done -= have
                part.unlink()
                have = 0
            if have == remote.size and part.exists():
                return 0
            with self.answer(path, remote.name, remote.repository, have) as response:
                check_commit(response, remote)
                if have and (
                    response.status != 206 or not starts_at(response.headers.get("Content-Range"), have)
                ):
                    self.progress.done -= have  # the server knows no ranges: from the beginning
                    have = 0
                with part.open("ab" if have else "wb") as file:
                    while have < remote.size and (chunk := response.read(min(CHUNK, remote.size - have))):
                        file.write(chunk)
                        have += len(chunk)
                        self.progress.add(len(chunk), remote.name)
            if have < remote.size:
                raise BrokenError(f"the connection broke after {gigabytes(have)} of {gigabytes(remote.size)}")
            return have

        self.patiently(attempt, remote.name, TRIES)


def check_commit(response: http.client.HTTPResponse, remote: Remote) -> None:
    """Refuse a file that says it belongs to another commit (a redirected answer says nothing)."""
    commit = response.headers.get("X-Repo-Commit")
    if commit is not None and commit != remote.commit:
        raise FetchError(
            f"The hub sent {remote.name} of commit {commit} instead of {remote.commit}. Run again; if it "
            f"stays, name another moshi_hf_endpoint."
        )


def starts_at(content_range: str | None, first: int) -> bool:
    """Say whether ``Content-Range: bytes 100-199/200`` begins at byte ``first``."""
    return bool(content_range and re.match(rf"bytes {first}-", content_range))


def retry_after(headers: email.message.Message) -> float | None:
    """Return the seconds of a Retry-After header; in its form with a date our own patience serves."""
    value = headers.get("Retry-After", "")
    return float(value) if value.isdigit() else None


def remote_of(repository: str, commit: str, sibling: dict[str, Any]) -> Remote | None:
    """Read one entry of the hub's list of files; what cannot be verified is left out."""
    large = sibling.get("lfs") or {}
    digest = large.get("sha256") or large.get("oid") or sibling.get("blobId")
    size = large.get("size", sibling.get("size"))
    if not isinstance(digest, str) or not isinstance(size, int):
        return None
    return Remote(
        repository,
        commit,
        str(sibling.get("rfilename")),
        size,
        "sha256" if large else "git-sha1",
        digest.removeprefix("sha256:"),
    )


def file_digest(remote: Remote, path: Path) -> str:
    """Hash a file the way that its remote is hashed."""
    seen = remote.new_hash()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK):
            seen.update(chunk)
    return str(seen.hexdigest())


def is_sound(models: Path, entry: dict[str, Any]) -> bool:
    """Say whether a file is still as it was recorded; it is read only if it was touched since."""
    path = models / entry["path"]
    try:
        state = path.stat()
    except OSError:
        return False
    if state.st_size != entry["size"]:
        return False
    if state.st_mtime_ns == entry["mtime_ns"]:
        return True
    remote = Remote(
        entry["repository"], entry["commit"], path.name, entry["size"], entry["algorithm"], entry["digest"]
    )
    return bool(file_digest(remote, path) == entry["digest"])


def read_json(path: Path) -> dict[str, Any]:
    """Read a file of ours; one that is missing or damaged counts as empty and is written anew."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a file in one step."""
    draft = path.with_name(path.name + ".new")
    draft.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
    draft.replace(path)


def names_in(config: dict[str, Any], repository: str) -> dict[str, tuple[str, str]]:
    """Return which file of which repository plays which part, from a repository's ``config.json``.

    Files of other repositories are written ``hf://owner/name/file``.
    """
    parts: dict[str, tuple[str, str]] = {}
    for part, (key, default) in DEFAULT_NAMES.items():
        name = config.get(key) or default
        if name is None:
            continue
        home = repository
        if str(name).startswith("hf://"):
            owner, title, name = (str(name).removeprefix("hf://") + "//").split("/", 2)
            home, name = f"{owner}/{title}", name.rstrip("/")
        if not REPOSITORY.fullmatch(home) or not FILE_NAME.fullmatch(str(name)):
            raise FetchError(
                f"config.json of {repository} names {key} {name!r}, which is no file of a repository. "
                f"Correct moshi_hf_repo."
            )
        if part.endswith("_weight") and not str(name).endswith((".safetensors", ".sft", ".sfts")):
            raise FetchError(
                f"{name} of {home} is not a safetensors file: other formats can carry code and are not "
                f"loaded. Use a "
                f"repository with safetensors, or convert it."
            )
        parts[part] = (home, str(name))
    return parts


class Fetch:
    """One model wanted in one directory."""

    def __init__(self, models: Path, repository: str, revision: str, hub: Hub, update: bool = False) -> None:
        self.models = models
        self.repository = repository
        self.revision = revision
        self.hub = hub
        self.update = update
        self.resolved = read_json(models / "resolved.json")

    @property
    def record_path(self) -> Path | None:
        """Where this model's record lies, once its revision has been resolved."""
        known = self.resolved.get(f"{self.repository}@{self.revision}")
        return self.models / folder_of(self.repository, known["commit"]) / "record.json" if known else None

    def record_if_complete(self) -> Path | None:
        """Return the record of a model that is whole on the disk; nothing is asked of the hub for it."""
        path = self.record_path
        if path is None:
            return None
        record = read_json(path)
        files = record.get("files")
        return path if files and all(is_sound(self.models, entry) for entry in files.values()) else None

    def resolve(self, repository: str, revision: str) -> tuple[str, dict[str, Remote]]:
        """Ask which commit a revision is and write it down at once; return the commit and its files by name.

        A revision that was resolved before stays that commit, so that a fetch that was interrupted goes on
        with it.
        """
        name = f"{repository}@{revision}"
        known = None if self.update else self.resolved.get(name)
        commit, remotes = self.hub.commit_of(repository, known["commit"] if known else revision)
        if known is None:
            self.resolved[name] = {"commit": commit, "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())}
            write_json(self.models / "resolved.json", self.resolved)
        return commit, {remote.name: remote for remote in remotes}

    def wanted(self) -> dict[str, Remote]:
        """Ask the hub which files make up the model; ``config.json`` is fetched for it."""
        files = self.resolve(self.repository, self.revision)[1]
        listings = {self.repository: files}
        remotes: dict[str, Remote] = {}
        config: dict[str, Any] = {}
        if "config.json" in files:
            remotes["config"] = files["config.json"]
            target = self.models / files["config.json"].path
            self.hub.fetch(files["config.json"], target)
            try:
                config = json.loads(target.read_text(encoding="utf-8"))
            except ValueError as error:
                raise FetchError(
                    f"config.json of {self.repository} is not JSON: {error}. Correct moshi_hf_repo."
                ) from error
            if not isinstance(config, dict):
                raise FetchError(
                    f"config.json of {self.repository} is not a JSON object. Correct moshi_hf_repo."
                )
        for part, (home, name) in names_in(config, self.repository).items():
            if home not in listings:
                listings[home] = self.resolve(home, "main")[1]
            if name not in listings[home]:
                raise FetchError(
                    f"{home} has no file {name}, which moshi needs: it is not a repository for moshi's "
                    f"PyTorch engine "
                    f"(those for MLX and Candle are not). Correct moshi_hf_repo."
                )
            remotes[part] = listings[home][name]
        return remotes

    def missing(self, remotes: dict[str, Remote]) -> dict[str, Remote]:
        """Return those that are not on the disk as the hub states them; what lies there is read."""
        return {
            part: remote
            for part, remote in remotes.items()
            if not (
                (path := self.models / remote.path).exists()
                and path.stat().st_size == remote.size
                and file_digest(remote, path) == remote.digest
            )
        }

    def check_space(self, remotes: dict[str, Remote]) -> int:
        """Refuse early when the disk is too small; return how many of these bytes are there already."""
        parts = [self.models / (remote.path + ".part") for remote in remotes.values()]
        have = sum(part.stat().st_size for part in parts if part.exists())
        need = sum(remote.size for remote in remotes.values()) - have
        free = shutil.disk_usage(self.models).free
        if free < need + SPARE:
            raise FetchError(
                f"{gigabytes(need)} of weights are still to be fetched into {self.models}, which has "
                f"{gigabytes(free)} free: "
                f"{gigabytes(need + SPARE - free)} are missing. Make room there (weights no longer used lie "
                f"beside each "
                f"other in it), mount a larger disk there, or choose moshi_quantization: q8."
            )
        return have

    def run(self) -> Path:
        """Fetch what is missing and write the record; return its path."""
        remotes = self.wanted()
        missing = self.missing(remotes)
        have = self.check_space(missing)
        self.hub.progress.begin(sum(remote.size for remote in missing.values()), have)
        for remote in missing.values():
            self.hub.fetch(remote, self.models / remote.path)
        commit = self.resolved[f"{self.repository}@{self.revision}"]["commit"]
        path = self.models / folder_of(self.repository, commit) / "record.json"
        entries = {
            part: {
                "path": remote.path,
                "repository": remote.repository,
                "commit": remote.commit,
                "size": remote.size,
                "algorithm": remote.algorithm,
                "digest": remote.digest,
                "mtime_ns": (self.models / remote.path).stat().st_mtime_ns,
            }
            for part, remote in remotes.items()
        }
        write_json(
            path,
            {
                "repository": self.repository,
                "commit": commit,
                "endpoint": self.hub.endpoint,
                "files": entries,
            },
        )
        return path


def token_in(path: Path | None) -> str:
    """Return HF_TOKEN from an environment file or the environment; an argument could be read by others."""
    if path is not None:
        for line in path.read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition("=")
            if name.strip() == "HF_TOKEN":
                return value.strip().strip("\"'")
    return os.environ.get("HF_TOKEN", "")


def watch(models: Path, seconds: float) -> str:
    """Wait until the fetch under way ends, ``seconds`` at most, and return its last line."""
    end = time.monotonic() + seconds
    while True:
        progress = read_json(models / "progress.json")
        if progress.get("state") != "fetching" or time.monotonic() >= end:
            return str(progress.get("text", "nothing is being fetched"))
        time.sleep(0.5)


def arguments_of(argv: list[str]) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--models", type=Path, required=True, help="the directory of all models")
    parser.add_argument("--repository", help="owner/name")
    parser.add_argument("--revision", default="main", help="branch, tag or commit")
    parser.add_argument("--endpoint", default=os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    parser.add_argument(
        "--token-file", type=Path, help="an environment file with HF_TOKEN=…; else the environment's"
    )
    parser.add_argument("--update", action="store_true", help="ask the hub again where the revision points")
    parser.add_argument(
        "--plan", action="store_true", help="fetch nothing and ask nobody: say whether all is there"
    )
    parser.add_argument(
        "--watch", type=float, metavar="SECONDS", help="wait for a fetch under way and print how far it is"
    )
    options = parser.parse_args(argv)
    if options.watch is None and not REPOSITORY.fullmatch(options.repository or ""):
        parser.error(f"--repository {options.repository!r} is not owner/name: correct moshi_hf_repo")
    if not re.fullmatch(r"https?://[^\s/]+(/\S*)?", options.endpoint):
        parser.error(f"--endpoint {options.endpoint!r} is not an http(s) address: correct moshi_hf_endpoint")
    return options


def main(argv: list[str]) -> int:
    """Fetch, or say how things stand, in one JSON line; return 1 after a sentence when it cannot be done."""
    options = arguments_of(argv)
    models: Path = options.models
    if options.watch is not None:
        print(watch(models, options.watch))
        return 0
    syslog.openlog("hotline-weights")
    progress = Progress(models)
    try:
        models.mkdir(parents=True, exist_ok=True)
        with (models / ".lock").open("w") as lock:
            if not options.plan:
                progress.tell("waiting for another fetch to end" if not is_free(lock) else "asking the hub")
                fcntl.flock(lock, fcntl.LOCK_EX)
            hub = Hub(options.endpoint, token_in(options.token_file), progress)
            fetch = Fetch(models, options.repository, options.revision, hub, options.update)
            before = record = fetch.record_if_complete()
            if not options.plan and (record is None or options.update):
                record = fetch.run()
            if not options.plan:
                progress.tell(f"{options.repository} is complete and verified", "done")
    except (FetchError, OSError) as error:
        text = str(error) if isinstance(error, FetchError) else full_or(error, models)
        progress.tell(text, "failed")
        return 1
    print(
        json.dumps(
            {
                "complete": record is not None,
                "changed": record != before,
                "record": str(record) if record else None,
            }
        )
    )
    return 0


def is_free(lock: IO[str]) -> bool:
    """Take the lock if nobody has it."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def full_or(error: OSError, models: Path) -> str:
    """Say in words what the disk refuses."""
    if error.errno in {errno.ENOSPC, errno.EDQUOT}:
        return (
            f"The disk under {models} is full. Make room there, mount a larger disk there, or choose "
            f"moshi_quantization: q8; "
            f"then run again: what was fetched is kept."
        )
    return f"{models} cannot be written: {error}. It must be a directory of this host that root may write."


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
