"""Application files: what is in them, how wrong ones are refused, and that Serve can build and run what they name."""

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import httpx
import openai
import pytest
import ray
import yaml
from ray import serve
from ray.serve._private.build_app import BuiltApplication, build_app
from ray.serve.schema import ApplicationStatus, ServeDeploySchema

from small_run import train_small
from voicechat_platform.errors import InputError
from voicechat_platform.paths import file_address
from voicechat_platform.registry import Registry, Version
from voicechat_platform.settings import settings
from voicechat_serve import application, listed_models
from voicechat_serve.api.access import AccessRules
from voicechat_serve.application_file import (
    APIArguments,
    ChampionEngines,
    FrontArguments,
    ModelEntry,
    Replicas,
    local_application,
    read_application,
)
from voicechat_serve.generation.introduction import Introduction
from voicechat_serve.generation.served_model import Remote
from voicechat_serve.listed_models import model_path, served_models
from voicechat_serve.operations.keys import create_key

ROOT = Path(__file__).parents[2]
LOCAL, GPU = ROOT / "serve" / "applications" / "local.yaml", ROOT / "serve" / "applications" / "gpu.yaml"
RAY_SERVICE = ROOT / "serve" / "kubernetes" / "rayservice.yaml"

FILE = """\
applications:
  - name: api
    route_prefix: /v1
    import_path: voicechat_serve.application:api
"""


def refusal(tmp_path: Path, text: str) -> str:
    path = tmp_path / "a.yaml"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_application(path)
    return str(caught.value).replace(f"{tmp_path}/", "")


def ray_service() -> dict:
    (found,) = (part for part in yaml.safe_load_all(RAY_SERVICE.read_text()) if part["kind"] == "RayService")
    return found["spec"]


def ray_pods() -> list[dict]:
    cluster = ray_service()["rayClusterConfig"]
    return [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]


class TestTheFilesThatAreHere:
    @pytest.mark.parametrize("file", [LOCAL, GPU], ids=lambda file: file.stem)
    def test_serve_takes_it_and_so_do_we(self, file):
        ServeDeploySchema.model_validate(yaml.safe_load(file.read_text()))
        read = read_application(file)
        assert [(one.name, one.route_prefix) for one in read.serve.applications] == [("api", "/v1"), ("front", "/")]
        for one in read.serve.applications:
            assert one.import_path == f"voicechat_serve.application:{one.name}"
            assert callable(getattr(application, one.name))

    def test_the_local_one_is_what_voicechat_serve_reads(self):
        assert local_application() == LOCAL
        assert read_application(LOCAL).serve.http_options.host == "127.0.0.1"

    def test_the_one_for_gpus_asks_for_gpus_and_shrinks(self):
        arguments = read_application(GPU).api
        assert arguments.champions
        assert (arguments.champions.num_gpus, arguments.champions.max_replicas) == (0.25, 8)
        assert [(model.id, model.min_replicas, model.num_gpus) for model in arguments.models] == [
            ("smollm2-135m-instruct", 0, 0.25)
        ]


def checkpoint_with_adapter(folder):
    (folder / "adapter").mkdir(parents=True)
    (folder / "adapter" / "adapter_config.json").write_text("{}")
    (folder / "config.json").write_text("{}")
    return folder


def test_an_adapter_is_served_with_its_base(tmp_path, monkeypatch):
    """A champion of a listed GGUF model, and what the file lists; other champions have replicas of their own."""

    def version(name, base):
        source = file_address(checkpoint_with_adapter(tmp_path / name))
        return Version(name, 1, source, True, "", "", 1, 1.0, base=base)

    champions = [version("bard", "smollm2-135m-instruct"), version("other", "elsewhere"), version("whole", "")]
    monkeypatch.setattr(listed_models, "Registry", lambda: SimpleNamespace(champions=lambda: champions))
    monkeypatch.setattr(listed_models, "introduce_version", lambda version, words: Introduction(title=version.name))
    listed = {"clerk": str(tmp_path / "bard" / "adapter"), "judge": str(tmp_path / "whole")}
    entry = {"id": "small", "source": "smollm2-135m-instruct", "adapters": listed}
    arguments = APIArguments.model_validate({"models": [entry]})
    served = [model for model, _ in served_models(arguments)]
    built = build_app(application.api_application(served_models(arguments), arguments, AccessRules()), name="api")
    names = {deployment.name for deployment in built.deployments}
    assert {name for name in names if name.startswith("model ")} == {"model other", "model whole", "model small"}
    assert "champions" in names
    assert [model.id for model in served] == ["other", "whole", "small"]
    assert [(model.id, model.version, model.base) for model in served[2].adapters] == [
        ("clerk", None, ""),
        ("judge", None, ""),
        ("bard", 1, "smollm2-135m-instruct"),
    ]
    torch = APIArguments.model_validate({"models": [entry | {"adapters": {}, "engine": "torch"}]})
    assert [(model.id, model.adapters) for model, _ in served_models(torch)] == [
        *((name, ()) for name in ("bard", "other", "whole", "small")),
    ]
    (tmp_path / "empty").mkdir()
    wrong = APIArguments.model_validate({"models": [entry | {"adapters": {"clerk": str(tmp_path / "empty")}}]})
    with pytest.raises(InputError, match="empty holds no adapter: neither"):
        served_models(wrong)


class TestKubernetes:
    def test_it_serves_what_the_file_for_gpus_does(self, tmp_path):
        config = ray_service()["serveConfigV2"]
        assert yaml.safe_load(config) == yaml.safe_load(GPU.read_text())
        ServeDeploySchema.model_validate(yaml.safe_load(config))
        (tmp_path / "config.yaml").write_text(config)
        assert read_application(tmp_path / "config.yaml").api == read_application(GPU).api

    def test_every_ray_container_closes_serves_proxy_and_knows_the_same_home_and_keys(self):
        mounts = []
        for pod in ray_pods():
            (container,) = pod["containers"]
            environment = {variable["name"]: variable.get("value") for variable in container["env"]}
            assert environment["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"] == "voicechat_serve.api.proxy:middlewares"
            paths = {mount["name"]: Path(mount["mountPath"]) for mount in container["volumeMounts"]}
            assert Path(environment["VOICECHAT_HOME"]) == paths["home"]
            assert Path(environment["VOICECHAT_KEYS"]).parent == paths["keys"]
            assert not any("subPath" in mount for mount in container["volumeMounts"])
            assert {volume["name"] for volume in pod["volumes"]} == set(paths)
            mounts.append((container["image"], container["env"], container["volumeMounts"], pod["volumes"]))
        assert mounts[0] == mounts[1]

    def test_it_asks_for_rays_token_and_leaves_kuberays_probes(self):
        service = ray_service()
        assert service["rayClusterConfig"]["authOptions"] == {"mode": "token"}
        assert service["excludeHeadPodFromServeSvc"] is True
        for pod in ray_pods():
            assert not {"livenessProbe", "readinessProbe"} & set(pod["containers"][0])

    def test_a_worker_may_end_what_it_has_begun(self):
        worker = ray_pods()[1]
        ((command, seconds),) = (worker["containers"][0]["lifecycle"]["preStop"]["exec"]["command"],)
        assert command == "sleep"
        assert int(seconds) < worker["terminationGracePeriodSeconds"]

    def test_the_least_that_is_asked_for_fits_on_one_worker(self):
        limits = ray_pods()[1]["containers"][0]["resources"]["limits"]
        arguments = read_application(GPU).api
        assert arguments.champions
        parts = [arguments.champions, arguments.champions, *arguments.models]
        parts += [arguments.transcription, arguments.synthesis, arguments.ingress]
        assert sum(part.num_cpus * max(1, part.min_replicas) for part in parts) < float(limits["cpu"])
        assert sum(part.num_gpus * max(1, part.min_replicas) for part in parts) <= limits["nvidia.com/gpu"]

    def test_the_image_and_the_file_name_the_ray_that_is_pinned(self):
        pins = (ROOT / "requirements" / "base.txt").read_text().splitlines()
        (version,) = (pin.removeprefix("ray==") for pin in pins if pin.startswith("ray=="))
        assert ray_service()["rayClusterConfig"]["rayVersion"] == version
        assert f"FROM rayproject/ray:{version}-py311" in (RAY_SERVICE.parent / "Dockerfile").read_text()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ("      wisper: base", "a.yaml:6: applications.0.args.wisper: unknown field; did you mean whisper?"),
        (
            "      whisper: larg",
            "a.yaml:6: applications.0.args.whisper: 'larg' is no folder and no OWNER/NAME of a hub",
        ),
        ("      transcription: {device: gpu}", "a.yaml:6: applications.0.args.transcription.device: Input should be"),
        (
            "      transcription: {compute_type: int4}",
            "a.yaml:6: applications.0.args.transcription.compute_type: Input should be 'auto', 'int8'",
        ),
        (
            "      champions:\n        num_gpu: 1",
            "a.yaml:7: applications.0.args.champions.num_gpu: unknown field; did you mean num_gpus? Allowed: num_cpus",
        ),
        ("      champions: {engine: llama}", "a.yaml:6: applications.0.args.champions.engine: Input should be 'auto'"),
        (
            "      ingress:\n        min_replicas: 3\n        max_replicas: 2",
            "a.yaml:6: applications.0.args.ingress: min_replicas 3 is more than max_replicas 2",
        ),
        ("      ingress: {max_replicas: 0}", "a.yaml:6: applications.0.args.ingress.max_replicas: Input should be"),
        (
            "      models:\n        - id: one\n        - idd: two",
            "a.yaml:8: applications.0.args.models.1.id: Field required\n"
            "a.yaml:8: applications.0.args.models.1.idd: unknown field; did you mean id? Allowed: num_cpus",
        ),
        (
            "      models:\n        - id: one\n        - id: two\n        - {id: one, source: other}",
            "a.yaml:6: applications.0.args.models: two models have the id 'one'",
        ),
        (
            "      models:\n        - id: one\n          adapters: {two: a}\n        - id: two",
            "a.yaml:6: applications.0.args.models: two models have the id 'two'",
        ),
        (
            "      models:\n        - id: one\n          adapters: {two@3: a}",
            "a.yaml:8: applications.0.args.models.0.adapters: 'two@3' has an @: choose another name",
        ),
        (
            "      models:\n        - id: shakespeare@3",
            "a.yaml:7: applications.0.args.models.0.id: 'shakespeare@3' has an @: choose another id, and put the model",
        ),
        (
            "      models:\n        - {id: a, engine: openai}",
            "a.yaml:7: applications.0.args.models.0: the engine openai needs `url`, the base URL of a server such as",
        ),
        (
            "      models:\n        - {id: a, engine: openai, url: 'localhost:11434'}",
            "a.yaml:7: applications.0.args.models.0.url: 'localhost:11434' is not the base URL of an API",
        ),
        (
            "      models:\n        - {id: a, engine: openai, url: 'http://me:secret@there/v1'}",
            "a.yaml:7: applications.0.args.models.0.url: a URL with an @ would show a password: put the key into",
        ),
        (
            "      models:\n        - {id: a, engine: openai, url: 'http://there/v1', key_env: sk-secret}",
            "a.yaml:7: applications.0.args.models.0.key_env: write the NAME of an environment variable",
        ),
        (
            "      models:\n        - {id: a, engine: openai, url: 'http://there/v1', source: b}",
            "a.yaml:7: applications.0.args.models.0: the engine openai has no `source`: the other server decides it",
        ),
        (
            "      models:\n        - {id: a, url: 'http://there/v1'}",
            "a.yaml:7: applications.0.args.models.0: `url` needs `engine: openai`",
        ),
        (
            "      champions: {engine: openai}",
            "a.yaml:6: applications.0.args.champions: champions are models of the registry, which the engine openai",
        ),
    ],
)
def test_wrong_arguments_are_told_with_file_line_and_field(tmp_path, args, message):
    told = refusal(tmp_path, f"{FILE}    args:\n{args}\n")
    assert told.startswith(message)
    assert "secret" not in told


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (FILE.replace("name: api", "name: app"), "a.yaml: there is no application named api; it has app"),
        ("proxy_location: HeadOnly\n", "a.yaml:1: applications: Field required"),
        (
            f"{FILE}    deployments:\n      - name: synthesis\n        num_replicas: 2\n",
            "a.yaml:5: api: set the resources of deployments in `args`, not in `deployments`",
        ),
        (FILE.replace("route_prefix", "route_prefx"), "a.yaml:3: applications.0.route_prefx: unknown field; did you"),
        (f"http_options:\n  prot: 1\n{FILE}", "a.yaml:2: http_options.prot: unknown field; did you mean port?"),
        (f"htpp_options:\n  port: 1\n{FILE}", "a.yaml:1: htpp_options: unknown field; did you mean http_options?"),
        (FILE.replace("voicechat_serve.application:api", "api"), "a.yaml:4: applications.0.import_path: Got invalid"),
        (FILE + FILE.removeprefix("applications:\n"), "a.yaml:1: applications: Found multiple configs"),
        (
            f"{FILE}  - name: front\n    import_path: a:b\n    args: {{pag: a}}\n",
            "a.yaml:7: applications.1.args.pag: unknown field; did you mean page?",
        ),
        ("- a list\n", "a.yaml: expected a mapping"),
        ("a: [\n", "a.yaml:2: not valid YAML"),
    ],
)
def test_a_wrong_file_is_told_with_its_line(tmp_path, text, message):
    assert refusal(tmp_path, text).startswith(message)


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="there is no such file"):
        read_application(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    "replicas",
    [Replicas(), Replicas(min_replicas=0, max_replicas=4, num_gpus=0.25), Replicas(min_replicas=2, max_replicas=2)],
)
def test_serve_takes_what_replicas_ask_for(replicas):
    deployment = serve.deployment(Replicas, name="any", **replicas.options())
    if replicas.min_replicas == replicas.max_replicas:
        assert deployment.num_replicas == replicas.max_replicas
    else:
        scaling = deployment._deployment_config.autoscaling_config
        assert (scaling.min_replicas, scaling.max_replicas) == (replicas.min_replicas, replicas.max_replicas)
        assert scaling.target_ongoing_requests == replicas.target_ongoing_requests
        assert (scaling.upscale_delay_s, scaling.downscale_delay_s) == (10, 300)
    assert deployment.max_ongoing_requests == replicas.max_ongoing_requests
    assert deployment.ray_actor_options == {"num_cpus": replicas.num_cpus, "num_gpus": replicas.num_gpus}


@pytest.fixture(scope="module")
def home(tmp_path_factory) -> Iterator[Path]:
    """A home with one champion, romeo@1, and the packaged models of the real one."""
    home = tmp_path_factory.mktemp("home")
    (home / "models").symlink_to(settings().folder("models"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VOICECHAT_HOME", str(home))
        settings.cache_clear()
        run = train_small(home)
        Registry().promote(Registry().record("tests", "run", {}, [], run))
        yield home
    settings.cache_clear()


class TestWhatServeBuilds:
    def test_the_models_of_a_file(self, home):
        arguments = APIArguments(
            champions=ChampionEngines(threads=3, num_cpus=2),
            models=(ModelEntry(id="other", source="romeo@1", engine="torch", min_replicas=2, max_replicas=2),),
        )
        (romeo, how), (other, entry) = served_models(arguments)
        assert (romeo.id, romeo.version, romeo.options.threads, how.num_cpus) == ("romeo", 1, 3, 2)
        assert (other.id, other.version, other.options.engine, other.path) == ("other", None, "torch", romeo.path)
        assert entry.options()["num_replicas"] == 2
        assert served_models(APIArguments(champions=None)) == []
        with pytest.raises(InputError, match="romeo@9"):
            served_models(APIArguments(models=(ModelEntry(id="other", source="romeo@9"),)))

    def test_a_packaged_model_in_the_form_that_its_engine_reads(self, home):
        for engine in ("auto", "llamacpp"):
            assert model_path("smollm2-135m-instruct", engine).suffix == ".gguf"
        for engine in ("torch", "vllm"):
            assert model_path("smollm2-135m-instruct", engine).is_dir()

    def test_a_model_elsewhere_has_its_key_in_the_environment(self, monkeypatch):
        entry = ModelEntry(id="far", engine="openai", url="http://there/v1/", key_env="FAR_KEY", model="vendor/large")
        arguments = APIArguments(
            champions=None, models=(entry, ModelEntry(id="near", engine="openai", url="http://n/v1"))
        )
        monkeypatch.delenv("FAR_KEY", raising=False)
        with pytest.raises(InputError, match="the environment variable FAR_KEY is not set"):
            served_models(arguments)
        monkeypatch.setenv("FAR_KEY", "secret")
        (far, _), (near, _) = served_models(arguments)
        assert far.remote == Remote(url="http://there/v1", model="vendor/large", key_env="FAR_KEY")
        assert near.remote == Remote(url="http://n/v1", model="near")
        built = self.built(application.api(arguments), "api")
        assert "secret" not in repr([deployment.init_args for deployment in built.deployments])

    def built(self, bound: serve.Application, name: str) -> BuiltApplication:
        return build_app(bound, name=name)

    def test_the_local_file(self, home):
        read = read_application(LOCAL)
        api, front = (one.args for one in read.serve.applications)
        built = self.built(application.api(APIArguments(**api)), "api")
        assert {deployment.name for deployment in built.deployments} == {
            "model romeo",
            "model smollm2-135m-instruct",
            "champions",
            "transcription",
            "synthesis",
            "api",
        }
        assert built.ingress_deployment_name == "api"
        assert self.built(application.front(FrontArguments(**front)), "front").ingress_deployment_name == "front"
        assert self.built(application.front(FrontArguments()), "front").ingress_deployment_name == "front"

    def test_names_that_mean_another_model_are_refused(self, home):
        for name in ("romeo", "whisper-1"):
            entry = ModelEntry(id=name, source="romeo@1")
            with pytest.raises(InputError, match="names of their own"):
                application.api(APIArguments(models=(entry,)))

    def test_aliases(self, home):
        models = (ModelEntry(id="bard", source="romeo@1"),)
        with pytest.raises(InputError, match="'gpt-4o' stands for 'nobody', which is no model here; there are bard, "):
            application.api(APIArguments(models=models, aliases={"gpt-4o": "nobody"}))
        built = self.built(application.api(APIArguments(models=models, aliases={"gpt-4o*": "bard"})), "api")
        (ingress,) = (each for each in built.deployments if each.name == "api")
        assert ingress.init_args[0].own_name("gpt-4o-mini") == "bard"

    def test_where_others_can_ask_a_key_is_needed(self, home, monkeypatch):
        running = SimpleNamespace(http_config=SimpleNamespace(host="0.0.0.0"))
        monkeypatch.setattr(ray, "is_initialized", lambda: True)
        monkeypatch.setattr(serve.context, "_get_global_client", lambda raise_if_no_controller_running: running)
        for build in (lambda: application.api(APIArguments()), lambda: application.front(FrontArguments())):
            with pytest.raises(InputError, match=r"0\.0\.0\.0 can be reached .*`voicechat keys create NAME`"):
                build()


def wait_for(name: str, wanted: ApplicationStatus, timeout_s: float = 180) -> str:
    """The message of an application that has come to this status."""
    deadline = time.monotonic() + timeout_s
    while True:
        found = serve.status().applications[name]
        if found.status == wanted:
            return found.message
        assert time.monotonic() < deadline, f"{name}: {found.status}: {found.message}"
        time.sleep(0.5)


@pytest.mark.nightly
def test_serve_deploys_a_file_with_a_champion(home, free_port):
    """As `serve deploy` and KubeRay do: the file goes to Serve, which builds the applications in a task of its own."""
    values = yaml.safe_load(LOCAL.read_text())
    asleep = {"min_replicas": 0, "max_replicas": 1}
    values["http_options"] |= {"host": "0.0.0.0", "port": free_port}
    values["applications"][0]["args"] |= {
        "whisper": "tiny.en",
        "models": [
            {"id": "asleep", "source": "romeo@1"} | asleep,
            {"id": "far", "engine": "openai", "url": "http://127.0.0.1:9/v1"},
        ],
    }
    values["applications"][1]["args"] = {}
    (home / "file.yaml").write_text(yaml.safe_dump(values))
    read = read_application(home / "file.yaml")
    ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        serve.start(proxy_location="HeadOnly", http_options=read.serve.http_options.model_dump())
        client = serve.context._get_global_client()
        client.deploy_apps(read.serve)
        assert "voicechat keys create" in wait_for("api", ApplicationStatus.DEPLOY_FAILED)

        _, secret = create_key(home / "keys.json", "ada")
        client.deploy_apps(read.serve)
        for name in ("api", "front"):
            wait_for(name, ApplicationStatus.RUNNING)
        url = f"http://127.0.0.1:{free_port}"
        assert httpx.get(f"{url}/v1/models").status_code == 401
        http = httpx.Client(base_url=url, headers={"authorization": f"Bearer {secret}"}, timeout=60)
        # A model that nobody has asked for yet has no replica, and is no reason to send no requests.
        assert http.get("/ready").json() == {"status": "ready", "not_ready": {}}
        api = openai.OpenAI(base_url=f"{url}/v1", api_key=secret, max_retries=0, timeout=120)
        for model in ("romeo", "romeo@1", "asleep"):
            answer = api.completions.create(model=model, prompt="ROMEO:\n", max_tokens=5, temperature=0)
            assert answer.usage
            assert answer.usage.completion_tokens == 5
        # Nothing listens there, and that is no failure of its replica.
        with pytest.raises(openai.InternalServerError, match="the server that runs this model does not answer") as far:
            api.chat.completions.create(model="far", messages=[{"role": "user", "content": "Hello"}])
        assert (far.value.status_code, far.value.code) == (503, "unavailable")
        # The proxy's own routes are for this machine, where Kubernetes' probes ask.
        assert httpx.get(f"{url}/-/healthz").text == "success"
        elsewhere = f"http://{ray.util.get_node_ip_address()}:{free_port}"
        assert httpx.get(f"{elsewhere}/-/healthz").status_code == 404
    finally:
        serve.shutdown()
        ray.shutdown()
