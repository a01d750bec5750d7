"""(hub id, file) -> a small JSON file of a model on the Hugging Face hub. DO, network: the control side's one door to the hub.

Imported late, from the registry's table, and only where a hub id must be asked: its library costs more than a whole `validate`.
"""

from __future__ import annotations

from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

from launcher.errors import LauncherError, Problem
from launcher.rundir.folder import read_json


def fetch_json(model_id: str, name: str, revision: str | None) -> dict[str, object]:
    """The object in the model's file `name`, from the cache where it lies there. LauncherError E411, E413, and E213: broken."""
    try:
        path = huggingface_hub.hf_hub_download(model_id, name, revision=revision)
    except GatedRepoError:
        raise _error(model_id, "is gated on the hub", "accept its licence there, then log in: hf auth login") from None
    except RepositoryNotFoundError:
        raise _error(model_id, "is not on the hub, or not for this login", "check the id; a folder begins with ./") from None
    except LocalEntryNotFoundError:
        what = "is not in the cache and the hub cannot be reached"
        hint = "check the network, or name a folder"
        raise LauncherError(Problem(code="E413", where=f"hub:{model_id}", what=what, hint=hint)) from None
    except (HfHubHTTPError, OSError, ValueError) as error:
        first = str(error).partition("\n")[0]
        raise _error(model_id, f"gave no {name}: {first}", "check the id, the revision and the network") from None
    try:
        return read_json(Path(path))
    except OSError as error:
        raise _error(
            model_id, f"has a {name} that cannot be read: {error.strerror}", "mend the permissions of the cache"
        ) from None
    except ValueError:
        raise _error(model_id, f"has a {name} that is not a JSON object", "choose another revision", code="E213") from None


def _error(model_id: str, what: str, hint: str, *, code: str = "E411") -> LauncherError:
    return LauncherError(Problem(code=code, where=f"hub:{model_id}", what=what, hint=hint))
