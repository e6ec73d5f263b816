"""The Open Inference Protocol over gRPC, spoken by Triton's own client to a real server in this process."""

import asyncio
import json
import threading

import grpc
import numpy as np
import pytest
from serving import KEY, LABELS
from tritonclient import grpc as triton
from tritonclient.grpc import service_pb2, service_pb2_grpc
from tritonclient.utils import InferenceServerException

from lc_ray.serve import auth
from lc_ray.serve.endpoint import Models, asgi
from lc_ray.serve.grpc import Operations
from lc_ray.serve.protocols._messages import MESSAGES, OPERATIONS, register
from lc_ray.serving import ServeSpec

HEADERS = {"authorization": f"Bearer {KEY}"}
TEXTS = ["good flight", "the worst day ever, so late. é"]


@pytest.fixture(scope="module")
def serve():
    """serve(models) → the address of a gRPC server of them."""
    loop = asyncio.new_event_loop()
    threading.Thread(target=loop.run_forever, daemon=True).start()
    running = []

    def call(work):
        return asyncio.run_coroutine_threadsafe(work, loop).result(30)

    async def start(models):
        operations, server = Operations(), grpc.aio.server(options=[("grpc.max_receive_message_length", -1)])
        operations.keys = {auth.digest(KEY): ""}
        operations.protocols = asgi(models, operations.keys)
        register(operations, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        running.append(server)
        return f"127.0.0.1:{port}"

    yield lambda models: call(start(models))
    for server in running:
        call(server.stop(None))
    loop.call_soon_threadsafe(loop.stop)


@pytest.fixture(scope="module")
def models(predictor, fused, endpoint):
    endpoints = [endpoint(predictor), endpoint(fused)]
    return Models(endpoints, endpoints[0].spec)


@pytest.fixture(scope="module")
def place(serve, models):
    return serve(models)


@pytest.fixture(scope="module")
def client(place):
    with triton.InferenceServerClient(place) as client:
        yield client


def tensor(name, values, kind):
    made = triton.InferInput(name, list(np.shape(values)), kind)
    made.set_data_from_numpy(np.array(values, object if kind == "BYTES" else triton.triton_to_np_dtype(kind)))
    return made


def infer(client, values=TEXTS, **options):
    return client.infer(**{"model_name": "tiny", "inputs": [tensor("text", values, "BYTES")], "headers": HEADERS} | options)


def close(result, expected):
    assert [label.decode() for label in result.as_numpy("label")] == [answer["label"] for answer in expected]
    odds = np.array([list(answer["probabilities"].values()) for answer in expected])
    np.testing.assert_allclose(result.as_numpy("probabilities"), odds, atol=1e-5)
    assert [json.loads(a)["label"] for a in result.as_numpy("answer")] == [answer["label"] for answer in expected]


def refused(call, code):
    with pytest.raises(InferenceServerException) as found:
        call()
    assert found.value.status() == f"StatusCode.{code}"
    return found.value.message()


def test_messages_are_tritons():
    """On the wire: the numbers, types and repetition of all fields, wherever the messages are nested."""

    def form(message):
        return [
            (one.name, one.number, one.type, one.is_repeated, bool(one.containing_oneof), form(one.message_type) if one.message_type else None)
            for one in message.fields
        ]

    for name in [f"{operation}{end}" for operation in OPERATIONS for end in ("Request", "Response")]:
        assert form(MESSAGES[name].DESCRIPTOR) == form(service_pb2.DESCRIPTOR.message_types_by_name[name])
    service = service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    assert [service.methods_by_name[name].input_type.name for name in OPERATIONS] == [f"{name}Request" for name in OPERATIONS]


def test_triton_finds_the_server_and_its_models(client, predictor):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.get_server_metadata(HEADERS).name == "lc_ray"
    assert client.is_model_ready("tiny", headers=HEADERS)
    assert client.is_model_ready("tiny", predictor.artifact.digest, HEADERS)
    assert not client.is_model_ready("large", headers=HEADERS)
    about = client.get_model_metadata("tiny", predictor.artifact.digest, HEADERS)
    assert about.versions == [predictor.artifact.digest]
    assert [(i.name, i.datatype, list(i.shape)) for i in about.inputs] == [("text", "BYTES", [-1])]
    assert [(o.name, o.datatype, list(o.shape)) for o in about.outputs] == [
        ("answer", "BYTES", [-1]),
        ("label", "BYTES", [-1]),
        ("probabilities", "FP64", [-1, 3]),
    ]


@pytest.mark.parametrize("column", [False, True])
def test_triton_is_told_what_the_predictor_says(client, predictor, column):
    result = infer(client, [[text] for text in TEXTS] if column else TEXTS, request_id="r-1")
    close(result, predictor.predict(TEXTS))
    found = result.get_response()
    assert (found.id, found.model_name, found.model_version) == ("r-1", "tiny", predictor.artifact.digest)
    assert json.loads(result.get_output("probabilities").parameters["labels"].string_param) == LABELS
    only = infer(client, outputs=[triton.InferRequestedOutput("label")])
    assert [output.name for output in only.get_response().outputs] == ["label"]


def test_triton_sends_files_and_numbers(client, fused, png, wav):
    rows = [{"text": t, "photo": png, "sound": wav, "price": p} for t, p in zip(TEXTS, (3.5, -1.0), strict=True)]
    columns = {"text": "BYTES", "photo": "BYTES", "sound": "BYTES", "price": "FP64"}
    inputs = [tensor(name, [row[name] for row in rows], kind) for name, kind in columns.items()]
    close(infer(client, model_name="fused", inputs=inputs), fused.predict(rows))


def test_contents_that_are_not_raw(place, fused, png):
    request = service_pb2.ModelInferRequest(model_name="fused")
    for name, kind, contents in (
        ("text", "BYTES", {"bytes_contents": [text.encode() for text in TEXTS]}),
        ("photo", "BYTES", {"bytes_contents": [png, png]}),
        ("price", "FP32", {"fp32_contents": [3.5, -1.0]}),
    ):
        request.inputs.add(name=name, datatype=kind, shape=[2], contents=contents)
    with grpc.insecure_channel(place) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        found = stub.ModelInfer(request, metadata=HEADERS.items())
        request.raw_input_contents.append(b"x")
        with pytest.raises(grpc.RpcError, match="one is needed for each input") as mistake:
            stub.ModelInfer(request, metadata=HEADERS.items())
    assert mistake.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    rows = [{"text": text, "photo": png, "price": price} for text, price in zip(TEXTS, (3.5, -1.0), strict=True)]
    close(triton.InferResult(found), fused.predict(rows))


def test_no_key_no_answer(client):
    for headers in (None, {"authorization": "Bearer guess"}):
        for call in (
            lambda headers=headers: infer(client, headers=headers),
            lambda headers=headers: client.get_server_metadata(headers),
            lambda headers=headers: client.is_model_ready("tiny", headers=headers),
        ):
            assert "a valid key is needed" in refused(call, "UNAUTHENTICATED")


@pytest.mark.parametrize("field", ["inputs", "outputs", "parameters"])
def test_messages_of_millions_of_empty_parts_take_no_room(place, monkeypatch, field):
    read = []
    monkeypatch.setitem(MESSAGES, "ModelInferRequest", type("Spy", (), {"FromString": staticmethod(spied(read, MESSAGES["ModelInferRequest"]))}))
    number = service_pb2.ModelInferRequest.DESCRIPTOR.fields_by_name[field].number
    message = bytes([number << 3 | 2, 0]) * 2**16
    with grpc.insecure_channel(place) as channel:
        call = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        for metadata, code, told in (((), "UNAUTHENTICATED", "a valid key"), (HEADERS.items(), "INVALID_ARGUMENT", f"{field}: a call may have 1000")):
            with pytest.raises(grpc.RpcError, match=told) as found:
                call(message, metadata=metadata)
            assert found.value.code().name == code
    assert read == [b"", message]  # a stranger's is not even read


def spied(read, message):
    return lambda content: read.append(content) or message.FromString(content)


def test_mistakes(client, place, models):
    assert "tiny, fused" in refused(lambda: infer(client, model_name="large"), "NOT_FOUND")
    assert "no version" in refused(lambda: infer(client, model_version="0"), "NOT_FOUND")
    assert "no model 'tiny/ready'" in refused(lambda: client.get_model_metadata("tiny/ready", headers=HEADERS), "NOT_FOUND")
    assert "no model 'tiny'" in refused(lambda: client.get_model_metadata("tiny", "..", HEADERS), "NOT_FOUND")
    refused(lambda: client.is_model_ready("tiny", "..", HEADERS), "NOT_FOUND")
    refused(lambda: client.get_model_metadata("..", headers=HEADERS), "NOT_FOUND")
    for name in ("?#", "é %2F", "..", "x" * 70_000):
        refused(lambda name=name: infer(client, model_name=name), "NOT_FOUND")
    assert "inputs.text.1: " in refused(lambda: infer(client, ["good", ""]), "INVALID_ARGUMENT")
    assert "expected text" in refused(lambda: infer(client, inputs=[tensor("x", ["a"], "BYTES")]), "INVALID_ARGUMENT")
    assert "no such output" in refused(lambda: infer(client, outputs=[triton.InferRequestedOutput("x")]), "INVALID_ARGUMENT")
    assert "may have 256" in refused(lambda: infer(client, ["a"] * 257), "INVALID_ARGUMENT")
    assert "bytes" in refused(lambda: infer(client, ["a" * models.spec.max_body]), "INVALID_ARGUMENT")
    with grpc.insecure_channel(place) as channel, pytest.raises(grpc.RpcError, match="not a ModelInferRequest") as found:
        channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")(b"\xff\xff", metadata=HEADERS.items())
    assert found.value.code() == grpc.StatusCode.INVALID_ARGUMENT


def test_limits(serve, predictor, endpoint):
    served = endpoint(predictor)
    with triton.InferenceServerClient(serve(Models([served], ServeSpec(rate={"requests": 1})))) as client:
        infer(client)
        assert "1 requests in 60 s" in refused(lambda: infer(client), "RESOURCE_EXHAUSTED")
    with triton.InferenceServerClient(serve(Models([served], ServeSpec(timeout="1ms")))) as client:
        assert "not answered within 0.001 s" in refused(lambda: infer(client), "DEADLINE_EXCEEDED")


def test_a_model_that_has_died(serve, predictor, endpoint):
    dead = endpoint(predictor, queue=1)
    dead.close()
    dead.worker._thread.join()
    with triton.InferenceServerClient(serve(Models([dead], dead.spec))) as client:
        assert client.is_server_live()
        assert not client.is_server_ready()
        assert not client.is_model_ready("tiny", headers=HEADERS)


def test_there_is_no_tls_for_grpc():
    with pytest.raises(ValueError, match="no TLS for gRPC"):
        ServeSpec(grpc_port=9000, tls={"certificate": "a", "key": "b"})
