"""boto3, whose errors are told as ours."""

from __future__ import annotations

import functools
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

from lc_ray.deploy._platform import TAG, foreign, needed
from lc_ray.errors import DeployError

_RESOURCE = ("ServiceNamespace", "ResourceId", "ScalableDimension")
_FIX = "`aws configure`, or set AWS_PROFILE and --set region=..."
_LONGEST = 3600  # seconds that an asynchronous endpoint may take


@functools.cache
def client(service: str, region: str | None) -> Any:
    """boto3's client of a service.

    Raises:
        DeployError: boto3 is not installed, or finds no region.
    """
    boto3 = needed("boto3", "sagemaker")
    region = region or boto3.session.Session().region_name
    if not region:  # of an empty one, boto3 makes addresses of no machine
        raise DeployError("boto3 finds no region", fix=_FIX)
    return boto3.client(service, region_name=region)


class Account(NamedTuple):
    """Whose credentials boto3 has.

    Attributes:
        number: 12 digits.
        region: in which calls are made.
        partition: "aws" in most regions.
        domain: of its services.
    """

    number: str
    region: str
    partition: str
    domain: str


def account(region: str | None) -> Account:
    """The account that boto3 has credentials of.

    Raises:
        DeployError: it has none, or no region.
    """
    with explained("Amazon SageMaker"):
        sts = client("sts", region)
        about, found = sts.get_caller_identity(), sts.meta.region_name
    partition = about["Arn"].split(":")[1]
    return Account(about["Account"], found, partition, "amazonaws.com.cn" if partition == "aws-cn" else "amazonaws.com")


@contextmanager
def explained(where: str) -> Iterator[None]:
    """Raise what boto3 does as DeployError."""
    errors = needed("botocore.exceptions", "sagemaker")
    try:
        yield
    except errors.ClientError as error:
        about = error.response.get("Error", {})
        what = f"{error.operation_name}: {about.get('Message') or about.get('Code') or error}"
        raise DeployError(what, where) from None
    except (errors.NoCredentialsError, errors.NoRegionError) as error:
        raise DeployError(str(error), where, _FIX) from None
    except (errors.BotoCoreError, needed("boto3.exceptions", "sagemaker").Boto3Error) as error:
        # A waiter's error has what it saw last, in which SageMaker says why an endpoint failed.
        raise DeployError(getattr(error, "last_response", {}).get("FailureReason") or str(error), where) from None


@contextmanager
def unless(message: str) -> Iterator[None]:
    """Pass over the refusal that has this in its message."""
    try:
        yield
    except needed("botocore.exceptions", "sagemaker").ClientError as error:
        if message.lower() not in str(error).lower():
            raise


def described(sagemaker: Any, endpoint: str) -> dict[str, Any] | None:
    """What SageMaker says of an endpoint; None if there is none."""
    with unless("Could not find"):
        about: dict[str, Any] = sagemaker.describe_endpoint(EndpointName=endpoint)
        return about
    return None


def owned(sagemaker: Any, endpoint: str) -> dict[str, Any] | None:
    """As `described`.

    Raises:
        DeployError: somebody else has made it.
    """
    about = described(sagemaker, endpoint)
    if about and TAG not in {tag["Key"] for tag in sagemaker.list_tags(ResourceArn=about["EndpointArn"])["Tags"]}:
        raise foreign(endpoint)
    return about


def check(sagemaker: Any, endpoint: str, version: str) -> None:
    """See that an endpoint has the version that it was told to.

    Raises:
        DeployError: it went back to the one before, and says why.
    """
    about = described(sagemaker, endpoint) or {}
    if about.get("EndpointConfigName") != version:
        raise DeployError(f"SageMaker went back to the version before: {about.get('FailureReason', 'it does not say why')}", endpoint)


def unscaled(scaling: Any, resource: str) -> list[tuple[str, dict[str, Any]]]:
    """End a resource's autoscaling, without which no endpoint can be changed or deleted.

    Returns:
        The calls that would bring it back, by method and arguments.
    """
    of = {"ServiceNamespace": "sagemaker"}
    targets = scaling.describe_scalable_targets(ResourceIds=[resource], **of)["ScalableTargets"]
    policies = scaling.describe_scaling_policies(ResourceId=resource, **of)["ScalingPolicies"] if targets else []
    for one in targets:
        scaling.deregister_scalable_target(**_only(one, *_RESOURCE))
    again = [("register_scalable_target", _only(one, *_RESOURCE, "MinCapacity", "MaxCapacity")) for one in targets]
    kept = (*_RESOURCE, "PolicyName", "PolicyType", "TargetTrackingScalingPolicyConfiguration", "StepScalingPolicyConfiguration")
    return again + [("put_scaling_policy", _only(one, *kept)) for one in policies]


def _only(about: dict[str, Any], *names: str) -> dict[str, Any]:
    return {name: about[name] for name in names if name in about}


def invoke_later(clients: Callable[[str], Any], endpoint: str, body: bytes, bucket: str, prefix: str) -> bytes:
    """An asynchronous endpoint's answer.

    Args:
        clients: by service.
        endpoint: its name.
        body: of the request, which is put into the bucket for the time.
        bucket: for requests.
        prefix: of the request's key.

    Raises:
        DeployError: it failed, or took longer than an hour.
    """
    s3, key, end = clients("s3"), f"{prefix}/{uuid.uuid4().hex}.json", time.monotonic() + _LONGEST
    s3.put_object(Bucket=bucket, Key=key, Body=body)
    try:
        asked = {"EndpointName": endpoint, "ContentType": "application/json", "InputLocation": f"s3://{bucket}/{key}"}
        places = clients("sagemaker-runtime").invoke_endpoint_async(**asked)
        while time.monotonic() < end:
            if (answer := _content(s3, places["OutputLocation"])) is not None:
                return answer
            if (failure := _content(s3, places.get("FailureLocation", ""))) is not None:
                raise DeployError(failure.decode("utf-8", "replace")[:500], endpoint)
            time.sleep(1)
        raise DeployError(f"no answer within {_LONGEST} s", endpoint)
    finally:
        s3.delete_object(Bucket=bucket, Key=key)


def _content(s3: Any, place: str) -> bytes | None:
    """An object's bytes; None if it is not there."""
    bucket, _, key = place.removeprefix("s3://").partition("/")
    if key:
        with unless("NoSuchKey"):
            content: bytes = s3.get_object(Bucket=bucket, Key=key)["Body"].read()
            return content
    return None
