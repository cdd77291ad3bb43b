"""The cluster files are valid in the eyes of Ray's own autoscaler, and open nothing to strangers."""

from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

ROOT = Path(__file__).parents[2]
AWS, ON_PREMISE = ROOT / "cluster.yaml", ROOT / "cluster-on-premise.yaml"


def read(file: Path) -> dict:
    return yaml.safe_load(file.read_text())


def start_command(commands: list[str]) -> str:
    (command,) = (command for command in commands if "ray start" in command)
    return command


@pytest.mark.parametrize("file", [AWS, ON_PREMISE], ids=lambda file: file.stem)
class TestEachFile:
    def test_it_is_valid(self, file):
        validate_config(prepare_config(read(file)))

    def test_a_misspelt_key_is_refused(self, file):
        with pytest.raises(Exception, match="max_wrkers"):
            validate_config(prepare_config(read(file) | {"max_wrkers": 3}))

    def test_the_dashboard_listens_on_loopback(self, file):
        assert "--dashboard-host=127.0.0.1" in start_command(read(file)["head_start_ray_commands"])

    def test_every_machine_asks_for_the_token_and_has_it(self, file):
        config = read(file)
        for commands in (config["head_start_ray_commands"], config["worker_start_ray_commands"]):
            assert "RAY_AUTH_MODE=token ray start" in start_command(commands)
        (mounted,) = (there for there, here in config["file_mounts"].items() if here == "~/.ray/auth_token")
        assert mounted == f"/home/{config['auth']['ssh_user']}/.ray/auth_token"
        assert any("export RAY_AUTH_MODE=token" in command for command in config["setup_commands"])

    def test_the_head_runs_no_trials(self, file):
        config = read(file)
        if file == AWS:
            assert config["available_node_types"]["head"]["resources"] == {"CPU": 0}
        else:
            assert "--num-cpus=0 --num-gpus=0" in start_command(config["head_start_ray_commands"])


def test_workers_on_aws_are_spot_first_and_one_on_demand():
    config = prepare_config(read(AWS))
    spot, on_demand = (config["available_node_types"][name] for name in ("gpu-spot", "gpu-on-demand"))
    assert spot["node_config"].pop("InstanceMarketOptions") == {"MarketType": "spot"}
    assert spot["node_config"] == on_demand["node_config"]
    assert spot["resources"] == on_demand["resources"]
    assert spot["priority"] > on_demand["priority"]
    # Ray turns to the second type only beyond the first one's limit: without room there, no spot would mean no sweep.
    assert spot["max_workers"] < config["max_workers"] == spot["max_workers"] + on_demand["max_workers"]


def test_machines_on_premise_all_join():
    config = prepare_config(read(ON_PREMISE))
    machines = config["available_node_types"][config["head_node_type"]]
    assert machines["min_workers"] == machines["max_workers"] == len(config["provider"]["worker_ips"])


def test_the_head_on_aws_can_ask_for_workers():
    """Ray's AWS provider needs boto3, which is no requirement of ours; the pin is the one that is tested here."""
    (command,) = read(AWS)["head_setup_commands"]
    assert "grep '^boto3==' requirements/test.txt" in command
    assert "\nboto3==" in (ROOT / "requirements" / "test.txt").read_text()
