"""A hub id and the commit it stands for, so that a cache key names weights and not a moving branch.

In: `org/name` or `org/name@revision`. Out: 40 hex digits: the revision where it is a commit already, else what the
local Hugging Face cache says, else what the hub says. Nothing is downloaded.
"""

import re
from pathlib import Path
from typing import Literal

from align.errors import UserError

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?")
COMMIT = re.compile(r"[0-9a-f]{40}")
TIMEOUT_S = 5.0
RepoType = Literal["model", "dataset"]


def pin(name: str, repo_type: RepoType = "model") -> str:
    """The commit of `org/name[@revision]` (branch, tag or commit; `main` where none is given).

    Raises UserError with one line where the id is malformed, does not exist, or the hub cannot be reached.
    """
    if not HUB_ID.fullmatch(name):
        raise UserError(f"{name!r}: a hub id looks like org/name or org/name@revision")
    repo, _, revision = name.partition("@")
    revision = revision or "main"
    if COMMIT.fullmatch(revision):
        return revision
    return _cached(repo, revision, repo_type) or _asked(repo, revision, repo_type)


def _cached(repo: str, revision: str, repo_type: RepoType) -> str | None:
    """The commit that a branch or tag had when it was last downloaded here."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    refs = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type=repo_type) / "refs"
    path = refs / revision
    if not path.resolve().is_relative_to(refs.resolve()) or not path.is_file():
        return None
    commit = path.read_text(encoding="utf-8", errors="replace").strip()
    return commit if COMMIT.fullmatch(commit) else None


def _asked(repo: str, revision: str, repo_type: RepoType) -> str:
    from huggingface_hub import HfApi, errors

    name = f"{repo}@{revision}"
    try:
        info = HfApi().repo_info(repo, revision=revision, repo_type=repo_type, timeout=TIMEOUT_S)
    except errors.RevisionNotFoundError:
        raise UserError(f"{name}: the {repo_type} exists on the hub, this revision does not") from None
    except errors.GatedRepoError:
        raise UserError(f"{name}: access is gated: accept its licence on the hub, then `hf auth login`") from None
    except errors.RepositoryNotFoundError:
        raise UserError(f"{name}: no such {repo_type} on the hub, or a private one (`hf auth login`)") from None
    except (errors.HFValidationError, ValueError) as error:
        raise UserError(f"{name}: {_line(error)}") from None
    except (errors.HTTPError, errors.HfHubHTTPError, OSError) as error:
        raise UserError(f"{name}: not in the local cache, and the hub cannot be reached: {_line(error)}") from None
    if not info.sha or not COMMIT.fullmatch(info.sha):
        raise UserError(f"{name}: the hub names no commit for it")
    return str(info.sha)


def _line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0] or type(error).__name__
