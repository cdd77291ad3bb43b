"""Ray Serve's own schema of an application file, made strict: Serve itself silently ignores unknown fields, and so a
misspelt one."""

from pydantic import ConfigDict
from ray.serve.schema import HTTPOptionsSchema, ServeApplicationSchema, ServeDeploySchema


class Application(ServeApplicationSchema):
    model_config = ConfigDict(extra="forbid")


class HTTPOptions(HTTPOptionsSchema):
    model_config = ConfigDict(extra="forbid")


class ServeFile(ServeDeploySchema):
    model_config = ConfigDict(extra="forbid")

    applications: list[Application]
    http_options: HTTPOptions = HTTPOptions()
