"""A stand-in for Vertex AI's control plane and Google's storage, as far as Google's own clients call them for a deployment.

It keeps what it is told and answers with operations that are finished. Requests for predictions go on to `containers`, by deployed model's name.
"""

import json
import re
from urllib.parse import unquote

import httpx
from starlette.applications import Starlette
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

PLACE = "projects/demo/locations/europe-west4"


class VertexAI:
    def __init__(self):
        self.models, self.endpoints, self.files, self.containers, self.refuse, self._count = {}, {}, {}, {}, set(), 0
        self.app = Starlette(routes=[Route("/{path:path}", self.answer, methods=["GET", "POST", "PATCH", "DELETE"])])

    async def answer(self, request):
        try:
            return await self.answered(request)
        except Exception as error:  # a 500 would be asked again for minutes
            return JSONResponse({"error": {"code": 400, "message": repr(error), "status": "FAILED_PRECONDITION"}}, 400)

    async def answered(self, request):
        path, body = unquote(request.url.path).lstrip("/"), await request.body()
        if "storage/v1/" in path:
            return self.storage(request, path, body)
        path, _, verb = path.removeprefix("v1/").partition(":")
        told = json.loads(body) if body else {}
        if verb in self.refuse:
            return JSONResponse({"error": {"code": 400, "message": f"no {verb} today", "status": "FAILED_PRECONDITION"}}, 400)
        kind, _, one = path.removeprefix(f"{PLACE}/").partition("/")
        kept = {"models": self.models, "endpoints": self.endpoints}[kind]
        if request.method == "POST" and not one:
            return self.make(kind, kept, told.get("model", told))
        if not one:
            name = re.fullmatch(r'display_name="(.*)"', request.query_params["filter"])[1]
            return JSONResponse({kind: [about for about in kept.values() if about["displayName"] == name]})
        if request.method == "GET":
            return JSONResponse(kept[path])
        if request.method == "DELETE":
            assert not kept[path].get("deployedModels"), "Vertex AI deletes no endpoint with models"
            del kept[path]
            return self.done({"@type": "type.googleapis.com/google.protobuf.Empty"})
        if request.method == "PATCH":
            kept[path] |= {"trafficSplit": told["trafficSplit"]}
            return JSONResponse(kept[path])
        return await getattr(self, verb)(kept[path], told)

    def make(self, kind, kept, told):
        self._count += 1
        name = f"{PLACE}/{kind}/{self._count}"
        kept[name] = told | {"name": name, "createTime": "2026-01-01T00:00:00Z"}
        if kind == "models":
            kept[name]["supportedDeploymentResourcesTypes"] = ["DEDICATED_RESOURCES"]
        answers = {
            "models": {"@type": "type.googleapis.com/google.cloud.aiplatform.v1.UploadModelResponse", "model": name},
            "endpoints": {"@type": "type.googleapis.com/google.cloud.aiplatform.v1.Endpoint", **kept[name]},
        }
        return self.done(answers[kind])

    async def deployModel(self, endpoint, told):
        self._count += 1
        deployed = told["deployedModel"] | {"id": str(self._count)}
        endpoint.setdefault("deployedModels", []).append(deployed)
        endpoint["trafficSplit"] = self.split({deployed["id"] if one == "0" else one: part for one, part in told["trafficSplit"].items()})
        return self.done({"@type": "type.googleapis.com/google.cloud.aiplatform.v1.DeployModelResponse", "deployedModel": deployed})

    async def undeployModel(self, endpoint, told):
        gone = told["deployedModelId"]
        endpoint["deployedModels"] = [one for one in endpoint["deployedModels"] if one["id"] != gone]
        endpoint["trafficSplit"] = told.get("trafficSplit", {}) and self.split(told["trafficSplit"])
        return self.done({"@type": "type.googleapis.com/google.cloud.aiplatform.v1.UndeployModelResponse"})

    async def predict(self, endpoint, told):
        (deployed,) = endpoint["deployedModels"]
        route = self.models[deployed["model"]]["containerSpec"]["predictRoute"]
        async with httpx.AsyncClient() as client:
            answer = await client.post(self.containers[deployed["displayName"]] + route, json=told)
        if answer.status_code != 200:
            return JSONResponse({"error": {"code": answer.status_code, "message": answer.text, "status": "INVALID_ARGUMENT"}}, answer.status_code)
        return JSONResponse(answer.json() | {"deployedModelId": deployed["id"], "model": deployed["model"]})

    def storage(self, request, path, body):
        at, _, name = path.partition("storage/v1/b/")[2].partition("/o")
        key = at, name.removeprefix("/")
        if request.method == "POST":
            about, content = multipart(request.headers["content-type"], body)
            self.files[at, json.loads(about)["name"]] = content
            return JSONResponse({"name": json.loads(about)["name"]})
        if request.method == "DELETE":
            del self.files[key]
            return Response(status_code=204)
        prefix = request.query_params.get("prefix", "")
        return JSONResponse({"items": [{"name": name, "bucket": there} for there, name in self.files if there == at and name.startswith(prefix)]})

    @staticmethod
    def split(parts):
        assert sum(parts.values()) == 100, parts
        return parts

    @staticmethod
    def done(answer):
        return JSONResponse({"name": f"{PLACE}/operations/1", "done": True, "response": answer})


def multipart(kind, body):
    """The two parts that Google's client uploads: JSON about a file, and the file."""
    mark = b"--" + re.search(r"boundary=\"?([^\";]+)", kind)[1].encode()
    _, *parts, _ = body.split(mark)
    return [part.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n") for part in parts]
