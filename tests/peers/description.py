"""Holds the OpenAPI document of a master against OpenAPI, and against what the master does."""

import argparse
import http.client
import json
import socket
from urllib.parse import quote, urlsplit

from jsonschema.validators import validator_for
from openapi_schema_validator import OAS31Validator
from openapi_spec_validator import OpenAPIV31SpecValidator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012
from roles import say

TIMEOUT = 40
METHODS = ["GET", "PUT", "POST", "DELETE", "PATCH", "TRACE"]
CORS = [f"access-control-allow-{name}" for name in ("origin", "methods", "headers")]
NO_INSTANCE = "00000000"


class Document:
    """The document, and what is looked up in it."""

    def __init__(self, value):
        self.value = value
        # Nothing but what is documented may come, though clients have to be ready for more.
        strict = json.loads(json.dumps(value))
        for schema in strict["components"]["schemas"].values():
            if "properties" in schema:
                schema["additionalProperties"] = False
        resource = Resource.from_contents(strict, default_specification=DRAFT202012)
        self.registry = Registry().with_resource("urn:document", resource)

    def operations(self):
        """Path, method and operation, each with its parameters."""
        for path, item in self.value["paths"].items():
            for method, operation in item.items():
                if method != "parameters":
                    yield path, method.upper(), operation

    def look_up(self, value):
        """What a reference stands for."""
        while "$ref" in value:
            found = self.value
            for step in value["$ref"].removeprefix("#/").split("/"):
                found = found[step]
            value = found
        return value

    def check(self, schema, value, what):
        """That a value is as a schema of this document says."""
        if "$ref" in schema:
            schema = {"$ref": "urn:document" + schema["$ref"]}
        else:
            schema = json.loads(json.dumps(schema).replace('"#/', '"urn:document#/'))
        validator = OAS31Validator(
            schema, registry=self.registry, format_checker=OAS31Validator.FORMAT_CHECKER
        )
        problems = [f"{each.json_path}: {each.message}" for each in validator.iter_errors(value)]
        assert not problems, (what, problems, value)


class Api:
    """A master that runs."""

    def __init__(self, url, key):
        self.parts = urlsplit(url)
        self.key = key

    def open(self, method, path, body=None, is_known=True):
        """The answer to a request, whose body is still to be read."""
        connection = http.client.HTTPConnection(self.parts.netloc, timeout=TIMEOUT)
        headers = {"X-API-Key": self.key} if is_known else {}
        if body is not None:
            headers["Content-Type"] = "application/json"
            body = json.dumps(body)
        connection.request(method, self.parts.path + path, body, headers)
        return connection.getresponse()

    def ask(self, method, path, body=None, is_known=True):
        """A whole answer: status, head, body."""
        response = self.open(method, path, body, is_known)
        head = {name.lower(): value for name, value in response.getheaders()}
        missing = [name for name in CORS if name not in head]
        assert not missing, (method, path, missing)
        return response.status, head, response.read()


def examples_of(content):
    """The examples of a body."""
    if "example" in content:
        return [content["example"]]
    return [example["value"] for example in content.get("examples", {}).values()]


def events_of(text):
    """The data of the events of a stream, or of the beginning of one."""
    whole = text[: text.rfind("\n\n") + 2]
    lines = [line for line in whole.split("\n") if line.startswith("data: ")]
    return [json.loads(line.removeprefix("data: ")) for line in lines]


def check_examples(document):
    """That all examples are as their schemas say; the count of them."""
    count = 0

    def visit(value, what):
        nonlocal count
        if isinstance(value, list):
            for index, each in enumerate(value):
                visit(each, f"{what}[{index}]")
        if not isinstance(value, dict):
            return
        if "schema" in value:
            for example in examples_of(value):
                count += 1
                document.check(value["schema"], example, what)
                if what.endswith("text/event-stream"):
                    events = events_of(example)
                    assert events, example
                    for event in events:
                        document.check({"$ref": "#/components/schemas/Event"}, event, what)
        for name, each in value.items():
            if name not in ("example", "examples"):
                visit(each, f"{what}/{name}")

    visit(document.value, "#")
    return count


class Visit:
    """One master and its document."""

    def __init__(self, document, api):
        self.document = document
        self.api = api
        self.asked = set()

    def ask(self, path, method, target, body=None, is_known=True):
        """Asks what an operation answers, which has to be documented; status and body."""
        operation = self.document.value["paths"][path][method.lower()]
        what = f"{method} {target} {body}"
        status, head, data = self.api.ask(method, target, body, is_known)
        self.asked.add((path, method))
        assert str(status) in operation["responses"], (what, status, data)
        response = self.document.look_up(operation["responses"][str(status)])
        if "content" not in response:
            assert not data, (what, data)
            return status, None
        media_type = head["content-type"].split(";")[0]
        assert media_type in response["content"], (what, head)
        schema = response["content"][media_type]["schema"]
        is_json = media_type == "application/json"
        value = json.loads(data) if is_json else data.decode()
        self.document.check(schema, value, what)
        return status, value

    def expect(self, status, *request, **more):
        """The same with a certain outcome; the body."""
        seen, value = self.ask(*request, **more)
        assert seen == status, (request, more, seen, value)
        return value

    def bodies(self, path, method):
        """What the document gives as examples to send."""
        operation = self.document.value["paths"][path][method.lower()]
        return examples_of(operation["requestBody"]["content"]["application/json"])

    def use_instances(self):
        """Creates, looks at, changes and deletes some."""
        one = "/instances/{id}"
        ids = []
        for body in self.bodies("/instances", "POST"):
            instance = self.expect(201, "/instances", "POST", "/instances", body)
            assert instance["alias"] == body.get("alias", ""), instance
            ids.append(instance["id"])
        listed = self.expect(200, "/instances", "GET", "/instances")
        assert [each["id"] for each in listed] == ["********", *ids], listed
        for instance_id in ["********", *ids]:
            instance = self.expect(200, one, "GET", f"/instances/{instance_id}")
            assert instance["id"] == instance_id, instance
        target = f"/instances/{ids[0]}"
        for body in self.bodies(one, "PATCH"):
            self.expect(200, one, "PATCH", target, body)
        instance = self.expect(200, one, "GET", target)
        named = next(body for body in self.bodies(one, "PATCH") if "meta" in body)
        assert (instance["alias"], instance["meta"]) == (named["alias"], named["meta"]), instance
        for body in self.bodies(one, "PUT"):
            self.expect(200, one, "PUT", target, body)
            self.expect(409, one, "PUT", target, body)
            self.expect(403, one, "PUT", "/instances/********", body)
        self.expect(400, one, "PATCH", target, {"action": "explode"})
        self.expect(400, "/instances", "POST", "/instances", {"url": "http://localhost"})
        missing = f"/instances/{NO_INSTANCE}"
        for method in ("GET", "PATCH", "PUT", "DELETE"):
            body = {"PATCH": {"alias": "web"}, "PUT": {"url": "server://:1/:2"}}.get(method)
            self.expect(404, one, method, missing, body)
        self.expect(403, one, "DELETE", "/instances/********")
        for instance_id in ids:
            self.expect(204, one, "DELETE", f"/instances/{instance_id}")
        assert len(self.expect(200, "/instances", "GET", "/instances")) == 1

    def use_the_rest(self):
        """Asks for all that is not about instances."""
        self.expect(200, "/info", "GET", "/info")
        for body in self.bodies("/info", "POST"):
            info = self.expect(200, "/info", "POST", "/info", body)
            assert info["alias"] == body["alias"], info
        parameter = self.document.value["paths"]["/tcping"]["get"]["parameters"][0]
        for target in examples_of(parameter):
            result = self.expect(200, "/tcping", "GET", f"/tcping?target={quote(target)}")
            assert result["target"] == target, result
        self.expect(400, "/tcping", "GET", "/tcping")
        for path in ("/openapi.json", "/docs"):
            self.expect(200, path, "GET", path, is_known=False)

    def use_events(self):
        """Reads the stream until it has told of the key."""
        response = self.api.open("GET", "/events")
        assert response.status == 200, response.status
        assert response.headers["Content-Type"] == "text/event-stream"
        text = ""
        while not events_of(text):
            line = response.readline()
            assert line, text
            text += line.decode()
        for event in events_of(text):
            self.document.check({"$ref": "#/components/schemas/Event"}, event, "/events")
        self.asked.add(("/events", "GET"))

    def check_methods(self):
        """Keys are asked for where the document says so, and no other methods are known."""
        for path, method, operation in self.document.operations():
            target = path.replace("{id}", NO_INSTANCE)
            if operation.get("security") != []:
                self.expect(401, path, method, target, is_known=False)
        for path, item in self.document.value["paths"].items():
            target = path.replace("{id}", "********")
            known = {method.upper() for method in item if method != "parameters"}
            for method in METHODS:
                if method in known:
                    continue
                status, head, _ = self.api.ask(method, target)
                assert status == 405, (method, target, status)
                allowed = {each.strip() for each in head["allow"].split(",")}
                more = {"HEAD", "OPTIONS"} if "GET" in known else {"OPTIONS"}
                assert allowed == known | more, (method, target, allowed)
            status, _, body = self.api.ask("OPTIONS", target, is_known=False)
            assert (status, body) == (200, b""), (target, status, body)
            if "GET" in known:
                expected, found = (self.api.open(method, target) for method in ("GET", "HEAD"))
                assert found.status == expected.status, (target, found.status)
                types = [response.headers["Content-Type"] for response in (expected, found)]
                assert types[0] == types[1], (target, types)
                assert not found.read(), target
                expected.close()


    def check_refusals(self):
        """What is refused before it is looked at is documented as well."""
        host, port = self.api.parts.netloc.split(":")
        start = f"POST {self.api.parts.path}/info HTTP/1.1\r\nHost: {host}\r\n"
        start += f"X-API-Key: {self.api.key}\r\n"
        operation = self.document.value["paths"]["/info"]["post"]
        for status, request in {
            400: start + "Content-Length: x\r\n\r\n",
            413: start + "Content-Length: 65537\r\n\r\n",
            417: start + "Expect: more\r\n\r\n",
            431: start + f"Cookie: {'x' * 17000}\r\n\r\n",
            501: start + "Transfer-Encoding: gzip\r\n\r\n",
            505: start.replace("1.1", "2.0") + "\r\n",
        }.items():
            with socket.create_connection((host, int(port)), TIMEOUT) as connection:
                connection.sendall(request.encode())
                response = http.client.HTTPResponse(connection)
                response.begin()
                assert response.status == status, (request, response.status)
                documented = self.document.look_up(operation["responses"][str(status)])
                assert response.headers["Content-Type"] in documented["content"], request
                schema = documented["content"]["application/json"]["schema"]
                self.document.check(schema, json.loads(response.read()), request)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--url", required=True, help="of the API, such as http://host/api/v1")
    parser.add_argument("--key", required=True)
    options = parser.parse_args()
    api = Api(options.url, options.key)
    status, head, body = api.ask("GET", "/openapi.json", is_known=False)
    assert (status, head["content-type"]) == (200, "application/json"), (status, head)
    value = json.loads(body)
    OpenAPIV31SpecValidator(value).validate()
    document = Document(value)
    for name, schema in value["components"]["schemas"].items():
        validator_for(schema, default=OAS31Validator).check_schema(schema)
        assert schema.get("description"), f"{name} is not described"
    say("valid", examples=check_examples(document))

    assert [api.parts.path] == [server["url"] for server in value["servers"]]
    visit = Visit(document, api)
    visit.use_instances()
    visit.use_the_rest()
    visit.use_events()
    operations = {(path, method) for path, method, _ in document.operations()}
    assert visit.asked == operations, operations - visit.asked
    say("answered", operations=len(operations))
    visit.check_methods()
    visit.check_refusals()
    say("done")


main()
