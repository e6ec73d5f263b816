"""Deploy on Google Cloud's Vertex AI.

The container is the image of cluster/Dockerfile. Credentials are those of the Google client libraries. A new version takes the endpoint's traffic,
or the part of it that `traffic` says, once it answers; of the one that has none left nothing is left then.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from lc_ray.artifact import Artifact
from lc_ray.deploy import _platform
from lc_ray.deploy._platform import TAG, Call, Machines, foreign
from lc_ray.errors import DeployError
from lc_ray.serve.auth import KEYLESS
from lc_ray.units import Seconds

_PREFIX = "lc_ray"
_WITH_GPUS = ("n1-", "a", "g")  # how the types of machines begin to which there are GPUs
_COMMAND = ["python", "-m", "lc_ray.serve.container"]


class Settings(Machines):
    """The endpoint, and what it runs on."""

    project: str = Field(pattern=r"^[a-z0-9:.-]+$", description="id of the project")
    region: str = Field(pattern=r"^[a-z0-9-]+$", description="such as europe-west4")
    bucket: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{1,61}[a-z0-9]$", description="bucket for the model")
    image: str = Field(min_length=1, description="the image of cluster/Dockerfile, in Artifact Registry")
    endpoint: str | None = Field(None, max_length=128, pattern=r'^[^"\\]+$', description="its display name; the model's if not given")
    machine: str = Field("n2-standard-4", description="type of the machines")
    accelerator: str | None = Field(None, description="type of GPU, such as NVIDIA_L4")
    accelerators: int = Field(1, ge=1, description="GPUs of a machine, if it has any")
    traffic: int = Field(100, ge=1, le=100, description="percent of the requests that the new version gets; the old one keeps the others")
    service_account: str | None = Field(None, description="that the container runs as; it reads the model")
    timeout: Seconds = Field(1800.0, description="longest time until the container answers")

    @model_validator(mode="after")
    def _gpus(self) -> Self:
        if "accelerators" in self.model_fields_set and not self.accelerator:
            raise ValueError("accelerators without accelerator, the type of GPU, such as NVIDIA_L4")
        if self.accelerator and not self.machine.startswith(_WITH_GPUS):
            raise ValueError(f"machine {self.machine} has no GPUs: choose one that has {self.accelerator}, such as g2-standard-4 for NVIDIA_L4")
        return self


def calls(artifact: Artifact, settings: Settings) -> list[Call]:
    """The calls of a first deployment, in order.

    Raises:
        DeployError: GPUs for a model that does not run on any.
    """
    _platform.need_no_gpu(artifact, settings.accelerator is not None)
    endpoint, version = _names(artifact, settings)
    labels = {TAG: artifact.digest}
    model = {
        "display_name": version,
        "artifact_uri": f"gs://{settings.bucket}/{_PREFIX}/{version}",
        "serving_container_image_uri": settings.image,
        "serving_container_command": _COMMAND,
        "serving_container_ports": [8080],
        "serving_container_predict_route": "/predict",
        "serving_container_health_route": "/health",
        "serving_container_environment_variables": {KEYLESS: "1"},  # Vertex AI lets nobody through to the container whom it does not know
        "serving_container_deployment_timeout": round(settings.timeout),
        "labels": labels,
    }
    deployed = {
        "deployed_model_display_name": version,
        "machine_type": settings.machine,
        "min_replica_count": settings.least,
        "max_replica_count": settings.most,
        "service_account": settings.service_account,
        "traffic_split": {"0": 100},
    }
    if settings.accelerator:
        deployed |= {"accelerator_type": settings.accelerator, "accelerator_count": settings.accelerators}
    folder = {"bucket": settings.bucket, "name": f"{_PREFIX}/{version}"}
    return [
        _where(settings),
        *(Call("storage.Blob.upload_from_filename", _file(folder, artifact, name)) for name in artifact.names),
        Call("aiplatform.Model.upload", model),
        Call("aiplatform.Endpoint.create", {"display_name": endpoint, "labels": labels}, "unless it exists"),
        Call("aiplatform.Endpoint.deploy", deployed, "the model that was uploaded; what was deployed before shares what traffic remains"),
    ]


def _where(settings: Settings) -> Call:
    """What all others are made with."""
    return Call("aiplatform.init", {"project": settings.project, "location": settings.region})


def _file(folder: dict[str, str], artifact: Artifact, name: str) -> dict[str, str]:
    return folder | {"name": f"{folder['name']}/{name}", "filename": str(artifact.path / name)}


def _names(artifact: Artifact, settings: Settings) -> tuple[str, str]:
    """The endpoint's name, and that of the version: of its model and its folder."""
    same = settings.model_copy(update={"traffic": 100})  # a version is what it is, however much of the traffic it gets
    name = _platform.label(artifact.manifest.name)
    return settings.endpoint or name, f"{name}-{_platform.version(artifact, same)}"


def shares(before: Mapping[str, int], new: str, percent: int) -> dict[str, int]:
    """Percent of the traffic by deployed model.

    Args:
        before: of all models.
        new: the one that gets `percent`; the others share what remains as they did.
        percent: for it; all if there are no others.
    """
    others = {one: part for one, part in before.items() if one != new}
    whole = sum(others.values())
    if not whole:
        return {**dict.fromkeys(others, 0), new: 100}
    found = {one: part * (100 - percent) // whole for one, part in others.items()}
    return found | {new: 100 - sum(found.values())}


@dataclass(frozen=True)
class Deployment:
    """An endpoint.

    Attributes:
        url: where requests with Google's credentials are answered.
    """

    url: str
    _endpoint: Any
    _settings: Settings

    def predict(self, rows: list[Any]) -> list[dict[str, Any]]:
        """Answers of the endpoint.

        Raises:
            DeployError: with what the endpoint said.
        """
        with _explained(self._endpoint.display_name):
            found: list[dict[str, Any]] = self._endpoint.predict(instances=rows).predictions
        return found

    def delete(self) -> None:
        """Delete the endpoint, and of all versions that it has the model and its folder.

        Raises:
            DeployError: with what Vertex AI said.
        """
        with _explained(self._endpoint.display_name):
            models = [one.model for one in self._endpoint.list_models()]
            self._endpoint.delete(force=True)
            for model in models:
                _remove(model, self._settings)


def deploy(artifact: Artifact, settings: Settings) -> Deployment:
    """Make the endpoint, or have it change to this version without a gap.

    Raises:
        DeployError: with what Vertex AI said; what this call made is deleted again, and an endpoint that was there answers as before.
    """
    name, version = _names(artifact, settings)
    with _explained(name):
        endpoint = _endpoint(name, settings)
        deployed = {one.display_name: one.id for one in endpoint.list_models()} if endpoint else {}
        if version in deployed:
            endpoint.update(traffic_split=shares(endpoint.traffic_split, deployed[version], settings.traffic))
        else:
            endpoint = _made(artifact, settings, endpoint)
        split = endpoint.traffic_split
        for one in endpoint.list_models():
            if not split.get(one.id):
                endpoint.undeploy(one.id)
                _remove(one.model, settings)
        return _handle(endpoint, settings)


def _made(artifact: Artifact, settings: Settings, endpoint: Any) -> Any:
    """The endpoint, with a new version."""
    ai, bucket = _client("google.cloud.aiplatform"), _bucket(settings)
    _, *uploads, upload, create, put = calls(artifact, settings)
    model, made = None, None
    try:
        for one in uploads:
            bucket.blob(one.arguments["name"]).upload_from_filename(one.arguments["filename"])
        model = ai.Model.upload(**upload.arguments)
        if endpoint is None:
            endpoint = made = ai.Endpoint.create(**create.arguments)
        endpoint.deploy(model, **put.arguments | {"traffic_split": shares(endpoint.traffic_split, "0", settings.traffic)})
    except BaseException as error:
        try:
            if made is not None:
                made.delete(force=True)
            if model is not None:
                model.delete()
            _empty(bucket, upload.arguments["artifact_uri"])
        except _client("google.api_core.exceptions").GoogleAPIError as left:
            fix = "give the same command again when Vertex AI is done, or --delete"
            what = str(error) or type(error).__name__
            raise DeployError(f"{what}; and it can't be undone: {left}", create.arguments["display_name"], fix) from None
        raise
    return endpoint


def delete(artifact: Artifact, settings: Settings) -> None:
    """Delete the endpoint, and of all versions that it has the model and its folder."""
    name = _names(artifact, settings)[0]
    with _explained(name):
        endpoint = _endpoint(name, settings)
    if endpoint is not None:
        _handle(endpoint, settings).delete()


def _handle(endpoint: Any, settings: Settings) -> Deployment:
    return Deployment(f"https://{settings.region}-aiplatform.googleapis.com/v1/{endpoint.resource_name}:predict", endpoint, settings)


def _endpoint(name: str, settings: Settings) -> Any:
    """The endpoint of a name, None if there is none.

    Raises:
        DeployError: there are several, or somebody else has made it.
    """
    ai = _client("google.cloud.aiplatform")
    ai.init(**_where(settings).arguments)
    found = ai.Endpoint.list(filter=f'display_name="{name}"')
    if len(found) > 1:
        raise DeployError(f"{len(found)} endpoints have this display name", name, "choose another one: --set endpoint=NAME")
    if found and TAG not in found[0].labels:
        raise foreign(name)
    return found[0] if found else None


def _remove(resource: str, settings: Settings) -> None:
    """Delete a model of ours and its folder, in whichever bucket that is; what others have made has another label, or none."""
    model = _client("google.cloud.aiplatform").Model(resource)
    if TAG in model.labels:
        model.delete()
        _empty(_bucket(settings.model_copy(update={"bucket": urlsplit(model.uri).netloc})), model.uri)


def _empty(bucket: Any, uri: str) -> None:
    for blob in bucket.list_blobs(prefix=uri.removeprefix(f"gs://{bucket.name}/") + "/"):
        blob.delete()


def _bucket(settings: Settings) -> Any:
    return _client("google.cloud.storage").Client(project=settings.project).bucket(settings.bucket)


def _client(module: str) -> Any:
    return _platform.needed(module, "vertex")


@contextmanager
def _explained(where: str) -> Iterator[None]:
    """Raise what Google's clients do as DeployError."""
    api, auth = _client("google.api_core.exceptions"), _client("google.auth.exceptions")
    try:
        yield
    except api.GoogleAPIError as error:
        raise DeployError(str(getattr(error, "message", None) or error), where) from None
    except DeployError:
        raise
    except ValueError as error:  # of an argument that Google's clients do not take
        raise DeployError(str(error), where) from None
    except auth.GoogleAuthError as error:
        raise DeployError(str(error), where, "`gcloud auth application-default login`") from None
