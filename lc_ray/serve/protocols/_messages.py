"""Messages of the Open Inference Protocol over gRPC. Ray Serve's own processes import this file, so it imports nothing heavy.

They are built here rather than generated: generated ones lie in protobuf's default pool, where those of Triton's client in the same process
have the same names. On the wire a message is its fields' numbers, here counted from 1, wherever it is nested and whatever it is called.
"""

from __future__ import annotations

from typing import Any

import grpc
from google.protobuf.descriptor_pb2 import FieldDescriptorProto, FileDescriptorProto
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass

SERVICE = "inference.GRPCInferenceService"
OPERATIONS = ("ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelInfer")
_CHOICE = "InferParameter"  # the one message that has but one of its fields
_FIELDS = {  # `*` marks those that may be there several times
    "ServerLiveRequest": "",
    "ServerLiveResponse": "bool live",
    "ServerReadyRequest": "",
    "ServerReadyResponse": "bool ready",
    "ModelReadyRequest": "string name, string version",
    "ModelReadyResponse": "bool ready",
    "ServerMetadataRequest": "",
    "ServerMetadataResponse": "string name, string version, string* extensions",
    "ModelMetadataRequest": "string name, string version",
    "TensorMetadata": "string name, string datatype, int64* shape",
    "ModelMetadataResponse": "string name, string* versions, string platform, TensorMetadata* inputs, TensorMetadata* outputs",
    "InferParameter": "bool bool_param, int64 int64_param, string string_param, double double_param, uint64 uint64_param",
    "ParametersEntry": "string key, InferParameter value",
    "InferTensorContents": (
        "bool* bool_contents, int32* int_contents, int64* int64_contents, uint32* uint_contents, uint64* uint64_contents, "
        "float* fp32_contents, double* fp64_contents, bytes* bytes_contents"
    ),
    "InferInputTensor": "string name, string datatype, int64* shape, ParametersEntry* parameters, InferTensorContents contents",
    "InferRequestedOutputTensor": "string name, ParametersEntry* parameters",
    "ModelInferRequest": (
        "string model_name, string model_version, string id, ParametersEntry* parameters, InferInputTensor* inputs, "
        "InferRequestedOutputTensor* outputs, bytes* raw_input_contents"
    ),
    "InferOutputTensor": "string name, string datatype, int64* shape, ParametersEntry* parameters, InferTensorContents contents",
    "ModelInferResponse": (
        "string model_name, string model_version, string id, ParametersEntry* parameters, InferOutputTensor* outputs, bytes* raw_output_contents"
    ),
}


def _built() -> dict[str, Any]:
    """A class per message."""
    file = FileDescriptorProto(name="lc_ray/open_inference.proto", package="inference", syntax="proto3")
    for name, fields in _FIELDS.items():
        message = file.message_type.add(name=name)
        if name == _CHOICE:
            message.oneof_decl.add(name="parameter_choice")
        for number, field in enumerate(filter(None, fields.split(", ")), 1):
            kind, title = field.split()
            one = message.field.add(name=title, number=number)
            one.label = FieldDescriptorProto.LABEL_REPEATED if kind.endswith("*") else FieldDescriptorProto.LABEL_OPTIONAL
            kind = kind.removesuffix("*")
            if kind in _FIELDS:
                one.type, one.type_name = FieldDescriptorProto.TYPE_MESSAGE, f".inference.{kind}"
            else:
                one.type = FieldDescriptorProto.Type.Value(f"TYPE_{kind.upper()}")
            if name == _CHOICE:
                one.oneof_index = 0
    pool = DescriptorPool()
    pool.Add(file)
    return {name: GetMessageClass(pool.FindMessageTypeByName(f"inference.{name}")) for name in _FIELDS}


MESSAGES = _built()


def register(operations: Any, server: Any) -> None:
    """Have a gRPC server answer the protocol's operations; Ray Serve is given the name of this function.

    Args:
        operations: with a method for each, which is given the request's bytes and the call's context, and answers a message.
        server: of grpc, or Ray Serve's, which calls its replicas' methods of these names instead.
    """
    handlers = {
        # Requests stay bytes, as Serve passes them on between processes.
        name: grpc.unary_unary_rpc_method_handler(getattr(operations, name), response_serializer=MESSAGES[f"{name}Response"].SerializeToString)
        for name in OPERATIONS
    }
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
