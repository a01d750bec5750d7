"""What a Kubernetes API server would say of a manifest's fields, without one: every error, as `path: message`.

Kinds of Kubernetes itself: the strict OpenAPI schemas in kubernetes-validate, all errors and not the first. JobSet and Trainer:
the models of kubeflow-trainer-api, which drop unknown fields silently, so that what they keep is compared with what they got.
Admission, defaults and immutability are not seen here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from jsonschema.validators import Draft202012Validator
from kubeflow_trainer_api import models
from kubernetes_validate import utils
from pydantic import ValidationError
from referencing import Registry, Resource

VERSION = "1.37"
MODELS = {"jobset.x-k8s.io/v1alpha2": "JobsetV1alpha2", "trainer.kubeflow.org/v1alpha1": "TrainerV1alpha1"}


def schema_errors(document: dict) -> list[str]:
    prefix = MODELS.get(document["apiVersion"])
    if prefix is None:
        return list(_native(document, document["kind"], document["apiVersion"]))
    found = list(_modelled(document, getattr(models, prefix + document["kind"])))
    for path, pod in _pods(document, "$"):  # their models are looser than the schemas of Kubernetes
        found += [f"{path}{error[1:]}" for error in _native({"spec": pod["spec"], "metadata": {}}, "PodTemplateSpec", "v1")]
    return found


def _native(document: dict, kind: str, api_version: str) -> Iterator[str]:
    group = re.sub(r"^([^./]*)(?:\.[^/]*)?/", r"\1-", api_version)
    folder = f"kubernetes-json-schema/v{VERSION}.0-local-strict"
    schema = utils.schema_contents(f"{folder}/{kind.lower()}-{group}.json", VERSION)
    definitions = utils.schema_contents(f"{folder}/_definitions.json", VERSION)
    registry = Resource.from_contents(definitions) @ (Resource.from_contents(schema) @ Registry())
    for error in Draft202012Validator(schema, registry=registry).iter_errors(document):
        yield f"{error.json_path}: {error.message}"


def _modelled(document: dict, model: type) -> Iterator[str]:
    try:
        yield from _lost(document, model.from_dict(document).to_dict(), "$")
    except ValidationError as error:
        yield from (f"$.{'.'.join(map(str, one['loc']))}: {one['msg']}" for one in error.errors())


def _lost(given: object, kept: object, path: str) -> Iterator[str]:
    if isinstance(given, dict) and isinstance(kept, dict):
        for key, value in given.items():
            yield from _lost(value, kept[key], f"{path}.{key}") if key in kept else [f"{path}.{key}: unknown field"]
    elif isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        for index, value in enumerate(given):
            yield from _lost(value, kept[index], f"{path}[{index}]")
    elif given != kept:
        yield f"{path}: {given!r} read as {kept!r}"


def _pods(value: object, path: str) -> Iterator[tuple[str, dict]]:
    """Every pod template in a manifest."""
    if isinstance(value, dict):
        if "containers" in value.get("spec", {}):
            yield path, value
        for key, one in value.items():
            yield from _pods(one, f"{path}.{key}")
    if isinstance(value, list):
        for index, one in enumerate(value):
            yield from _pods(one, f"{path}[{index}]")
