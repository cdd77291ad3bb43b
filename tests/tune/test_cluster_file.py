"""cluster.yaml is valid in the eyes of Ray's own autoscaler, and keeps the dashboard on loopback."""

from pathlib import Path

import pytest
import yaml
from ray.autoscaler._private.util import prepare_config, validate_config

FILE = Path(__file__).parents[2] / "cluster.yaml"


def test_cluster_file_is_valid():
    config = yaml.safe_load(FILE.read_text())
    validate_config(prepare_config(config))
    assert any("--dashboard-host=127.0.0.1" in command for command in config["head_start_ray_commands"])


def test_a_misspelt_key_would_be_noticed():
    config = yaml.safe_load(FILE.read_text()) | {"max_wrkers": 3}
    with pytest.raises(Exception, match="max_wrkers"):
        validate_config(prepare_config(config))
