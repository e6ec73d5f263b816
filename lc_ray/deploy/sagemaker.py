"""Deploy on Amazon SageMaker, as an endpoint of instances, a serverless or an asynchronous one.

The container is the target `sagemaker` of cluster/Dockerfile. Credentials and region are boto3's own, and image, role and bucket are looked for in
that account where they are not given. A new version takes an endpoint's place once it answers; of the old one nothing is left then, and of a new one
that fails nothing either. One that takes longer than it may is left to SageMaker; the same command finishes it.
"""

from __future__ import annotations

import json
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field

import lc_ray
from lc_ray.artifact import Artifact
from lc_ray.deploy import _aws, _platform
from lc_ray.deploy._platform import TAG, Call, Machines
from lc_ray.errors import DeployError
from lc_ray.serve.auth import KEYLESS
from lc_ray.spec import digest
from lc_ray.units import Seconds

_ROLE, _BUCKET = r"^(arn:aws[\w-]*:iam::\d{12}:role/[\w+=,.@/-]+)?$", r"^([a-z0-9][a-z0-9.-]{2,62})?$"
_VARIANT, _PREFIX = "main", "lc_ray"
_WITH_GPUS = ("ml.g", "ml.p")  # how types of instances begin that have GPUs
_DRIVER = "al2023-ami-sagemaker-inference-gpu-4-1"  # NVIDIA's 580, which CUDA 13 of PyPI's torch needs; without it, an older one
_LONGEST = 46  # characters of 63, beside which a version's 16 are
_SCALED = {"ServiceNamespace": "sagemaker", "ScalableDimension": "sagemaker:variant:DesiredInstanceCount"}
_POLL = 15  # seconds between two looks at an endpoint, which takes minutes
_CHANGING = {"Creating", "Updating", "SystemUpdating", "RollingBack", "Deleting"}  # statuses of an endpoint that another follows by itself


class Settings(Machines):
    """The endpoint, and what it runs on."""

    image: str = Field("", description="URI of cluster/Dockerfile's target sagemaker; the account's lc-ray:VERSION-sagemaker in ECR if not given")
    role: str = Field("", pattern=_ROLE, description="ARN of the role that SageMaker takes on; the account's role lc-ray if not given")
    bucket: str = Field("", pattern=_BUCKET, description="for the model and asynchronous answers; that of SageMaker's own SDK if not given")
    region: str | None = Field(None, description="boto3's own if not given")
    endpoint: str | None = Field(None, pattern=r"^[a-zA-Z0-9](-*[a-zA-Z0-9]){0,62}$", description="its name; the model's if not given")
    mode: Literal["instances", "serverless", "asynchronous"] = Field("instances", description="asynchronous: answers come by S3, within an hour")
    instance: str = Field("ml.c5.xlarge", pattern=r"^ml\.", description="type of the instances; newer ones are faster, where a region has them")
    load: float = Field(1000, gt=0, description="requests that each instance is to have: a minute, or of an asynchronous endpoint waiting")
    memory: Literal[1024, 2048, 3072, 4096, 5120, 6144] = Field(4096, description="MB, of a serverless endpoint")
    concurrency: int = Field(5, ge=1, le=200, description="most requests at a time, of a serverless endpoint")
    timeout: Seconds = Field(1800.0, description="longest time until the endpoint answers")


def _whole(settings: Settings) -> Settings:
    """The settings, and for those that were not given what they are in the account.

    Raises:
        DeployError: boto3 finds no account, or no region.
    """
    if settings.image and settings.role and settings.bucket:
        return settings
    account = _aws.account(settings.region)
    registry = f"{account.number}.dkr.ecr.{account.region}.{account.domain}"
    known = {
        "image": f"{registry}/lc-ray:{lc_ray.__version__}-sagemaker",
        "role": f"arn:{account.partition}:iam::{account.number}:role/lc-ray",
        "bucket": f"sagemaker-{account.region}-{account.number}",  # as SageMaker's own SDK names it
    }
    return settings.model_copy(update={name: value for name, value in known.items() if not getattr(settings, name)})


def calls(artifact: Artifact, settings: Settings) -> list[Call]:
    """The calls of a first deployment, in order.

    Raises:
        DeployError: image, role or bucket are not given, and boto3 finds no account, or no region; or GPUs for a model that does not run on any.
    """
    _platform.need_no_gpu(artifact, settings.mode != "serverless" and settings.instance.startswith(_WITH_GPUS))
    settings = _whole(settings)
    endpoint, name = _names(artifact, settings)
    key = f"{_PREFIX}/{name}/model.tar.gz"
    tags = [{"Key": TAG, "Value": artifact.digest}]
    # SageMaker lets nobody through to the container whose request is not signed.
    container = {"Image": settings.image, "ModelDataUrl": f"s3://{settings.bucket}/{key}", "Environment": {KEYLESS: "1"}}
    # It serves what it is given, and has no business with anybody else; but serverless endpoints can't be cut off.
    isolated = settings.mode != "serverless"
    model = {"ModelName": name, "ExecutionRoleArn": settings.role, "PrimaryContainer": container, "EnableNetworkIsolation": isolated, "Tags": tags}
    config: dict[str, Any] = {"EndpointConfigName": name, "ProductionVariants": [_variant(name, settings)], "Tags": tags}
    if settings.mode == "asynchronous":
        answers = f"s3://{settings.bucket}/{_PREFIX}/{name}/answers"
        config["AsyncInferenceConfig"] = {"OutputConfig": {"S3OutputPath": answers, "S3FailurePath": f"{answers}/failed"}}
    wait = {"EndpointName": endpoint, "WaiterConfig": {"Delay": _POLL, "MaxAttempts": max(1, round(settings.timeout / _POLL))}}
    return [
        Call("boto3.client", {"region_name": settings.region}, "" if settings.region else "null is the region that boto3 is configured for"),
        *_bucket(settings),
        Call("s3.upload_file", {"Filename": "model.tar.gz", "Bucket": settings.bucket, "Key": key}, f"made of {artifact.path}"),
        Call("sagemaker.create_model", model),
        Call("sagemaker.create_endpoint_config", config),
        Call(
            "sagemaker.create_endpoint",
            {"EndpointName": endpoint, "EndpointConfigName": name, "Tags": tags},
            "update_endpoint, without tags, where it exists; of autoscaled instances there stay as many",
        ),
        Call("sagemaker.get_waiter('endpoint_in_service').wait", wait),
        *_scaling(endpoint, settings),
    ]


def _bucket(settings: Settings) -> list[Call]:
    """Makes the bucket, if it is the account's own."""
    if not (own := re.fullmatch(r"sagemaker-(.+)-\d{12}", settings.bucket)):
        return []
    where = {} if own[1] == "us-east-1" else {"CreateBucketConfiguration": {"LocationConstraint": own[1]}}
    return [Call("s3.create_bucket", {"Bucket": settings.bucket, **where}, "unless it is there")]


def _names(artifact: Artifact, settings: Settings) -> tuple[str, str]:
    """The endpoint's name, and that of the version: of its model, its configuration and its folder."""
    endpoint = settings.endpoint or _platform.label(artifact.manifest.name)
    return endpoint, f"{_stem(endpoint)}{_platform.version(artifact, settings)}"


def _stem(endpoint: str) -> str:
    """How the names of an endpoint's versions begin, and no other's: what is cut off of a long name is in a digest."""
    if len(endpoint) > _LONGEST:
        endpoint = f"{endpoint[: _LONGEST - 9].rstrip('-')}-{digest(endpoint)[:8]}"
    return f"{endpoint}-"


def _variant(name: str, settings: Settings) -> dict[str, Any]:
    about: dict[str, Any] = {"VariantName": _VARIANT, "ModelName": name}
    if settings.mode == "serverless":
        return about | {"ServerlessConfig": {"MemorySizeInMB": settings.memory, "MaxConcurrency": settings.concurrency}}
    patience = {"ModelDataDownloadTimeoutInSeconds": 1200, "ContainerStartupHealthCheckTimeoutInSeconds": 600}
    driver = {"InferenceAmiVersion": _DRIVER} if settings.instance.startswith(_WITH_GPUS) else {}
    return about | {"InstanceType": settings.instance, "InitialInstanceCount": settings.least} | patience | driver


def _scaling(endpoint: str, settings: Settings) -> list[Call]:
    if settings.mode == "serverless" or settings.least == settings.most:
        return []
    target = _SCALED | {"ResourceId": _resource(endpoint)}
    follow: dict[str, Any] = {"TargetValue": settings.load}
    if settings.mode == "instances":
        follow["PredefinedMetricSpecification"] = {"PredefinedMetricType": "SageMakerVariantInvocationsPerInstance"}
    else:
        of = {"MetricName": "ApproximateBacklogSizePerInstance", "Namespace": "AWS/SageMaker", "Statistic": "Average"}
        follow["CustomizedMetricSpecification"] = of | {"Dimensions": [{"Name": "EndpointName", "Value": endpoint}]}
    policy = {"PolicyName": f"{endpoint}-load", "PolicyType": "TargetTrackingScaling", "TargetTrackingScalingPolicyConfiguration": follow}
    return [
        Call("application-autoscaling.register_scalable_target", target | {"MinCapacity": settings.least, "MaxCapacity": settings.most}),
        Call("application-autoscaling.put_scaling_policy", target | policy),
    ]


def _resource(endpoint: str) -> str:
    return f"endpoint/{endpoint}/variant/{_VARIANT}"


@dataclass(frozen=True)
class Deployment:
    """An endpoint.

    Attributes:
        url: where signed requests are answered.
        name: of the endpoint.
    """

    url: str
    name: str
    _settings: Settings

    def predict(self, rows: list[Any]) -> list[dict[str, Any]]:
        """Answers of the endpoint; of an asynchronous one once they lie in S3.

        Raises:
            DeployError: with what the endpoint said.
        """
        body = json.dumps({"instances": rows}).encode()
        with _aws.explained(self.name):
            if self._settings.mode == "asynchronous":
                content = _aws.invoke_later(self._client, self.name, body, self._settings.bucket, f"{_PREFIX}/questions")
            else:
                asked = {"EndpointName": self.name, "ContentType": "application/json", "Body": body}
                content = self._client("sagemaker-runtime").invoke_endpoint(**asked)["Body"].read()
        found: list[dict[str, Any]] = json.loads(content)["predictions"]
        return found

    def delete(self) -> None:
        """Delete the endpoint, and the configurations, models and folders in S3 of its versions.

        Raises:
            DeployError: with what SageMaker said, or somebody else has made the endpoint, or it is being changed.
        """
        with _aws.explained(self.name):
            client = self._client("sagemaker")
            if self._settled():
                _aws.unscaled(self._client("application-autoscaling"), _resource(self.name))
                client.delete_endpoint(EndpointName=self.name)
                client.get_waiter("endpoint_deleted").wait(EndpointName=self.name)
            self._remove_but(None)

    def _settled(self) -> dict[str, Any] | None:
        """What SageMaker says of the endpoint; None if there is none.

        Raises:
            DeployError: with what SageMaker said, or somebody else has made it, or it is being changed.
        """
        with _aws.explained(self.name):
            about = _aws.owned(self._client("sagemaker"), self.name)
        if about and about["EndpointStatus"] in _CHANGING:
            raise DeployError(f"the endpoint is being changed: {about['EndpointStatus']}", self.name, "give the same command again when that is over")
        return about

    def _client(self, service: str) -> Any:
        return _aws.client(service, self._settings.region)

    def _remove_but(self, version: str | None) -> None:
        """Delete what all versions are made of but one."""
        pages = self._client("sagemaker").get_paginator("list_models").paginate(NameContains=_stem(self.name))
        names = [one["ModelName"] for page in pages for one in page["Models"]]
        for name in names:
            if name != version and re.fullmatch(re.escape(_stem(self.name)) + "[0-9a-f]{16}", name):  # what others have made has other names
                self._remove(name)

    def _remove(self, name: str) -> None:
        """Delete what one version is made of, as far as it is there; last the model, by which the rest is found."""
        sagemaker, s3, bucket = self._client("sagemaker"), self._client("s3"), self._settings.bucket
        with _aws.unless("Could not find"):  # where it is, it knows its bucket, which may not be that of the version now
            bucket = urlsplit(sagemaker.describe_model(ModelName=name)["PrimaryContainer"]["ModelDataUrl"]).netloc
        with _aws.unless("NoSuchBucket"):
            for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{_PREFIX}/{name}/"):
                for one in page.get("Contents", []):
                    s3.delete_object(Bucket=bucket, Key=one["Key"])
        with _aws.unless("Could not find"):
            sagemaker.delete_endpoint_config(EndpointConfigName=name)
        with _aws.unless("Could not find"):
            sagemaker.delete_model(ModelName=name)

    def _roll_out(self, artifact: Artifact, exists: bool) -> None:
        """Make the calls of the plan but for autoscaling, which is ended while an endpoint changes.

        Raises:
            DeployError: with what SageMaker said. What was made is deleted again and autoscaling as before, unless SageMaker still works on it.
        """
        version, again = _names(artifact, self._settings)[1], list[tuple[str, dict[str, Any]]]()
        client, scaling = self._client("sagemaker"), self._client("application-autoscaling")
        try:
            with _aws.explained(self.name):
                for call in calls(artifact, self._settings)[1:]:
                    if call.name == "sagemaker.create_endpoint" and exists:
                        again = _aws.unscaled(scaling, _resource(self.name))
                        # As many instances as the load has brought: the least would be too few for it.
                        kept = {"RetainAllVariantProperties": True} if again and _scaling(self.name, self._settings) else {}
                        client.update_endpoint(EndpointName=self.name, EndpointConfigName=version, **kept)
                    elif not call.name.startswith("application-autoscaling."):
                        self._make(call, artifact)
                _aws.check(client, self.name, version)
        except DeployError as error:
            with _aws.explained(self.name):
                status = (_aws.described(client, self.name) or {}).get("EndpointStatus")
            if status in _CHANGING:
                fix = "give the same command again when that is over: it finishes the deployment, or says why it failed"
                raise DeployError(f"{error.what}; SageMaker goes on: {status}", self.name, fix) from None
            try:
                with _aws.explained(self.name):
                    if not exists:
                        self.delete()
                    self._remove(version)
                    for method, arguments in again:
                        getattr(scaling, method)(**arguments)
            except DeployError as left:
                raise DeployError(f"{error.what}; and it can't be undone: {left.what}", self.name, error.fix) from None
            raise

    def _make(self, call: Call, artifact: Artifact) -> None:
        """Make a call of the plan."""
        service, _, method = call.name.partition(".")
        client, arguments = self._client(service), call.arguments
        if method == "upload_file":
            with tempfile.TemporaryDirectory() as folder:
                file = Path(folder) / arguments["Filename"]
                _platform.tarball(artifact, file)
                client.upload_file(**(arguments | {"Filename": str(file)}))
        elif method.startswith("get_waiter"):
            client.get_waiter("endpoint_in_service").wait(**arguments)
        elif method == "create_bucket":
            with _aws.unless("Not Found"):
                client.head_bucket(Bucket=arguments["Bucket"], ExpectedBucketOwner=arguments["Bucket"][-12:])  # its name can be guessed by others
                return
            client.create_bucket(**arguments)
        else:
            with _aws.unless("already exist"):  # of a call that was cut off; its name says that it is the same
                getattr(client, method)(**arguments)


def delete(artifact: Artifact, settings: Settings) -> None:
    """Delete the endpoint, whichever version of the model it has."""
    _handle(artifact, _whole(settings)).delete()


def _handle(artifact: Artifact, settings: Settings) -> Deployment:
    """The endpoint, whether it is there or not."""
    name = _names(artifact, settings)[0]
    with _aws.explained(name):
        base = _aws.client("sagemaker-runtime", settings.region).meta.endpoint_url
    return Deployment(f"{base}/endpoints/{name}/invocations", name, settings)


def deploy(artifact: Artifact, settings: Settings) -> Deployment:
    """Make the endpoint, or have it change to this version without a gap.

    Raises:
        DeployError: with what SageMaker said, or somebody else has made an endpoint of this name. What this call made is deleted again, and an
            endpoint that was there answers as before.
    """
    settings = _whole(settings)
    handle, version = _handle(artifact, settings), _names(artifact, settings)[1]
    before = handle._settled()
    if before and before["EndpointStatus"] == "Failed":  # which nothing can be done with but this
        handle.delete()
        before = None
    if before is None or before["EndpointConfigName"] != version:
        handle._roll_out(artifact, before is not None)
    with _aws.explained(handle.name):
        for call in _scaling(handle.name, settings):
            handle._make(call, artifact)
        handle._remove_but(version)
    return handle
