"""(hub id, file) -> a small JSON file of a model on the Hugging Face hub. DO, network: the control side's one door to the hub.

Imported late, from the registry's table, and only where a hub id must be asked: its library costs more than a whole `validate`.
"""

from __future__ import annotations

import json

import huggingface_hub
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, LocalEntryNotFoundError, RepositoryNotFoundError

from launcher.errors import LauncherError, Problem


def fetch_json(model_id: str, name: str, revision: str | None) -> dict[str, object]:
    """The object in the model's file `name`, from the cache where it lies there. LauncherError E411."""
    try:
        with open(huggingface_hub.hf_hub_download(model_id, name, revision=revision), encoding="utf-8") as file:
            value = json.load(file)
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
    if not isinstance(value, dict):
        raise _error(model_id, f"has a {name} that is not an object", "choose another revision")
    return value


def _error(model_id: str, what: str, hint: str) -> LauncherError:
    return LauncherError(Problem(code="E411", where=f"hub:{model_id}", what=what, hint=hint))
