"""SageMaker: boto3 against moto's server."""

import json
import re
import sys
import tarfile

import boto3
import httpx
import pytest
from botocore.exceptions import ClientError
from moto.sagemaker.models import sagemaker_backends
from moto.sagemaker.responses import SageMakerResponse

import lc_ray
from lc_ray import DeployModel, artifact, cli
from lc_ray.deploy import _platform, sagemaker
from lc_ray.errors import DeployError


def left(bucket="models"):
    """All that there is in the account."""
    client, s3 = boto3.client("sagemaker"), boto3.client("s3")
    return {
        "endpoints": [e["EndpointName"] for e in client.list_endpoints()["Endpoints"]],
        "configs": [c["EndpointConfigName"] for c in client.list_endpoint_configs()["EndpointConfigs"]],
        "models": [m["ModelName"] for m in client.list_models()["Models"]],
        "files": [f["Key"] for f in s3.list_objects_v2(Bucket=bucket).get("Contents", [])],
        "scaled": boto3.client("application-autoscaling").describe_scalable_targets(ServiceNamespace="sagemaker")["ScalableTargets"],
    }


@pytest.fixture
def update_endpoint(monkeypatch):
    """The one operation of ours that moto lacks. What it is given, "fails" of it: whether SageMaker then goes back; and the "status" after it."""
    told = {"fails": False, "status": "InService"}

    def update(self):
        told["given"] = json.loads(self.body)
        endpoint = sagemaker_backends[self.current_account][self.region].endpoints[told["given"]["EndpointName"]]
        if told["fails"]:
            endpoint.failure_reason = "the container did not answer"
        else:
            endpoint.endpoint_config_name = told["given"]["EndpointConfigName"]
        endpoint.endpoint_status = told["status"]
        return json.dumps({"EndpointArn": endpoint.arn})

    monkeypatch.setattr(SageMakerResponse, "update_endpoint", update, raising=False)
    return told


def test_a_deployment_and_all_that_it_made_is_gone_again(aws, tiny_artifact, tmp_path):
    deployment = DeployModel(tiny_artifact, platform="Amazon SageMaker", **aws).deploy()
    made = left()
    assert made["endpoints"] == ["tiny"]
    (version,) = made["configs"]
    assert made["models"] == [version]
    model = boto3.client("sagemaker").describe_model(ModelName=version)
    assert model["PrimaryContainer"]["ModelDataUrl"] == f"s3://models/{made['files'][0]}"
    boto3.client("s3").download_file("models", made["files"][0], str(tmp_path / "model.tar.gz"))
    with tarfile.open(tmp_path / "model.tar.gz") as tar:
        tar.extractall(tmp_path / "model", filter="data")
    assert artifact.read(tmp_path / "model").digest == artifact.read(tiny_artifact).digest
    assert deployment.url.endswith("/endpoints/tiny/invocations")
    assert DeployModel(tiny_artifact, platform="sagemaker", **aws).deploy() == deployment
    assert left() == made
    deployment.delete()
    assert not any(left().values())
    deployment.delete()


def test_what_is_not_given_is_the_accounts_own(aws, tiny_artifact):
    deploy_model = DeployModel(tiny_artifact, platform="Amazon SageMaker")
    deployment = deploy_model.deploy()
    made = left("sagemaker-us-west-2-123456789012")
    assert made["endpoints"] == ["tiny"]
    model = boto3.client("sagemaker").describe_model(ModelName=made["models"][0])
    assert model["PrimaryContainer"]["Image"] == f"123456789012.dkr.ecr.us-west-2.amazonaws.com/lc-ray:{lc_ray.__version__}-sagemaker"
    assert model["ExecutionRoleArn"] == "arn:aws:iam::123456789012:role/lc-ray"
    assert model["PrimaryContainer"]["ModelDataUrl"] == f"s3://sagemaker-us-west-2-123456789012/{made['files'][0]}"
    assert deploy_model.plan()[1].name == "s3.create_bucket"
    assert DeployModel(tiny_artifact, platform="Amazon SageMaker").deploy() == deployment, "the bucket is there now"
    sagemaker.delete(artifact.read(tiny_artifact), sagemaker.Settings())
    assert not any(left("sagemaker-us-west-2-123456789012").values())


def test_a_version_is_deleted_from_the_bucket_that_it_is_in(aws, tiny_artifact, update_endpoint):
    DeployModel(tiny_artifact, "sagemaker", **aws).deploy()
    boto3.client("s3").create_bucket(Bucket="others", CreateBucketConfiguration={"LocationConstraint": "us-west-2"})
    DeployModel(tiny_artifact, "sagemaker", **aws | {"bucket": "others"}).deploy()
    assert not left()["files"]
    sagemaker.delete(artifact.read(tiny_artifact), sagemaker.Settings())
    assert not any(left("others").values())


@pytest.mark.parametrize("region", ["", None])
def test_no_region(aws, tiny_artifact, monkeypatch, region):
    monkeypatch.delenv("AWS_DEFAULT_REGION") if region is None else monkeypatch.setenv("AWS_DEFAULT_REGION", region)
    for call in (DeployModel(tiny_artifact, "sagemaker").plan, DeployModel(tiny_artifact, "sagemaker", **aws).deploy):
        with pytest.raises(DeployError, match=r"no region.*\n.*--set region="):
            call()


def test_no_account(tiny_artifact, monkeypatch):
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, "/nowhere")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setattr(boto3, "DEFAULT_SESSION", None)
    with pytest.raises(DeployError, match=r"locate credentials.*\n.*aws configure"):
        DeployModel(tiny_artifact, platform="sagemaker", region="eu-west-1").plan()


def test_a_new_version_takes_the_place_of_the_old(aws, tiny_artifact, update_endpoint):
    DeployModel(tiny_artifact, "sagemaker", **aws).deploy()
    before = left()
    DeployModel(tiny_artifact, "sagemaker", **aws, most=3, load=50).deploy()
    after = left()
    assert after["endpoints"] == before["endpoints"]
    assert update_endpoint["given"] == {"EndpointName": "tiny", "EndpointConfigName": after["configs"][0]}
    assert {len(after[kind]) for kind in ("configs", "models", "files", "scaled")} == {1}
    assert not set(after["configs"] + after["files"]) & set(before["configs"] + before["files"])
    assert (after["scaled"][0]["MinCapacity"], after["scaled"][0]["MaxCapacity"]) == (1, 3)
    (policy,) = boto3.client("application-autoscaling").describe_scaling_policies(ServiceNamespace="sagemaker")["ScalingPolicies"]
    assert policy["TargetTrackingScalingPolicyConfiguration"]["TargetValue"] == 50
    DeployModel(tiny_artifact, "sagemaker", **aws, most=4, load=50).deploy()
    assert update_endpoint["given"].get("RetainAllVariantProperties"), "not the least, whatever the load"
    DeployModel(tiny_artifact, "sagemaker", **aws, least=2, most=2).deploy()
    assert "RetainAllVariantProperties" not in update_endpoint["given"], "as many as are asked for"
    sagemaker.delete(artifact.read(tiny_artifact), sagemaker.Settings(**aws))
    assert not any(left().values())


def test_a_version_that_fails_leaves_the_old_one_and_nothing_else(aws, tiny_artifact, update_endpoint):
    DeployModel(tiny_artifact, "sagemaker", **aws).deploy()
    before = left()
    update_endpoint["fails"] = True
    with pytest.raises(DeployError, match="went back to the version before: the container did not answer"):
        DeployModel(tiny_artifact, "sagemaker", **aws | {"instance": "ml.c5.large"}).deploy()
    assert left() == before


def policies():
    kept = boto3.client("application-autoscaling").describe_scaling_policies(ServiceNamespace="sagemaker")["ScalingPolicies"]
    return [(policy["PolicyName"], policy["TargetTrackingScalingPolicyConfiguration"]["TargetValue"]) for policy in kept]


def test_autoscaling_is_as_before_a_version_that_fails(aws, tiny_artifact, update_endpoint):
    DeployModel(tiny_artifact, "sagemaker", **aws, most=3, load=50).deploy()
    update_endpoint["fails"] = True
    with pytest.raises(DeployError, match="went back"):
        DeployModel(tiny_artifact, "sagemaker", **aws, most=5, load=70).deploy()
    (target,) = left()["scaled"]
    assert (target["MinCapacity"], target["MaxCapacity"], policies()) == (1, 3, [("tiny-load", 50)])


def test_a_version_that_takes_too_long_is_left_to_sagemaker_and_finished_later(aws, moto_server, tiny_artifact, update_endpoint):
    DeployModel(tiny_artifact, "sagemaker", **aws).deploy()
    update_endpoint["status"] = "Updating"
    more = aws | {"most": 3, "timeout": 15}
    with pytest.raises(DeployError, match=r"tiny: .*SageMaker goes on: Updating\n  → give the same command again"):
        DeployModel(tiny_artifact, "sagemaker", **more).deploy()
    assert {kind: len(what) for kind, what in left().items()} == {"endpoints": 1, "configs": 2, "models": 2, "files": 2, "scaled": 0}
    with pytest.raises(DeployError, match="the endpoint is being changed: Updating"):
        DeployModel(tiny_artifact, "sagemaker", **more).deploy()
    (backend,) = (regions["us-west-2"] for regions in sagemaker_backends.values() if regions["us-west-2"].endpoints)
    backend.endpoints["tiny"].endpoint_status = "InService"
    DeployModel(tiny_artifact, "sagemaker", **more).deploy()
    assert {kind: len(what) for kind, what in left().items()} == {"endpoints": 1, "configs": 1, "models": 1, "files": 1, "scaled": 1}


def test_endpoints_whose_long_names_begin_alike_are_apart(aws, tiny_artifact):
    name = "customer-support-ticket-routing-in-production-eu-"
    for region in ("west-1", "west-2"):
        DeployModel(tiny_artifact, "sagemaker", **aws, endpoint=name + region).deploy()
    both = left()
    assert {len(both[kind]) for kind in ("endpoints", "configs", "models", "files")} == {2}
    assert max(map(len, both["configs"])) <= 63
    sagemaker.delete(artifact.read(tiny_artifact), sagemaker.Settings(**aws, endpoint=name + "west-1"))
    sagemaker.delete(artifact.read(tiny_artifact), sagemaker.Settings(**aws, endpoint=name + "west-2"))
    assert not any(left().values())


def test_an_endpoint_that_others_have_made_is_left_alone(aws, tiny_artifact):
    client = boto3.client("sagemaker")
    client.create_model(ModelName="theirs", ExecutionRoleArn=aws["role"], PrimaryContainer={"Image": aws["image"]})
    variant = {"VariantName": "main", "ModelName": "theirs", "InstanceType": "ml.c5.large", "InitialInstanceCount": 1}
    client.create_endpoint_config(EndpointConfigName="tiny-theirs", ProductionVariants=[variant])
    client.create_endpoint(EndpointName="tiny", EndpointConfigName="tiny-theirs")
    before = left()
    deploy = DeployModel(tiny_artifact, "sagemaker", **aws)
    with pytest.raises(DeployError, match=r"lc_ray has not made: it lacks the tag 'lc_ray'\n  → --set endpoint="):
        deploy.deploy()
    with pytest.raises(DeployError, match="lc_ray has not made"):
        sagemaker.delete(artifact.read(tiny_artifact), sagemaker.Settings(**aws))
    assert left() == before


def test_a_refused_first_deployment_leaves_nothing(aws, tiny_artifact):
    with pytest.raises(DeployError, match=r"tiny: CreateEndpointConfig: .*ml\.none"):  # which comes after the upload and the model
        DeployModel(tiny_artifact, "sagemaker", **aws | {"instance": "ml.none"}).deploy()
    assert not any(left().values())


def test_who_may_not_delete_is_told_what_went_wrong_first(aws, tiny_artifact, monkeypatch):
    def refused(**_):
        raise ClientError({"Error": {"Code": "AccessDeniedException", "Message": "not authorized"}}, "DeleteModel")

    monkeypatch.setattr(sagemaker._aws.client("sagemaker", None), "delete_model", refused, raising=False)
    with pytest.raises(DeployError, match=r"tiny: CreateEndpointConfig: .*ml\.none.*; and it can't be undone: DeleteModel: not authorized"):
        DeployModel(tiny_artifact, "sagemaker", **aws | {"instance": "ml.none"}).deploy()


@pytest.mark.parametrize("status", ["Creating", "Updating", "SystemUpdating", "RollingBack", "Deleting"])
def test_what_is_being_changed_is_left_as_it_is(aws, tiny_artifact, status):
    settings = sagemaker.Settings(**aws, most=3)
    sagemaker.deploy(artifact.read(tiny_artifact), settings)
    before = left()
    endpoint = sagemaker_backends["123456789012"]["us-west-2"].endpoints["tiny"]
    endpoint.endpoint_status = status
    for change in (sagemaker.deploy, sagemaker.delete):
        with pytest.raises(DeployError, match=f"tiny: the endpoint is being changed: {status}\n.*the same command again"):
            change(artifact.read(tiny_artifact), settings)
    assert left() == before, "its autoscaling too"


@pytest.mark.parametrize("status", ["OutOfService", "UpdateRollbackFailed"])
def test_what_will_not_change_by_itself_is_changed(aws, tiny_artifact, update_endpoint, status):
    DeployModel(tiny_artifact, "sagemaker", **aws).deploy()
    sagemaker_backends["123456789012"]["us-west-2"].endpoints["tiny"].endpoint_status = status
    DeployModel(tiny_artifact, "sagemaker", **aws, load=50).deploy()
    assert update_endpoint["given"]["EndpointConfigName"] == left()["configs"][0]


def test_why_a_first_deployment_failed_is_told(aws, tiny_artifact, monkeypatch):
    create = SageMakerResponse.create_endpoint

    def fails(self):
        answer = create(self)
        endpoint = sagemaker_backends[self.current_account][self.region].endpoints["tiny"]
        endpoint.endpoint_status, endpoint.failure_reason = "Failed", "the image is not in the registry"
        return answer

    monkeypatch.setattr(SageMakerResponse, "create_endpoint", fails)
    with pytest.raises(DeployError, match="tiny: the image is not in the registry"):
        DeployModel(tiny_artifact, "sagemaker", **aws).deploy()
    assert not any(left().values())


@pytest.mark.parametrize("method", ["create_endpoint_config", "create_endpoint"])
def test_what_a_deployment_that_was_cut_off_has_left_is_deleted(aws, tiny_artifact, monkeypatch, method):
    def interrupted(**_):
        raise KeyboardInterrupt

    deploy_model = DeployModel(tiny_artifact, "sagemaker", **aws)
    with monkeypatch.context() as patch:
        patch.setattr(sagemaker._aws.client("sagemaker", None), method, interrupted, raising=False)
        with pytest.raises(KeyboardInterrupt):
            deploy_model.deploy()
    assert left()["models"]
    sagemaker.delete(artifact.read(tiny_artifact), sagemaker.Settings(**aws))
    assert not any(left().values())


@pytest.mark.parametrize(
    ("settings", "kind", "key", "isolated"),
    [
        ({"mode": "serverless", "memory": 2048, "concurrency": 7}, "ServerlessConfig", {"MemorySizeInMB": 2048, "MaxConcurrency": 7}, False),
        ({"instance": "ml.p3.2xlarge", "least": 2, "most": 2}, "InstanceType", "ml.p3.2xlarge", True),
    ],
)
def test_what_it_runs_on(aws, tiny_artifact, settings, kind, key, isolated):
    deploy_model = DeployModel(tiny_artifact, "sagemaker", **aws | settings)
    (model,) = (call.arguments for call in deploy_model.plan() if call.name == "sagemaker.create_model")
    assert model["EnableNetworkIsolation"] is isolated
    deploy_model.deploy()
    about = boto3.client("sagemaker").describe_endpoint_config(EndpointConfigName=left()["configs"][0])
    assert about["ProductionVariants"][0][kind] == key


def test_an_asynchronous_endpoint_answers_by_s3(aws, moto_server, tiny_artifact):
    deployment = DeployModel(tiny_artifact, "sagemaker", **aws, mode="asynchronous", most=2).deploy()
    about = boto3.client("sagemaker").describe_endpoint_config(EndpointConfigName=left()["configs"][0])
    assert about["AsyncInferenceConfig"]["OutputConfig"]["S3OutputPath"].startswith("s3://models/lc_ray/tiny-")
    answers = [{"data": '{"predictions": [{"label": "good"}]}'}, {"data": "it broke", "is_failure": True}]
    httpx.post(f"{moto_server}/moto-api/static/sagemaker/async-endpoint-results", json={"region": "us-west-2", "results": answers})
    assert deployment.predict(["fine"]) == [{"label": "good"}]
    with pytest.raises(DeployError, match="tiny: it broke"):
        deployment.predict(["fine"])
    deployment.delete()
    assert not any(left().values())


def test_a_dry_run_prints_all_and_calls_nothing(aws, moto_server, tiny_artifact, capsys, monkeypatch):
    given = [f"--set={name}={value}" for name, value in {**aws, "most": 2, "region": "eu-west-1"}.items()]
    monkeypatch.setattr(sys, "argv", ["lc-ray", "deploy", str(tiny_artifact), "--platform", "sagemaker", "--dry-run", *given])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert not end.value.code
    told = capsys.readouterr().out
    scaling = ["register_scalable_target", "put_scaling_policy"]
    order = ["client", "upload_file", "create_model", "create_endpoint_config", "create_endpoint", "wait", *scaling]
    assert re.findall(r"(\w+)\(\{", told) == order
    assert aws["image"] in told
    assert "eu-west-1" in told
    assert '"EnableNetworkIsolation": true' in told
    assert not any(left().values())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"imag": "x"}, "did you mean 'image'"),
        ({"role": "me"}, "role: "),
        ({"memory": 4000}, "memory: "),
        ({"least": 3}, r"settings of sagemaker: least \(3\) is more than most"),
    ],
)
def test_settings_that_are_not_right(aws, tiny_artifact, settings, message):
    with pytest.raises(DeployError, match=message):
        DeployModel(tiny_artifact, "sagemaker", **settings and aws | settings)


def test_without_boto3_it_says_what_to_install(tiny_artifact, monkeypatch):
    monkeypatch.setitem(sys.modules, "boto3", None)
    sagemaker._aws.client.cache_clear()
    with pytest.raises(DeployError, match=r"pip install 'lc_ray\[sagemaker\]'"):
        _platform.needed("boto3", "sagemaker")


def test_the_tarball_is_the_same_wherever_it_is_made(tiny_artifact, tmp_path):
    found = artifact.read(tiny_artifact)
    (tmp_path / "a").mkdir()
    for file in (tmp_path / "1", tmp_path / "a" / "2"):
        _platform.tarball(found, file)
    assert (tmp_path / "1").read_bytes() == (tmp_path / "a" / "2").read_bytes()
    with tarfile.open(tmp_path / "1") as tar:
        assert sorted(tar.getnames()) == sorted([*found.manifest.files, "manifest.json"])
        assert {(m.mtime, m.uid, m.mode) for m in tar.getmembers()} == {(0, 0, 0o644)}


@pytest.mark.parametrize(("instance", "image"), [("ml.g5.xlarge", "al2023-ami-sagemaker-inference-gpu-4-1"), ("ml.c5.xlarge", None)])
def test_instances_with_gpus_have_the_driver_that_torch_needs(aws, tiny_artifact, instance, image):
    calls = DeployModel(tiny_artifact, "sagemaker", **aws, instance=instance).plan()
    (config,) = (call.arguments for call in calls if call.name == "sagemaker.create_endpoint_config")
    assert config["ProductionVariants"][0].get("InferenceAmiVersion") == image
    known = boto3.client("sagemaker").meta.service_model.shape_for("ProductionVariantInferenceAmiVersion").enum
    assert image in (*known, None)
